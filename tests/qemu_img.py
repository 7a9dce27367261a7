#!/usr/bin/env python3
"""qemu-img convert and compare, and qemu-io's writes, zeroes, discards and unaligned requests,
through the server."""

import json
import os

from lib import MIB, Server, expect, main, need, run, say, sparse_file

SIZE = 256 * MIB


def test(directory):
    need("qemu-img", "qemu-io")
    source = sparse_file(os.path.join(directory, "source.img"), SIZE)
    with open(source, "r+b") as file:
        for at in range(0, SIZE, 16 * MIB):
            file.seek(at)
            file.write(os.urandom(5 * MIB + 4096))
    disk = sparse_file(os.path.join(directory, "disk.img"), SIZE)
    qcow2 = os.path.join(directory, "out.qcow2")
    with Server(disk, cache="32M") as server:
        uri = server.uri()
        run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, uri)
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, uri)
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, qcow2)
        run("qemu-img", "check", qcow2)
        run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", qcow2, source)
        extents = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", uri).stdout)
        zero = sum(extent["length"] for extent in extents if extent["zero"])
        expect(zero > SIZE // 2, f"qemu sees only {zero} bytes of zeros")

        # Requests at odd places; qemu-io itself verifies what it reads with -P.
        commands = [
            "write -P 0xab 1M 64k",
            "write -P 0xcd 1052672 512",
            "write -z 2M 1M",
            "write -z -u 4M 1M",
            "write -f -P 0xee 6M 4k",
            "discard 8M 1M",
            "read -P 0xab 1M 4k",
            "read -P 0xcd 1052672 512",
            "read -P 0 2M 1M",
            "read -P 0 4M 1M",
            "read -P 0xee 6M 4k",
            "flush",
            "aio_write -P 0x11 10M 1M",
            "aio_write -P 0x12 11M 1M",
            "aio_flush",
            "read -P 0x11 10M 1M",
            "read -P 0x12 11M 1M",
        ]
        arguments = [part for command in commands for part in ("-c", command)]
        done = run("qemu-io", "-f", "raw", *arguments, uri)
        expect("verification failed" not in done.stdout + done.stderr, done.stdout + done.stderr)
        # What differs from the source now must be told as different.
        done = run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, uri, check=False)
        expect(
            done.returncode == 1,
            f"compare missed the changes: {done.returncode} {done.stdout}{done.stderr}",
        )
        copy = os.path.join(directory, "copy.img")
        run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, copy)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", copy, disk)
    say("qemu-img and qemu-io agree with the image")


main(test)
