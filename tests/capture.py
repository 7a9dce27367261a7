#!/usr/bin/env python3
"""`forebay capture` on a veth pair in a network namespace of its own: every frame that was sent is
in the file, byte for byte and in order, as tshark and capinfos see it too; the account adds up; and
what goes wrong is said in one line and leaves a whole file."""

import json
import os
import random
import signal
import struct
import subprocess
import tempfile
import threading
import time

from lib import MIB, PATIENCE, Cases, Cleanup, Skip, expect, main, need, need_root, program, run
from lib import wait_for

NAMESPACE = f"fbcap{os.getpid()}"
INSIDE = ("ip", "netns", "exec", NAMESPACE)
STRESS = bool(os.environ.get("FOREBAY_STRESS"))
FRAMES = 1_000_000 if STRESS else 20_000
OURS = b"\x02" * 12  # both addresses; nobody else in the namespace has them


def frame(number):
    """A frame that tells its number, of a length and with bytes that differ from its neighbours'."""
    length = 60 + number * 37 % 1455
    head = OURS + b"\x88\xb5" + struct.pack(">I", number)
    return (head + bytes((number * 13 + at) & 0xFF for at in range(64)) * 24)[:length]


def send(frames, interface="tx0", pause=0.0):
    """Sends frames into the namespace; returns when all have been taken by the interface.

    A pause of so many seconds after each hundred lets a recorder that waits for a CPU keep up with many.
    """
    name = os.path.join(os.environ["FOREBAY_TEST_DIRECTORY"], "frames")
    with open(name, "wb") as file:
        for data in frames:
            file.write(struct.pack("<I", len(data)) + data)
    sender = f"""
import socket, struct, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("{interface}", 0))
data = open("{name}", "rb").read()
at = sent = 0
while at < len(data):
    n = struct.unpack_from("<I", data, at)[0]
    s.send(data[at + 4 : at + 4 + n])
    at += 4 + n
    sent += 1
    if sent % 100 == 0: time.sleep({pause})
"""
    run(*INSIDE, "python3", "-c", sender, timeout=600 if STRESS else 120)
    os.unlink(name)


def read_pcapng(path):
    """The packets of a file that must be whole: (seconds, captured bytes, length on the wire)."""
    with open(path, "rb") as file:
        data = file.read()
    at, packets = 0, []
    while at < len(data):
        kind, length = struct.unpack_from("<II", data, at)
        expect(length >= 12 and length % 4 == 0 and at + length <= len(data), f"{path}: broken at {at}")
        expect(struct.unpack_from("<I", data, at + length - 4)[0] == length, f"{path}: broken at {at}")
        if kind == 6:
            high, low, captured, wire = struct.unpack_from("<IIII", data, at + 12)
            packets.append((((high << 32) | low) / 1e9, data[at + 28 : at + 28 + captured], wire))
        at += length
    return packets


def numbers(packets):
    return [struct.unpack_from(">I", data, 14)[0] for _, data, _ in packets if data.startswith(OURS)]


def check_readers(path, count):
    """capinfos reads it without a warning."""
    done = run("capinfos", "-M", "-c", "-T", "-r", path, timeout=300)
    expect(not done.stderr.strip(), f"capinfos: {done.stderr}")
    expect(done.stdout.split()[-1] == str(count), f"capinfos: {done.stdout}, not {count}")


def check_decoded(path, frames):
    """tshark decodes just these frames of ours, byte for byte and in order, without a warning."""
    fields = [word for name in ("eth.dst", "eth.src", "eth.type", "data.data") for word in ("-e", name)]
    with tempfile.TemporaryFile("w+", dir=os.environ["FOREBAY_TEST_DIRECTORY"]) as err:
        command = ["tshark", "-n", "-r", path, "-T", "fields", *fields]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True) as tshark:
            watch = threading.Timer(1200 if STRESS else 200, tshark.kill)
            watch.start()
            number = 0
            for line in tshark.stdout:
                if not line.startswith("02:02:02:02:02:02\t02:02:02:02:02:02\t"):
                    continue
                expect(number < len(frames), f"tshark: more than {len(frames)} frames")
                payload = frames[number][14:].hex()
                if not line.endswith(f"\t0x88b5\t{payload}\n"):
                    tshark.kill()
                    expect(False, f"tshark: frame {number} is {line!r}")
                number += 1
            watch.cancel()
            status = tshark.wait()
        err.seek(0)
        errors = [line for line in err if "Running as user" not in line]
    expect(status == 0 and not errors, f"tshark: {status}, {errors}")
    expect(number == len(frames), f"tshark: {number} frames, not {len(frames)}")


class Capture:
    """A running `forebay capture`; as a context it is stopped, and its account is read."""

    def __init__(self, *options, prefix=INSIDE, interface="rx0"):
        directory = os.environ["FOREBAY_TEST_DIRECTORY"]
        self.err = tempfile.TemporaryFile("w+", dir=directory)
        self.out = tempfile.TemporaryFile("w+", dir=directory)
        command = [*prefix, program(), "capture", "-i", interface, "--incoming", "--json"]
        self.process = subprocess.Popen(
            command + [str(o) for o in options], stdout=self.out, stderr=self.err
        )
        try:
            wait_for(
                lambda: "capturing from" in self.errors() or self.process.poll() is not None,
                PATIENCE,
                "the line that it captures",
            )
        except BaseException:
            self.process.kill()
            raise

    def errors(self):
        return os.pread(self.err.fileno(), MIB, 0).decode()

    def lines(self):
        """What it has said, but for the line that it captures."""
        return [line for line in self.errors().splitlines() if "capturing from" not in line]

    def stop(self, number=signal.SIGINT):
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.end()

    def end(self):
        self.status = self.process.wait(PATIENCE)
        text = os.pread(self.out.fileno(), MIB, 0).decode()
        self.account = json.loads(text) if text else None
        return self.account

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.process.poll() is None:
            self.stop() if kind is None else self.process.kill()
            self.process.wait()


def adds_up(account):
    lost = sum(account["dropped"].values())
    expect(
        account["received"] == account["written"] + lost and account["waiting"] == 0,
        f"the account does not add up: {account}",
    )


def make_network(cleanup):
    need("ip", "tshark", "capinfos", "setpriv")
    need_root()
    made = run("ip", "netns", "add", NAMESPACE, check=False)
    if made.returncode:
        raise Skip(f"no network namespace: {made.stderr.strip()}")
    cleanup.later("ip", "netns", "del", NAMESPACE)
    make_pair()


def make_pair():
    ip = ("ip", "-n", NAMESPACE, "link")
    made = run(*ip, "add", "tx0", "type", "veth", "peer", "name", "rx0", check=False)
    if made.returncode:
        raise Skip(f"no veth pair: {made.stderr.strip()}")
    for name in ("tx0", "rx0"):
        # Without IPv6 nobody but the tests sends anything.
        run(*INSIDE, "sysctl", "-qw", f"net.ipv6.conf.{name}.disable_ipv6=1", check=False)
        run(*ip, "set", name, "up")


def everything_in_order(directory):
    path = os.path.join(directory, "all.pcapng")
    frames = [frame(number) for number in range(FRAMES)]
    started = time.time()
    with Capture("-w", path, "--buffer", "1G" if STRESS else "128M") as capture:
        send(frames)
        account = capture.stop()
    expect(capture.status == 0 and not capture.lines(), f"{capture.status}: {capture.errors()}")
    adds_up(account)
    expect(sum(account["dropped"].values()) == 0, f"lost: {account}")
    packets = [p for p in read_pcapng(path) if p[1].startswith(OURS)]
    expect(len(packets) == FRAMES, f"{len(packets)} of {FRAMES} frames")
    for number, (stamp, data, wire) in enumerate(packets):
        if data != frames[number] or wire != len(data):
            expect(False, f"frame {number} differs")
        expect(started - 1 <= stamp <= time.time() + 1, f"frame {number} is of {stamp}")
    check_readers(path, account["written"])
    check_decoded(path, frames)


def filter_snap_and_count(directory):
    path = os.path.join(directory, "few.pcapng")
    with Capture("-w", path, "-s", "40", "-c", "10", "greater 1000 and ether proto 0x88b5") as capture:
        send([frame(number) for number in range(200)])
        account = capture.end()
    wanted = [number for number in range(200) if len(frame(number)) >= 1000][:10]
    packets = read_pcapng(path)
    expect(numbers(packets) == wanted, f"{numbers(packets)} instead of {wanted}")
    for (_, data, wire), number in zip(packets, wanted):
        expect(data == frame(number)[:40] and wire == len(frame(number)), f"frame {number}")
    adds_up(account)
    check_readers(path, 10)


def past_the_machine(directory):
    """Over AF_XDP: whole and in order; and it is said that the machine does not get what is captured."""
    path = os.path.join(directory, "xdp.pcapng")
    with Capture("--port", "xdp", "-w", path, "-s", "100", "ether proto 0x88b5") as capture:
        if capture.process.poll() is not None and "needs CAP_NET_ADMIN" in capture.errors():
            return  # a container without it
        send([frame(number) for number in range(2000)])
        account = capture.stop()
    said = capture.lines()
    expect(capture.status == 0 and len(said) == 2 and "zero copy" in said[0] and "does not reach" in said[1], said)
    adds_up(account)
    expect(account["received"] == 2000 and account["written"] == 2000, account)
    packets = read_pcapng(path)
    for number, (_, data, wire) in enumerate(packets):
        expect(data == frame(number)[:100] and wire == len(frame(number)), f"frame {number}")
    check_readers(path, 2000)


def vlan_tags(directory):
    path = os.path.join(directory, "vlan.pcapng")
    tagged = OURS + b"\x81\x00\x00\x07\x88\xb5" + bytes(60)
    with Capture("-w", path, "vlan 7") as capture:
        send([frame(1), tagged, OURS + b"\x81\x00\x00\x08\x88\xb5" + bytes(60)])
        capture.stop()
    packets = read_pcapng(path)
    expect([data for _, data, _ in packets] == [tagged], f"{packets}")


def ring_of_files(directory):
    path = os.path.join(directory, "ring.pcapng")
    with Capture("-w", path, "-C", "1M", "-W", "2") as capture:
        send([frame(number) for number in range(6000)])  # 4.6 MiB
        account = capture.stop()
    adds_up(account)
    names = sorted(name for name in os.listdir(directory) if name.startswith("ring-"))
    expect(len(names) == 2 and account["files"] >= 4, f"{names}, {account}")
    got = []
    for name in names:
        file = os.path.join(directory, name)
        expect(os.path.getsize(file) <= MIB, f"{name} has {os.path.getsize(file)} bytes")
        packets = read_pcapng(file)
        check_readers(file, len(packets))
        got += numbers(packets)
    expect(got == list(range(6000 - len(got), 6000)), "the newest are not those in the two files")
    expect(account["removed_packets"] + len(got) == account["written"], f"{account}")


def live_picture(directory):
    path, sock = (os.path.join(directory, name) for name in ("live.pcapng", "live.sock"))
    with Capture("-w", path, "--socket", sock) as capture:
        send([frame(number) for number in range(500)])

        def seen():
            done = run(program(), "capture", "--stat", sock, "--json")
            return json.loads(done.stdout)["received"] >= 500

        wait_for(seen, PATIENCE, "500 packets in the live picture")
        text = run(program(), "capture", "--stat", sock).stdout
        expect("capture of rx0" in text and "when full: block" in text, text)
        account = capture.stop(signal.SIGTERM)
    expect(capture.status == 0, capture.errors())
    adds_up(account)
    expect(not os.path.exists(sock), "the socket is still there")
    done = run(program(), "capture", "--stat", sock, check=False)
    expect(done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr)


def interface_down_and_gone(directory):
    path = os.path.join(directory, "down.pcapng")
    ip = ("ip", "-n", NAMESPACE, "link")
    with Capture("-w", path) as capture:
        send([frame(1)])
        run(*ip, "set", "rx0", "down")
        wait_for(lambda: "rx0 is down" in capture.errors(), PATIENCE, "the line that it is down")
        run(*ip, "set", "rx0", "up")
        wait_for(lambda: "rx0 is up again" in capture.errors(), PATIENCE, "the line that it is up")
        send([frame(2)])
        run(*ip, "del", "tx0")
        account = capture.end()
    make_pair()
    expect(capture.status == 1 and "rx0: the interface is gone" in capture.errors(), capture.errors())
    expect(len(capture.lines()) == 3, capture.errors())
    adds_up(account)
    expect(numbers(read_pcapng(path)) == [1, 2], "what was sent while it was up is not all there")
    check_readers(path, account["written"])


def full_disk(directory):
    place = os.path.join(directory, "small")
    os.mkdir(place)
    with Cleanup() as cleanup:
        if run("mount", "-t", "tmpfs", "-o", "size=3m", "none", place, check=False).returncode:
            raise Skip("no tmpfs of its own")
        cleanup.unmount_later(place)
        path = os.path.join(place, "full.pcapng")
        with Capture("-w", path) as capture:
            send([frame(number) for number in range(10_000)], pause=0.005)  # 7 MiB
            account = capture.end()
        expect(capture.status == 1 and len(capture.lines()) == 1, capture.errors())
        expect("the disk is full" in capture.errors(), capture.errors())
        adds_up(account)
        got = numbers(read_pcapng(path))
        expect(got == list(range(len(got))) and len(got) > 1000, f"{len(got)} packets")
        check_readers(path, account["written"])


def refused(directory, what, *options, prefix=INSIDE):
    done = run(*prefix, program(), "capture", *options, check=False)
    lines = done.stderr.splitlines()
    expect(
        done.returncode == 1 and len(lines) == 1 and what in lines[0],
        f"{options}: {done.returncode}, {done.stderr!r}",
    )


def killed(directory):
    path, whole = (os.path.join(directory, name) for name in ("killed.pcapng", "whole.pcapng"))

    def begun():
        with open(path, "rb") as file:
            return frame(100) in file.read()

    with Capture("-w", path) as capture:
        send([frame(number) for number in range(10_000)], pause=0.005)  # 7 MiB
        wait_for(begun, PATIENCE, "the beginning of the file")
        capture.process.kill()
        capture.process.wait()
    done = run(program(), "capture", "-r", path, "-w", whole)
    expect(done.stderr.count("\n") == 2 and "ends in the middle of a packet" in done.stderr, done.stderr)
    got = numbers(read_pcapng(whole))
    expect(got == list(range(len(got))) and len(got) > 50, f"{len(got)} packets")
    check_readers(whole, len(got))


def bad_input(directory):
    out = os.path.join(directory, "bad.pcapng")
    refused(directory, "no such interface", "-i", "nowhere0", "-w", out)
    refused(directory, "the filter 'udp porridge'", "-i", "rx0", "-w", out, "udp", "porridge")
    refused(directory, "no such directory", "-i", "rx0", "-w", os.path.join(directory, "no/where"))
    refused(directory, "directory", "-i", "rx0", "-w", directory)
    refused(directory, "not a regular file", "-i", "rx0", "-w", "/dev/full")
    refused(directory, "name an interface", "-w", out)
    refused(directory, "too small", "-i", "rx0", "-w", out, "--buffer", "1M")
    refused(directory, "no such policy", "-i", "rx0", "-w", out, "--when-full", "pray")
    nobody = (*INSIDE, "setpriv", "--reuid=65534", "--clear-groups")
    if run(*nobody, program(), "--version", check=False).returncode == 0:
        refused(directory, "CAP_NET_RAW", "-i", "rx0", "-w", out, prefix=nobody)


def files_are_read(directory):
    source, copy = (os.path.join(directory, name) for name in ("in.pcap", "copy.pcapng"))
    frames = [frame(number) for number in range(300)]

    def write(path, damage=None, cut=0):
        data = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 1)
        for number, f in enumerate(frames):
            length = 0xFFFFFF00 if number == damage else len(f)
            data += struct.pack("<IIII", 1_700_000_000 + number, number, length, len(f)) + f
        with open(path, "wb") as file:
            file.write(data[: len(data) - cut])

    write(source)
    done = run(program(), "capture", "-r", source, "-w", copy, "--json")
    adds_up(json.loads(done.stdout))
    expect([data for _, data, _ in read_pcapng(copy)] == frames, "not the same packets")
    check_readers(copy, 300)
    write(source, cut=7)
    done = run(program(), "capture", "-r", source, "-w", copy)
    expect("ends in the middle of a packet" in done.stderr, done.stderr)
    expect(len(read_pcapng(copy)) == 299, "not all that was whole")
    write(source, damage=100)
    done = run(program(), "capture", "-r", source, "-w", copy, check=False)
    expect(done.returncode == 1 and "damaged" in done.stderr, done.stderr)
    expect(len(read_pcapng(copy)) == 100, "not all before the damage")
    with open(source, "wb") as file:
        file.write(random.randbytes(5000))
    refused(directory, "not a pcap", "-r", source, "-w", copy, prefix=())
    refused(directory, "read and written at once", "-r", copy, "-w", copy, prefix=())


def test(directory):
    with Cleanup() as cleanup:
        make_network(cleanup)
        cases = Cases()
        for check in (
            everything_in_order,
            filter_snap_and_count,
            past_the_machine,
            vlan_tags,
            ring_of_files,
            live_picture,
            interface_down_and_gone,
            full_disk,
            killed,
            bad_input,
            files_are_read,
        ):
            with cases.case(check.__name__):
                check(directory)
        cases.finish()


main(test, 1800 if STRESS else 280)
