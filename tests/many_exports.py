#!/usr/bin/env python3
"""Three images in one server and one cache: listed, told apart by name, and never mixed up."""

import asyncio
import json
import os
import random
import signal

import nbd
from lib import KIB, MIB, PAGE, Cases, Server, expect, main, need, run, sparse_file

IMAGES = {"first.img": 24 * MIB, "second.raw": 40 * MIB, "third": 9 * MIB + 512 * KIB}
DESCRIPTIONS = ["the first: a disk", ""]
POOL = os.urandom(4 * MIB)


async def scribble(address, name, size, steps):
    """Random writes and verifying reads on one export; returns what it must hold."""
    client = await nbd.AsyncClient.open(address, name)
    model = bytearray(size)
    chosen = random.Random(name)
    for _ in range(steps):
        length = chosen.randrange(1, 64) * PAGE
        offset = chosen.randrange((size - length) // PAGE + 1) * PAGE
        if chosen.random() < 0.5:
            place = chosen.randrange(len(POOL) - length)
            await client.write(offset, POOL[place : place + length])
            model[offset : offset + length] = POOL[place : place + length]
        else:
            data = await client.read(offset, length)
            expect(data == model[offset : offset + length], f"{name}: wrong data at {offset}")
    await client.close()
    return model


async def all_at_once(address):
    names = list(IMAGES)
    models = await asyncio.gather(*(scribble(address, name, IMAGES[name], 500) for name in names))
    return dict(zip(names, models))


def listed(server):
    with nbd.Client(server.address) as client:
        expect(client.list() == list(IMAGES), f"LIST says {client.list()}")
        for name, size in IMAGES.items():
            expect(
                client.info(nbd.OPT_INFO, name) == nbd.REP_ACK and client.size == size,
                f"INFO {name}",
            )
        expect(client.info(nbd.OPT_INFO, "") == nbd.REP_ACK, "no default export")
        expect(client.size == IMAGES["first.img"], "the default export is not the first image")
    exports = json.loads(run("nbdinfo", "--list", "--json", server.uri()).stdout)["exports"]
    found = {export["export-name"]: export["export-size"] for export in exports}
    expect(found == IMAGES, f"nbdinfo lists {found}")
    told = [export.get("description", "") for export in exports]
    expect(told[:2] == DESCRIPTIONS, f"nbdinfo says they are {told}")
    expect(told[2].startswith("9.5 MiB of ") and told[2].endswith("/third"), f"of the third: {told[2]}")
    for name in IMAGES:
        size = run("nbdinfo", "--size", server.uri(name)).stdout.strip()
        expect(size == str(IMAGES[name]), f"nbdinfo says {name} has {size} bytes")


def default_is_first(server):
    with server.client("") as default, server.client("first.img") as first, server.client(
        "third"
    ) as third:
        default.write(0, b"default!" * 512)
        expect(
            first.read(0, PAGE) == b"default!" * 512,
            "the default export and the first image differ",
        )
        expect(third.read(0, PAGE) == bytes(PAGE), "a write has come up in another image")
        first.zero(0, PAGE)
        first.flush()
        for client in (default, first, third):
            client.disconnect()


def named(directory):
    """--name is the export's name in place of the file's."""
    image = sparse_file(os.path.join(directory, "named.img"), MIB)
    for name in ("x", "a name with spaces, \u00e9 and /"):
        with Server(image, cache="16M", options=["--name", name]) as server:
            with nbd.Client(server.address) as client:
                expect(client.list() == [name], f"LIST says {client.list()}")
                final = client.info(nbd.OPT_INFO, "named.img")
                expect(
                    final == nbd.REP_ERR_UNKNOWN, f"the file's name is still an export: {final:#x}"
                )
                expect(client.info(nbd.OPT_INFO, name) == nbd.REP_ACK, "INFO of the name")
                client.go("")


def test(directory):
    need("nbdinfo")
    cases = Cases()
    paths = {
        name: sparse_file(os.path.join(directory, name), size) for name, size in IMAGES.items()
    }
    described = [word for text in DESCRIPTIONS for word in ("--description", text)]
    with Server(*paths.values(), cache="16M", options=described) as server:
        with cases.case("LIST and INFO"):
            listed(server)
        with cases.case("the default export is the first image"):
            default_is_first(server)
        with cases.case("all three at once, through a cache a quarter their size"):
            models = asyncio.run(all_at_once(server.address))
            status = server.stop(signal.SIGTERM)
            expect(status == 0, f"exit status {status}")
            for name, path in paths.items():
                with open(path, "rb") as file:
                    expect(
                        file.read() == models[name], f"{name} does not hold what was written to it"
                    )
    with cases.case("--name"):
        named(directory)
    cases.finish()


main(test)
