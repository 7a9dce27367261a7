#!/usr/bin/env python3
"""`forebay stat` in text and JSON, over both kinds of socket: the numbers move as what was done
says they must."""

import os
import random
import re
import time

import nbd
from lib import KIB, MIB, PAGE, PATIENCE, Cases, Failure, Server, expect, main, program, run
from lib import wait_for

IMAGE = 64 * MIB
CACHE = 32 * MIB
PAGES = 2048  # read twice: 8 MiB


def clients(status):
    """The number of clients, whether told as a number or as a list."""
    return status["clients"] if isinstance(status["clients"], int) else len(status["clients"])


def moved(before, after, *path):
    for key in path:
        before, after = before[key], after[key]
    return after - before


def shape(status):
    cache = status["cache"]
    for key in (
        "capacity_bytes",
        "resident_pages",
        "dirty_pages",
        "writeback_pages",
        "hits",
        "misses",
        "buffer_lru_hits",
        "buffer_lru_misses",
    ):
        expect(isinstance(cache[key], int) and cache[key] >= 0, f"cache.{key} is {cache[key]!r}")
    expect(0 <= cache["hit_ratio"] <= 1, f"hit_ratio is {cache['hit_ratio']}")
    # The cache may pay for its own bookkeeping from what it is given.
    capacity = cache["capacity_bytes"]
    expect(0.95 * CACHE <= capacity <= CACHE, f"capacity_bytes is {capacity} of {CACHE}")
    expect(
        [export["name"] for export in status["exports"]] == ["disk.img"],
        f"exports: {status['exports']}",
    )
    expect(status["exports"][0]["size"] == IMAGE, f"exports: {status['exports']}")
    for command in ("read", "write", "flush", "trim"):
        for key in ("count", "bytes", "errors", "p50_us", "p99_us"):
            expect(status["commands"][command][key] >= 0, f"commands.{command}.{key}")


def hits_and_misses(server, client):
    offsets = [page * PAGE for page in random.sample(range(IMAGE // PAGE // 2), PAGES)]
    start = server.statistics()
    for offset in offsets:
        client.read(offset, PAGE)
    cold = server.statistics()
    for offset in offsets:
        client.read(offset, PAGE)
    warm = server.statistics()
    for name, before, after in (("cold", start, cold), ("warm", cold, warm)):
        expect(
            moved(before, after, "commands", "read", "count") == PAGES,
            f"{name}: reads counted wrongly",
        )
        expect(
            moved(before, after, "commands", "read", "bytes") == PAGES * PAGE,
            f"{name}: bytes counted wrongly",
        )
        expect(moved(before, after, "commands", "read", "errors") == 0, f"{name}: errors")
    # Each page was read once from the disk, and then from the cache.
    expect(
        moved(start, cold, "cache", "misses") == PAGES,
        f"cold misses: {moved(start, cold, 'cache', 'misses')}",
    )
    expect(
        moved(start, cold, "cache", "hits") == 0,
        f"cold hits: {moved(start, cold, 'cache', 'hits')}",
    )
    expect(
        moved(cold, warm, "cache", "hits") == PAGES,
        f"warm hits: {moved(cold, warm, 'cache', 'hits')}",
    )
    expect(
        moved(cold, warm, "cache", "misses") == 0,
        f"warm misses: {moved(cold, warm, 'cache', 'misses')}",
    )
    resident = moved(start, warm, "cache", "resident_pages")
    expect(resident == PAGES, f"{resident} pages more are resident")
    cache = warm["cache"]
    ratio = cache["hits"] / (cache["hits"] + cache["misses"])
    expect(
        abs(cache["hit_ratio"] - ratio) < 0.002,
        f"hit_ratio {cache['hit_ratio']}, hits and misses say {ratio}",
    )
    read = warm["commands"]["read"]
    expect(0 < read["p50_us"] <= read["p99_us"] < 10_000_000, f"latencies {read}")


def writes_and_flush(server, client):
    before = server.statistics()
    for index in range(100):
        client.write(IMAGE // 2 + index * 64 * KIB, bytes([index]) * PAGE)
    client.zero(0, 64 * KIB)
    client.trim(0, 64 * KIB)
    dirty = server.statistics()
    client.flush()
    after = server.statistics()
    expect(moved(before, after, "commands", "write", "count") == 100, "writes counted wrongly")
    expect(
        moved(before, after, "commands", "write", "bytes") == 100 * PAGE, "bytes counted wrongly"
    )
    expect(moved(before, after, "commands", "flush", "count") == 1, "flushes counted wrongly")
    expect(moved(before, after, "commands", "trim", "count") == 1, "trims counted wrongly")
    waiting = dirty["cache"]["dirty_pages"] + dirty["cache"]["writeback_pages"]
    expect(waiting <= 100 + 16 + 16, f"{waiting} pages dirty or in flight after 100 writes")
    left = after["cache"]["dirty_pages"] + after["cache"]["writeback_pages"]
    expect(left == 0, f"{left} pages dirty or in flight after a flush")


def errors(server, client):
    before = server.statistics()
    reply = client.call(nbd.CMD_READ, IMAGE, PAGE)
    expect(reply.error == nbd.EINVAL, f"error {reply.error}")
    reply = client.call(nbd.CMD_WRITE, IMAGE, PAGE, 0, bytes(PAGE))
    expect(reply.error == nbd.ENOSPC, f"error {reply.error}")
    after = server.statistics()
    for command in ("read", "write"):
        expect(
            moved(before, after, "commands", command, "errors") == 1,
            f"errors of {command} counted wrongly",
        )


def full(server, client):
    """Reading more than the cache holds leaves it full, and not fuller."""
    for offset in range(0, IMAGE, MIB):
        client.read(offset, MIB)
    cache = server.statistics()["cache"]
    held = cache["resident_pages"] * PAGE
    expect(held <= CACHE, f"{held} bytes are resident in a cache of {CACHE}")
    expect(held >= CACHE * 3 // 4, f"only {held} bytes are resident in a cache of {CACHE}")


def tuned(server, client, tcp):
    """`forebay tune` shrinks the full cache to what is asked for, and only at a unix socket."""

    def tune(*arguments):
        return run(program(), "tune", server.stat_address, *arguments, check=False)

    def refused(words, *arguments):
        done = tune(*arguments)
        expect(done.returncode == 1 and len(done.stderr.splitlines()) == 1, f"{done}")
        expect(words in done.stderr, f"{arguments}: {done.stderr}")

    if tcp:
        refused("unix socket", "--cache", "8M")
        return
    refused("--cache-max", "--cache", "1G")
    refused("choose", "--cache", "8M", "--eviction", "colour")
    refused("nothing to change")
    shape(server.statistics())
    done = tune("--cache", "8M", "--eviction", "lru", "--dirty-limit", "2M")
    expect(done.returncode == 0 and not done.stderr, f"{done}")
    for _ in range(600):
        now = server.statistics()
        held = now["cache"]["resident_pages"] * PAGE
        if held <= 8 * MIB and now["pressure"]["committed_bytes"] <= 8 * MIB:
            break
        time.sleep(0.05)
    expect(MIB <= held <= 8 * MIB, f"{held} bytes are resident in a cache of 8 MiB")
    cache = now["cache"]
    expect(cache["capacity_bytes"] == 8 * MIB, f"capacity {cache['capacity_bytes']}")
    expect(cache["eviction"] == "lru", f"policy {cache['eviction']}")
    expect(cache["dirty_limit_pages"] * PAGE == 2 * MIB, f"limit {cache['dirty_limit_pages']}")
    expect(tune("--cache", "32M", "--dirty-limit", "0").returncode == 0, "does not grow again")

    def grown():
        try:
            full(server, client)
        except Failure:
            return False
        return True

    wait_for(grown, PATIENCE, "the cache as full as before")


def counts_clients(server):
    # The connection of an earlier `forebay stat` may be counted for a moment longer; but it ends.
    before = min(clients(server.statistics()) for _ in range(5))
    more = [server.client() for _ in range(3)]
    wait_for(lambda: clients(server.statistics()) == before + 3, PATIENCE, "just 3 clients more")
    for client in more:
        client.disconnect()
    wait_for(lambda: clients(server.statistics()) == before, PATIENCE, "3 clients less")


def lists_clients(server, tcp):
    """The most active 16 by what they did, and the rest summed up."""

    def listed():
        return server.statistics()["client_list"]

    # Who has left goes from the list a little later; who asks must never come into it.
    wait_for(lambda: not listed()["most_active"], PATIENCE, "an empty list but for who asks")
    busy = [server.client() for _ in range(18)]
    for index, client in enumerate(busy):
        for _ in range(index + 1):
            client.read(0, PAGE)
    busy[-1].write(0, bytes(PAGE))
    seen = listed()
    told, others = seen["most_active"], seen["others"]
    expect([one["requests"] for one in told] == [19, *range(17, 2, -1)], f"{seen}")
    expect((others["count"], others["requests"]) == (2, 3), f"{others}")
    first = told[0]
    expect((first["read_bytes"], first["written_bytes"]) == (18 * PAGE, PAGE), f"{first}")
    expect((first["export"], first["door"]) == ("disk.img", "nbd"), f"{first}")
    local = r"127\.0\.0\.1:\d+|\[::1\]:\d+" if tcp else rf"pid {os.getpid()}, uid {os.getuid()}"
    expect(re.fullmatch(local, first["peer"]), f"{first}")
    expect(0 <= first["connected_s"] < 300, f"{first}")
    shown = run(program(), "stat", server.stat_address).stdout
    expect(first["peer"] in shown and "2 others" in shown, shown)
    expect(max(map(len, shown.splitlines())) <= 100, shown)
    for client in busy:
        client.disconnect()
    wait_for(lambda: not listed()["most_active"], PATIENCE, "the list without who has left")


def text(server):
    done = run(program(), "stat", server.stat_address)
    lines = done.stdout.splitlines()
    expect(5 <= len(lines) <= 50, f"not one screen: {len(lines)} lines\n{done.stdout}")
    expect(max(map(len, lines)) <= 100, f"lines too long for a screen:\n{done.stdout}")
    for word in ("hit", "resident", "dirty", "copied", "read", "write", "flush", "disk.img"):
        expect(word in done.stdout.lower(), f"{word!r} is not told:\n{done.stdout}")
    expect(re.search(r"\d+(\.\d+)? ?%", done.stdout), f"no hit ratio in percent:\n{done.stdout}")


def quick(server):
    """A server busy with a client's requests still answers, and a silent connection does not stop
    it."""
    silent = nbd.Client(server.address, greet=False)
    busy = server.client()
    for _ in range(32):
        busy.submit(nbd.CMD_READ, 0, MIB)
    shape(server.statistics())
    busy.sock.close()
    silent.sock.close()


def test(directory):
    image = os.path.join(directory, "disk.img")
    with open(image, "wb") as file:
        file.write(os.urandom(IMAGE))
    cases = Cases()
    for tcp in (False, True):
        way = "TCP" if tcp else "a unix socket"
        # Each miss is one that a client asked for.
        with Server(image, cache=CACHE, tcp=tcp, options=["--readahead", "0"]) as server:
            client = server.client()
            with cases.case(f"the shape over {way}"):
                shape(server.statistics())
            for step in (hits_and_misses, writes_and_flush, errors, full):
                with cases.case(f"{step.__name__} over {way}"):
                    step(server, client)
            with cases.case(f"tuned over {way}"):
                tuned(server, client, tcp)
            client.disconnect()
            with cases.case(f"lists_clients over {way}"):
                lists_clients(server, tcp)
            for step in (counts_clients, text, quick):
                with cases.case(f"{step.__name__} over {way}"):
                    step(server)
    cases.finish()


main(test)
