#!/usr/bin/env python3
# ctest: processors=2
"""nbdcopy of a 512 MiB image of data and holes, in and out, over a unix socket and TCP: byte-
identical, holes kept."""

import json
import os
import random

from lib import KIB, MIB, Server, allocated, expect, main, need, run, say, sparse_file

SIZE = 512 * MIB


def random_image(path):
    """A third data in runs of 4 KiB to 2 MiB, the rest holes; the ends of the image are data."""
    sparse_file(path, SIZE)
    with open(path, "r+b") as file:
        at = 0
        while at < SIZE:
            length = min(random.randrange(1, 512) * 4 * KIB, SIZE - at)
            file.seek(at)
            file.write(os.urandom(length))
            at += length + random.randrange(1, 1024) * 4 * KIB
        file.seek(SIZE - 4 * KIB)
        file.write(os.urandom(4 * KIB))


def same(one, other):
    done = run("cmp", one, other, check=False)
    expect(done.returncode == 0, f"the copies differ: {done.stdout}{done.stderr}")


def marked(uri, context, flag):
    """Bytes that have a flag in a meta context, through nbdinfo."""
    extents = json.loads(run("nbdinfo", f"--map={context}", "--json", uri).stdout)
    expect(sum(extent["length"] for extent in extents) == SIZE, "the map does not cover the image")
    return sum(extent["length"] for extent in extents if extent["type"] & flag)


def holes(uri):
    return marked(uri, "base:allocation", 1)


def resident(uri):
    return marked(uri, "forebay:cache", 1)


def test(directory):
    need("nbdcopy", "nbdinfo", "cmp")
    source = os.path.join(directory, "source.img")
    random_image(source)
    true_holes = SIZE - allocated(source)
    for tcp in (False, True):
        way = "TCP" if tcp else "unix socket"
        inside = sparse_file(os.path.join(directory, "inside.img"), SIZE)
        outside = os.path.join(directory, "outside.img")
        with Server(inside, cache="32M", tcp=tcp) as server:
            run("nbdcopy", "--connections=4", "--flush", source, server.uri())
            # Flushed: the file has it all, while the server still runs.
            same(source, inside)
            run("nbdcopy", "--connections=4", server.uri(), outside)
            same(source, outside)
            kept = holes(server.uri())
            expect(
                kept >= 0.9 * true_holes,
                f"{way}: {kept} of {true_holes} bytes of holes are left in the map",
            )
        same(source, inside)
        for name, path in (("into", inside), ("out of", outside)):
            grown = allocated(path) - allocated(source)
            expect(
                grown < 0.1 * true_holes,
                f"{way}: copying {name} the server filled {grown} bytes of holes",
            )
        # Through a fresh server nothing is cached: the same out again.
        with Server(inside, cache="32M", tcp=tcp) as server:
            kept = holes(server.uri())
            expect(
                kept >= 0.9 * true_holes,
                f"{way}: {kept} of {true_holes} bytes of holes are left after a restart",
            )
            expect(resident(server.uri()) == 0, f"{way}: a fresh server has something cached")
            run("nbdcopy", "--connections=4", "--request-size=32768", server.uri(), outside)
            cached = resident(server.uri())
            expect(16 * MIB < cached <= 32 * MIB, f"{way}: {cached} bytes are resident")
            expect(marked(server.uri(), "forebay:cache", 2) == 0, f"{way}: something is dirty")
        same(source, outside)
        os.unlink(outside)
        say(f"{way}: identical; holes {kept / MIB:.1f} of {true_holes / MIB:.1f} MiB")


main(test)
