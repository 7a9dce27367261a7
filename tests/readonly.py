#!/usr/bin/env python3
"""--read-only: everything that would write gets EPERM, the rest works, and the image is not
touched, times included."""

import os

import nbd
from lib import MIB, PAGE, Cases, Server, expect, main, need, run, sha256

SIZE = 16 * MIB


def refused(client):
    page = bytes(PAGE)
    for what, command, flags, payload in (
        ("write", nbd.CMD_WRITE, 0, page),
        ("write FUA", nbd.CMD_WRITE, nbd.FUA, page),
        ("trim", nbd.CMD_TRIM, 0, b""),
        ("zeroes", nbd.CMD_WRITE_ZEROES, 0, b""),
        ("zeroes NO_HOLE", nbd.CMD_WRITE_ZEROES, nbd.NO_HOLE, b""),
    ):
        reply = client.call(command, 0, PAGE, flags, payload)
        expect(reply.error == nbd.EPERM, f"{what}: error {reply.error}")
        client.read(0, PAGE)


def allowed(client, content):
    for offset in range(0, SIZE, MIB):
        expect(client.read(offset, MIB) == content[offset : offset + MIB], f"data at {offset}")
    client.flush()
    client.call(nbd.CMD_CACHE, 0, MIB).check()
    covered = sum(length for length, _ in client.status(0, SIZE))
    expect(covered > 0, "no extents")


def test(directory):
    need("nbdinfo", "nbdcopy")
    image = os.path.join(directory, "disk.img")
    content = os.urandom(SIZE)
    with open(image, "wb") as file:
        file.write(content)
    os.chmod(image, 0o444)
    os.utime(image, ns=(10**18, 10**18))
    cases = Cases()
    with Server(image, cache="16M", options=["--read-only"]) as server:
        with server.client() as client, server.client(structured=False) as simple:
            with cases.case("the flag"):
                expect(client.flags & nbd.READ_ONLY, f"flags {client.flags:#x}")
                run("nbdinfo", "--is", "read-only", server.uri())
            with cases.case("what writes is refused"):
                refused(client)
            with cases.case("what writes is refused, simple replies"):
                refused(simple)
            with cases.case("what reads is allowed"):
                allowed(client, content)
            client.disconnect()
        with cases.case("nbdcopy out of it"):
            copy = os.path.join(directory, "copy.img")
            run("nbdcopy", server.uri(), copy)
            expect(sha256(copy) == sha256(image), "the copy differs")
    with cases.case("the image is untouched"):
        with open(image, "rb") as file:
            expect(file.read() == content, "the content has changed")
        expect(os.stat(image).st_mtime_ns == 10**18, "the time of the last change has changed")
    with cases.case("without --read-only the flag is not set"):
        os.chmod(image, 0o644)
        with Server(image, cache="16M") as server, server.client() as client:
            expect(not client.flags & nbd.READ_ONLY, f"flags {client.flags:#x}")
            client.write(0, bytes(PAGE))
    cases.finish()


main(test)
