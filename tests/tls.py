#!/usr/bin/env python3
"""NBD over TLS with real clients, and whoever does not play by its rules; limits on the number of
clients and on their time."""

import json
import os
import random
import socket
import ssl
import struct
import time

import nbd
from lib import MIB, PAGE, PATIENCE, Cases, Server, expect, main, need, program, run, sparse_file
from lib import wait_for

SIZE = 4 * MIB
TLS_REQD = nbd.REP_ERR | 5

TEMPLATES = {
    "ca": "cn = Test CA\nca\ncert_signing_key\nexpiration_days = 2\n",
    "server": "cn = localhost\ndns_name = localhost\nip_address = 127.0.0.1\ntls_www_server\n"
    "signing_key\nexpiration_days = 2\n",
    "client": "cn = client\ntls_www_client\nsigning_key\nexpiration_days = 2\n",
}


def certificates(directory, roles=("server", "client")):
    """A directory with a CA and what it has signed, under the names that everybody uses."""
    os.mkdir(directory)

    def path(name):
        return os.path.join(directory, name)

    for role in ("ca", *roles):
        with open(path(f"{role}.info"), "w") as file:
            file.write(TEMPLATES[role])
        key = ["--outfile", path(f"{role}-key.pem")]
        run("certtool", "--generate-privkey", "--key-type", "ecdsa", "--curve", "secp256r1", *key)
        how = ["--template", path(f"{role}.info"), "--load-privkey", path(f"{role}-key.pem")]
        if role == "ca":
            how += ["--generate-self-signed"]
        else:
            how += ["--generate-certificate", "--load-ca-certificate", path("ca-cert.pem")]
            how += ["--load-ca-privkey", path("ca-key.pem")]
        run("certtool", *how, "--outfile", path(f"{role}-cert.pem"))
    return directory


def uri(server, tls, user="", more=""):
    name = f"{user}@" if user else ""
    if server.socket:
        return f"nbds+unix://{name}/?socket={server.socket}&{tls}{more}"
    return f"nbds://{name}localhost:{server.port}/?{tls}{more}"


def failures(server):
    """What the server has counted, by the reason."""
    return server.statistics()["clients_failed"]


class TlsClient(nbd.Client):
    """Speaks TLS from start_tls() on."""

    def start_tls(self, chain=None):
        expect(self.option(nbd.OPT_STARTTLS) == [(nbd.REP_ACK, b"")], "STARTTLS")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if chain:
            context.load_cert_chain(f"{chain}/client-cert.pem", f"{chain}/client-key.pem")
        self.sock = context.wrap_socket(self.sock)
        return self


def copies(where, pki, keys):
    """Data goes in and comes out as it was, by clients of libnbd and of QEMU."""
    content = random.Random(1).randbytes(SIZE)
    source = os.path.join(where, "source")
    with open(source, "wb") as file:
        file.write(content)

    def check(name):
        with open(os.path.join(where, name), "rb") as file:
            expect(file.read() == content, f"{name} is not what was written")

    image = sparse_file(os.path.join(where, "copy.img"), SIZE)
    options = ["--tls-certificates", pki, "--tls-psk", keys]
    for tcp in (True, False):
        with Server(image, tcp=tcp, options=options) as server:
            x509 = uri(server, f"tls-certificates={pki}")
            psk = uri(server, f"tls-psk-file={keys}", "alice")
            scheme = "nbds://" if tcp else "nbds+unix://"
            expect(f" {scheme}" in server.stdout(), f"no {scheme}: {server.stdout()}")
            told = json.loads(run("nbdinfo", "--json", x509).stdout)
            expect(told["TLS"] and told["exports"][0]["export-size"] == SIZE, f"{told}")
            run("nbdcopy", source, x509)
            run("nbdcopy", psk, os.path.join(where, "out"))
            check("out")
            if not tcp:
                continue
            for object, name in (
                (f"tls-creds-x509,id=t,dir={pki},endpoint=client", "by-x509"),
                (f"tls-creds-psk,id=t,dir={where},username=alice,endpoint=client", "by-psk"),
            ):
                image_of = f"driver=nbd,host=localhost,port={server.port},tls-creds=t"
                run("qemu-img", "convert", "--object", object, "--image-opts", image_of, "-O", "raw",
                    os.path.join(where, name))  # fmt: skip
                check(name)
    with open(image, "rb") as file:
        expect(file.read() == content, "the image is not what was written")


def plaintext_refused(server):
    with nbd.Client(server.address) as client:
        for option, data in ((nbd.OPT_LIST, b""), (nbd.OPT_GO, b"\0" * 6), (77, b"x" * 9000)):
            replies = client.option(option, data)
            expect([kind for kind, _ in replies] == [TLS_REQD], f"option {option}: {replies}")
        expect(client.option(nbd.OPT_STARTTLS, b"x")[-1][0] == nbd.REP_ERR_INVALID, "with data")
        expect(client.option(nbd.OPT_ABORT)[-1][0] == nbd.REP_ACK, "ABORT")
    with nbd.Client(server.address) as client:
        client.send_option(nbd.OPT_EXPORT_NAME)
        expect(client.closed_by_server(), "EXPORT_NAME went on without TLS")
    told = run("nbdinfo", server.uri(), check=False)
    expect(told.returncode != 0, "nbdinfo came in without TLS")
    expect(failures(server)["tls"] == 0, "stat, at the unix socket, is no failure")


def state_is_forgotten(server):
    with TlsClient(server.address) as client:
        client.use_structured()
        client.meta(nbd.OPT_SET_META_CONTEXT, "", ["base:allocation"])
        client.start_tls()
        _, final = client.meta(nbd.OPT_SET_META_CONTEXT, "", ["base:allocation"])
        expect(final == nbd.REP_ERR_INVALID, f"structured replies outlived STARTTLS: {final:#x}")
        expect(client.option(nbd.OPT_STARTTLS)[-1][0] == nbd.REP_ERR_INVALID, "TLS within TLS")
        client.structured = False
        client.go()
        client.write(0, b"eightfold" * PAGE)
        expect(client.read(0, 9 * PAGE) == b"eightfold" * PAGE, "data")


def injection(server):
    """What follows STARTTLS in the same segment was not said under TLS."""
    before = failures(server)["tls"]
    with nbd.Client(server.address) as client:
        go = struct.pack(">QII", nbd.IHAVEOPT, nbd.OPT_GO, 6) + b"\0" * 6
        client.send(struct.pack(">QII", nbd.IHAVEOPT, nbd.OPT_STARTTLS, 0) + go)
        expect(client.closed_by_server(), "the connection is still open")
    wait_for(lambda: failures(server)["tls"] == before + 1, PATIENCE, "the count of one more")


def garbage(server):
    before = failures(server)["tls"]
    for noise in (b"\0" * 500, b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05\x01\xff\xff\xff\xff"):
        with nbd.Client(server.address) as client:
            client.option(nbd.OPT_STARTTLS)
            client.send(noise)
            client.sock.shutdown(socket.SHUT_WR)
            expect(client.closed_by_server(), f"{noise[:8]} was not refused")
    wait_for(lambda: failures(server)["tls"] > before, PATIENCE, "a count")


def silent_handshakes(server):
    """Who says nothing, before or within TLS, is not waited for."""
    before = failures(server)["handshake_timeout"]
    waiting = [nbd.Client(server.address), nbd.Client(server.address)]
    waiting[1].option(nbd.OPT_STARTTLS)
    waiting[1].send(b"\x16\x03\x01")
    for client in waiting:
        expect(client.closed_by_server(), "still open after the handshake's time")
        client.sock.close()
    late = lambda: failures(server)["handshake_timeout"] == before + 2
    wait_for(late, PATIENCE, "the count of two more")


def policies(where, image, pki, keys):
    options = ["--tls", "allow", "--tls-certificates", pki]
    cases = Cases()
    with Server(image, options=options) as server:
        run("nbdinfo", server.uri())
        for step in (state_is_forgotten, injection, garbage):
            with cases.case(step.__name__):
                step(server)
        expect("TLS: it did not wait" in server.stderr(), f"no line: {server.stderr()}")
    # Long enough for a first word, and for `forebay stat`, on a machine that stalls.
    with Server(image, options=[*options, "--handshake-timeout", 10]) as server:
        with cases.case("silent_handshakes"):
            silent_handshakes(server)
    with Server(image, options=["--tls-psk", keys]) as server:
        with cases.case("plaintext is refused"):
            plaintext_refused(server)
        with cases.case("wrong keys are refused"):
            wrong = os.path.join(where, "wrong.psk")
            with open(wrong, "w") as file:
                file.write("alice:" + "00" * 32 + "\nbob:" + "00" * 32 + "\n")
            for name in ("alice", "bob"):
                told = run("nbdinfo", uri(server, f"tls-psk-file={wrong}", name), check=False)
                expect(told.returncode != 0, f"{name} came in with a wrong key")
            run("nbdinfo", uri(server, f"tls-psk-file={keys}", "alice"))
    return cases


def verified_clients(where, image, pki):
    rogue = certificates(os.path.join(where, "rogue"), ("client",))
    options = ["--tls", "allow", "--tls-certificates", pki, "--tls-verify-peer"]
    with Server(image, tcp=True, options=options) as server:
        run("nbdinfo", uri(server, f"tls-certificates={pki}"))
        for chain in (None, rogue):
            with TlsClient(server.address) as client:
                try:
                    client.start_tls(chain).list()
                    expect(False, f"served with a certificate of {chain}")
                except (OSError, nbd.Breach):
                    pass
        wait_for(lambda: failures(server)["tls"] == 2, PATIENCE, "the count of two")
        lines = [line for line in server.stderr().splitlines() if "TLS: " in line]
        expect(lines and "127.0.0.1:" in lines[0], f"{lines}")


def refused(image, says, *options):
    done = run(program(), "serve", image, "--cache", "32M", *options, check=False)
    lines = done.stderr.splitlines()
    expect(done.returncode == 1 and len(lines) == 1, f"{options}: {done.returncode} {lines}")
    expect(says in lines[0], f"{options}: {lines[0]}")


def bad_options(where, image, pki):
    mixed = os.path.join(where, "mixed")
    run("cp", "-r", pki, mixed)
    run("cp", f"{mixed}/client-key.pem", f"{mixed}/server-key.pem")
    noise = os.path.join(where, "noise")
    run("cp", "-r", pki, noise)
    with open(f"{noise}/ca-cert.pem", "w") as file:
        file.write("nothing\n")
    keys = os.path.join(where, "bad.psk")
    with open(keys, "w") as file:
        file.write("alice:0011\nbob:xyz\n")
    refused(image, "No such file", "--tls-certificates", os.path.join(where, "nowhere"))
    refused(image, "is not the key", "--tls-certificates", mixed)
    refused(image, "ca-cert.pem", "--tls-certificates", noise)
    refused(image, "line 2", "--tls-psk", keys)
    refused(image, "--tls-certificates DIR", "--tls", "require")
    refused(image, "--tls-verify-peer", "--tls-verify-peer", "--tls-psk", keys)
    for options in ((), ("--tls", "allow", "--tls-certificates", pki)):
        refused(image, "--insecure", "--listen", ":10999", *options)


def limits(image):
    options = ["--max-clients", 3, "--send-timeout", 10, "--idle-timeout", 10]
    with Server(image, options=options) as server:
        deaf = server.client(structured=False)  # which would be told of holes
        deaf.send(b"".join(nbd.request(nbd.CMD_READ, 0, SIZE, cookie=i) for i in range(8)))
        kept = server.client()
        idle = server.client()
        with socket.socket(socket.AF_UNIX) as fourth:
            fourth.settimeout(PATIENCE)
            fourth.connect(server.socket)
            expect(fourth.recv(100) == b"", "one client too many was greeted")

        def out(what):
            kept.read(0, PAGE)
            time.sleep(0.05)
            return what in server.stderr()

        wait_for(lambda: out("does not receive its replies"), PATIENCE, "the end of who is deaf")
        idle.sock.settimeout(0.05)

        def idle_is_out():
            kept.read(0, PAGE)
            try:
                return idle.sock.recv(1) == b""
            except TimeoutError:
                return False

        wait_for(idle_is_out, PATIENCE, "the end of who is idle")

        def counted():
            kept.read(0, PAGE)
            counts = failures(server)
            return counts["send_timeout"] == 1 and counts["idle_timeout"] == 1

        wait_for(counted, PATIENCE, "the counts of both")
        kept.read(0, PAGE)
        deaf.sock.close()
        kept.sock.close()


def test(where):
    need("certtool", "psktool", "nbdinfo", "nbdcopy", "qemu-img")
    pki = certificates(os.path.join(where, "pki"))
    keys = os.path.join(where, "keys.psk")
    run("psktool", "-u", "alice", "-p", keys)
    image = sparse_file(os.path.join(where, "disk.img"), SIZE)
    cases = policies(where, image, pki, keys)
    with cases.case("data by real clients"):
        copies(where, pki, keys)
    with cases.case("clients' certificates"):
        verified_clients(where, image, pki)
    with cases.case("what cannot be started"):
        bad_options(where, image, pki)
    with cases.case("number and time"):
        limits(image)
    cases.finish()


main(test)
