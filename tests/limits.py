#!/usr/bin/env python3
"""Limits of exports: one that has one keeps to it, whoever asks and whatever is asked of the other;
they are changed while clients wait, and are seen."""

import contextlib
import os
import time

import nbd
from lib import MIB, PAGE, PATIENCE, Cases, Server, expect, main, program, run, sparse_file, wait_for


def exports(server):
    """By name, what `forebay stat --json` says."""
    return {e["name"]: e for e in server.statistics()["exports"]}


def limits_of(server):
    return {name: e["limits"] for name, e in exports(server).items()}


def ask(client, count):
    return [client.submit(nbd.CMD_READ, i * PAGE, PAGE) for i in range(count)]


def answered(client, count):
    for _ in range(count):
        client.reply().check()


def keeps_its_rate(server):
    """200 a second and 0.1 s at once: of 200, by two clients, the last begins 0.9 s after the first at the earliest."""
    with server.client("a.img") as one, server.client("a.img") as two:
        start = time.monotonic()
        ask(one, 100)
        ask(two, 100)
        answered(one, 100)
        answered(two, 100)
        took = time.monotonic() - start
    expect(took >= (200 - 21) / 200, f"200 requests in {took:.3f} s")
    seen = limits_of(server)
    expect(seen["a.img"]["requests_per_s"] == 200, f"{seen}")
    expect(seen["a.img"]["throttled"] > 0 and seen["a.img"]["waited_s"] > 0, f"{seen}")
    expect(seen["b.img"]["throttled"] == 0, f"{seen}")


def tune(server, *limits, fails=False):
    options = [word for limit in limits for word in ("--limit", limit)]
    done = run(program(), "tune", server.stat_address, *options, check=False)
    expect((done.returncode != 0) == fails, f"{limits}: {done.returncode} {done.stderr}")
    return done.stderr


def is_changed_while_some_wait(server):
    tune(server, "a.img:iops=1,burst=0")
    with server.client("a.img") as slow, server.client("b.img") as other:
        ask(slow, 20)
        answered(slow, 1)
        for i in range(200):
            other.read(i * PAGE, PAGE)
        other.flush()
        seen = limits_of(server)["a.img"]
        expect(seen["throttled"] > 0, f"{seen}")
        wait_for(lambda: limits_of(server)["a.img"]["waiting"] == 1, PATIENCE, "one that waits")
        said = run(program(), "stat", server.stat_address).stdout
        expect("1 requests/s" in said, said)
        said = tune(server, "a.img:iops=0", "nobody:iops=0", fails=True)
        expect("nobody" in said, said)
        expect(limits_of(server)["a.img"]["requests_per_s"] == 1, "half of the changes were made")
        tune(server, "a.img:iops=0")
        answered(slow, 19)


def keeps_to_its_memory(directory):
    """Whatever is read and written of an export with a limit, the pages of the other stay, though
    the cache is too small for both."""
    images = [sparse_file(os.path.join(directory, name), 16 * MIB) for name in ("c.img", "d.img")]
    limited = ["--limit", "c.img:memory=4M"]
    with Server(*images, cache="24M", options=limited) as server:
        with server.client("c.img") as client, server.client("d.img") as other:
            for at in range(0, 16 * MIB, MIB):
                other.read(at, MIB)
            others = exports(server)["d.img"]["resident_pages"]
            expect(others == 16 * MIB // PAGE, f"{others} pages of the other one")
            data = [bytes([1 + at // MIB]) * MIB for at in range(0, 16 * MIB, MIB)]
            for at in range(0, 16 * MIB, MIB):
                client.write(at, data[at // MIB])
                own = exports(server)["c.img"]["resident_pages"]
                expect(own <= 4 * MIB // PAGE, f"{own} pages after writes to {at}")
            for at in range(0, 16 * MIB, MIB):
                expect(client.read(at, MIB) == data[at // MIB], f"not what was written at {at}")
            client.flush()
            seen = exports(server)
            own = seen["c.img"]["resident_pages"]
            expect(3 * MIB // PAGE < own <= 4 * MIB // PAGE, f"{own} pages after reads")
            expect(seen["c.img"]["limits"]["memory_bytes"] == 4 * MIB, f"{seen}")
            expect(seen["d.img"]["resident_pages"] == others, "pages of the other one have gone")
            said = run(program(), "stat", server.stat_address).stdout
            expect("of the 4 MiB that it may have" in said, said)
            tune(server, "c.img:memory=0")
            for at in range(0, 16 * MIB, MIB):
                client.read(at, MIB)
            seen = exports(server)
            own = seen["c.img"]["resident_pages"]
            expect(own > 4 * MIB // PAGE, f"{own} pages: it is limited still")
            expect(seen["d.img"]["resident_pages"] < others, "what of the other one has it taken?")
            tune(server, "memory=1M", fails=True)
            tune(server, "memory=4M")

            def all_are_within():
                pages = [e["resident_pages"] for e in exports(server).values()]
                return max(pages) <= 4 * MIB // PAGE

            # Though nobody asks for anything.
            wait_for(all_are_within, PATIENCE, "at most 4 MiB of each")


def replies_that_nobody_reads_leave_it_room(directory):
    """Clients that ask for much and take nothing do not hold all the memory that others need."""
    image = os.path.join(directory, "e.img")
    with open(image, "wb") as f:
        f.write(b"data" * (64 * MIB // 4))
    with Server(image, cache="64M", options=["--limit", "memory=4M"]) as server:
        with contextlib.ExitStack() as open_clients:
            for k in range(4):
                lazy = open_clients.enter_context(server.client("e.img"))
                for i in range(12):
                    lazy.submit(nbd.CMD_READ, (12 * k + i) * MIB, MIB)
            wait_for(lambda: is_stuck(server), PATIENCE, "replies that nobody takes")
            with server.client("e.img") as other:
                for at in range(48 * MIB, 64 * MIB, PAGE * 16):
                    other.read(at, PAGE)


def is_stuck(server):
    """Whether reads are under way and none gets on."""
    first = server.statistics()
    time.sleep(0.2)
    second = server.statistics()
    return second["requests_in_flight"] > 0 and first["cache"]["hits"] == second["cache"]["hits"]


def test(directory):
    cases = Cases()
    images = [sparse_file(os.path.join(directory, name), 4 * MIB) for name in ("a.img", "b.img")]
    for limit in ("iops=-1", "a.img:", "bytes=1", "nobody:iops=5", "memory=3M"):
        with cases.case(f"refused: --limit {limit}"):
            done = run(
                program(), "serve", *images, "--cache", "8M", "--limit", limit, check=False
            )
            expect(done.returncode != 0 and done.stderr.count("\n") == 1, done.stderr)
    options = ["--limit", "a.img:iops=200,burst=0.1", "--limit", "b.img:bytes=100G"]
    with Server(*images, cache="16M", options=options) as server:
        with cases.case("the rate of an export"):
            keeps_its_rate(server)
        with cases.case("changed while clients wait"):
            is_changed_while_some_wait(server)
        with cases.case("the end while a client waits"):
            tune(server, "iops=1,burst=0")
            with server.client("a.img") as waiting:
                ask(waiting, 100)  # which take longer than it may
                answered(waiting, 1)
                expect(server.stop() == 0, server.stderr())
    with cases.case("the memory of an export"):
        keeps_to_its_memory(directory)
    with cases.case("clients that take no replies"):
        replies_that_nobody_reads_leave_it_room(directory)
    cases.finish()


main(test)
