#!/usr/bin/env python3
"""`forebay slabs`: the table and its JSON tell what a server's caches hold, in the order asked for;
on a terminal it goes on until it is interrupted."""

import json
import os

from lib import MIB, PAGE, Cases, Server, expect, main, on_a_terminal, program, run

IMAGE = 64 * MIB


def slabs(server, *arguments):
    done = run(program(), "slabs", server.stat_address, *arguments)
    expect(not done.stderr, f"something on stderr: {done.stderr}")
    return done.stdout


def caches(server, *arguments):
    return json.loads(slabs(server, "--json", *arguments))["caches"]


def by_name(server):
    return {cache["name"]: cache for cache in caches(server)}


def counts(server, client):
    """One page out of every MiB: four of them need an index node."""
    before = by_name(server)["page_index_node"]
    for offset in range(0, IMAGE, MIB):
        client.read(offset, PAGE)
    after = by_name(server)["page_index_node"]
    grown = after["active"] - before["active"]
    expect(IMAGE // MIB // 4 <= grown <= IMAGE // MIB + 16, f"{grown} nodes more")
    for cache in caches(server):
        name = cache["name"]
        expect(cache["active"] <= cache["total"], f"{name}: more active than there are")
        expect(cache["active"] == cache["allocations"] - cache["frees"], f"{name}: {cache}")
        expect(cache["high_watermark"] >= cache["active"], f"{name}: {cache}")
        expect(cache["cpu_hits"] <= cache["allocations"], f"{name}: {cache}")
        expect(cache["failures"] == 0, f"{name}: {cache}")


def order(server):
    sizes = [cache["bytes"] for cache in caches(server)]
    expect(sizes == sorted(sizes, reverse=True), f"not the largest first: {sizes}")
    for key, member in (("active", "active"), ("object", "object_bytes"), ("high", "high_watermark")):
        values = [cache[member] for cache in caches(server, "--sort", key)]
        expect(values == sorted(values, reverse=True), f"--sort {key}: {values}")
    names = [cache["name"] for cache in caches(server, "--sort", "name")]
    expect(names == sorted(names) and len(set(names)) == len(names), f"--sort name: {names}")


def table(server):
    lines = slabs(server, "--sort", "name").splitlines()
    names = [line.split()[-1] for line in lines[4:]]
    expect(names == [c["name"] for c in caches(server, "--sort", "name")], "\n".join(lines))
    expect(lines[3].split()[-1] == "NAME", lines[3])
    expect(max(map(len, lines)) <= 140, "\n".join(lines))


def refreshes(server):
    """On a terminal the table comes again until SIGINT."""
    command = (program(), "slabs", server.stat_address, "--interval", "0.1")
    seen = on_a_terminal(*command, pictures=3)
    expect(seen.count(b"NAME") >= 2, f"not refreshed: {seen!r}")


def bad_input(server):
    for arguments, words in (
        (("--sort", "colour"), ("colour", "name")),
        (("--interval", "0"), ("interval",)),
    ):
        done = run(program(), "slabs", server.stat_address, *arguments, check=False)
        expect(done.returncode == 1, f"{arguments}: status {done.returncode}")
        expect(len(done.stderr.splitlines()) == 1, f"{arguments}: {done.stderr}")
        for word in words:
            expect(word in done.stderr, f"{arguments}: {done.stderr}")
    done = run(program(), "slabs", "/nowhere/at.all", check=False)
    expect(done.returncode == 1 and "/nowhere/at.all" in done.stderr, done.stderr)


def test(directory):
    image = os.path.join(directory, "disk.img")
    with open(image, "wb") as file:
        file.write(os.urandom(IMAGE))
    cases = Cases()
    with Server(image, cache=32 * MIB) as server:
        client = server.client()
        with cases.case("counts"):
            counts(server, client)
        for step in (order, table, refreshes, bad_input):
            with cases.case(step.__name__):
                step(server)
        client.disconnect()
    cases.finish()


main(test)
