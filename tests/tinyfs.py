#!/usr/bin/env python3
"""examples/tinyfs as a command: what was put in comes out, is listed, and can be removed; errors are one
line."""

import os
import random
import subprocess

from lib import MIB, expect, main


def tinyfs(*arguments, data=b"", check=True):
    program = os.path.join(os.environ["FOREBAY_BUILD"], "examples", "tinyfs")
    done = subprocess.run([program, *arguments], input=data, capture_output=True, timeout=30)
    if check:
        expect(done.returncode == 0, f"tinyfs {arguments}: {done.stderr.decode()}")
    return done


def test(directory):
    rng = random.Random(7)
    image = os.path.join(directory, "image")
    with open(image, "wb") as file:
        file.truncate(16 * MIB)
    tinyfs("mkfs", image, "16")
    files = {name: rng.randbytes(size) for name, size in (("empty", 0), ("odd", 12345), ("large", 3 * MIB + 1))}
    for name, data in files.items():
        tinyfs("put", image, name, data=b"old" * 5000)
        tinyfs("put", image, name, data=data)
    for name, data in files.items():
        expect(tinyfs("get", image, name).stdout == data, f"{name} differs")
    listed = tinyfs("ls", image).stdout.decode().split()
    expect(listed == ["0", "empty", str(3 * MIB + 1), "large", "12345", "odd"], f"listed: {listed}")
    tinyfs("rm", image, "large")
    expect(tinyfs("fsck", image).stdout == b"", "fsck complains")
    for arguments, status in (
        ((), 2),
        (("put", image), 2),
        (("mkfs", image, "many"), 1),
        (("get", image, "large"), 1),
        (("rm", image, "large"), 1),
        (("put", image, "a/b"), 1),
        (("ls", os.path.join(directory, "none")), 1),
    ):
        done = tinyfs(*arguments, check=False)
        expect(done.returncode == status, f"{arguments}: status {done.returncode}")
        expect(done.stderr.count(b"\n") == 1, f"{arguments}: {done.stderr}")
    with open(image, "r+b") as file:  # an inode's run of blocks
        file.seek(4096 * 5 + 4)
        file.write(b"\xff")
    done = tinyfs("ls", image, check=False)
    expect(done.returncode == 1 and done.stderr.count(b"\n") == 1, "damage is not noticed")


main(test)
