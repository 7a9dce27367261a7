#!/usr/bin/env python3
"""`forebay top`: its figures are those of the time between two looks, and on a terminal it goes on
until it is interrupted."""

import json
import os
import threading

from lib import MIB, PAGE, PATIENCE, Cases, Server, expect, main, on_a_terminal, program, run
from lib import sparse_file, wait_for

IMAGE = 32 * MIB


def top(server, *arguments):
    done = run(program(), "top", server.stat_address, *arguments)
    expect(not done.stderr, f"something on stderr: {done.stderr}")
    return done.stdout


class Load:
    """Reads pages, and writes every fourth, for as long as the context lasts."""

    def __init__(self, server):
        self.client = server.client()
        self.over = threading.Event()
        self.rounds = 0
        self.thread = threading.Thread(target=self.work)

    def work(self):
        page = 0
        while not self.over.is_set():
            page = (page + 1) % 1000
            self.rounds += page == 0
            self.client.read(page * PAGE, PAGE)
            if page % 4 == 0:
                self.client.write(page * PAGE, bytes(PAGE))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()
        self.client.disconnect()


def idle(server):
    seen = json.loads(top(server, "--json"))
    expect(0.3 < seen["seconds"] < 300, f"it looked for {seen['seconds']} s")
    expect(seen["cache"]["hit_ratio"] is None, str(seen["cache"]))
    read = seen["exports"][0]["commands"]["read"]
    expect(read["per_s"] == 0 and read["p99_us"] == 0, str(read))
    expect("hit ratio          -" in top(server), "no ratio of nothing")


def busy(server):
    def enough():
        nonlocal seen
        seen = json.loads(top(server, "--json"))
        return seen["exports"][0]["commands"]["read"]["per_s"] * seen["seconds"] >= 200

    seen = None
    with Load(server) as load:
        # From the second round on there are hits, and in 200 reads the share of the writes is sure.
        wait_for(lambda: load.rounds > 0, PATIENCE, "the first round")
        wait_for(enough, PATIENCE, "a time between two looks with 200 reads")
        cache, (export,) = seen["cache"], seen["exports"]
        read, write = export["commands"]["read"], export["commands"]["write"]
        expect(read["per_s"] > 0, str(read))
        expect(0.15 < write["per_s"] / read["per_s"] < 0.35, f"{read}, {write}")
        expect(abs(read["bytes_per_s"] - read["per_s"] * PAGE) < 1 + 2 * PAGE / seen["seconds"], str(read))
        expect(0 < read["p50_us"] <= read["p99_us"] <= read["p999_us"], str(read))
        expect(0 < cache["hit_ratio"] <= 1 and cache["lookups_per_s"] > 0, str(cache))
        ratios = [size["miss_ratio"] for size in cache["would_miss"]]
        expect(len(ratios) == 4 and ratios == sorted(ratios, reverse=True), str(ratios))
        (client,) = seen["client_list"]
        expect(client["export"] == "disk.img" and client["per_s"] > 0, str(client))
        expect(client["read_bytes_per_s"] > client["written_bytes_per_s"] > 0, str(client))
        text = top(server, "--once")
    lines = text.splitlines()
    expect(max(map(len, lines)) <= 100 and len(lines) <= 40, text)
    for words in ("cache  [", "would miss", "disk.img", "read", "write", "POOL", "CLIENT", "P99.9"):
        expect(words in text, f"{words!r} is not in\n{text}")


def refreshes(server):
    on_a_terminal(program(), "top", server.stat_address, "--interval", "0.1", pictures=3)


def bad_input(server):
    done = run(program(), "top", server.stat_address, "--interval", "0", check=False)
    expect(done.returncode == 1 and "interval" in done.stderr, done.stderr)
    done = run(program(), "top", "/nowhere/at.all", check=False)
    expect(done.returncode == 1 and "/nowhere/at.all" in done.stderr, done.stderr)


def test(directory):
    image = sparse_file(os.path.join(directory, "disk.img"), IMAGE)
    cases = Cases()
    with Server(image, cache=16 * MIB) as server:
        for step in (idle, busy, refreshes, bad_input):
            with cases.case(step.__name__):
                step(server)
    cases.finish()


main(test)
