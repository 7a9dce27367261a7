#!/usr/bin/env python3
# ctest: processors=2
"""--warm: a server that is killed comes back with its cache, and with every acknowledged write,
flushed or not.

Every round the load of kill9.py runs until kill -9 at a random moment. The next server on the same
file must show, through its cache, all that was acknowledged; and from time to time, once it has
flushed, the image must be what it shows. Then: the hit ratio is what it was before the kill, and the
gap is short; a file that is in use or not in memory is refused; what belongs to an image that was
replaced is not written to the other one. FOREBAY_STRESS makes it 100 rounds.
"""

import asyncio
import os
import random
import time

from journal import Journal, Load
from lib import (
    KIB,
    MIB,
    PAGE,
    PATIENCE,
    Failure,
    Server,
    expect,
    main,
    program,
    run,
    say,
    sparse_file,
    wait_for,
)

STRESS = "FOREBAY_STRESS" in os.environ
ROUNDS = 100 if STRESS else 4
IMAGE = 24 * MIB
CACHE = "8M"


def warm_file(name):
    return f"/dev/shm/forebay-test-{os.getpid()}-{name}"


def warm_of(server):
    return server.statistics()["warm"]


def resident(server):
    return server.statistics()["cache"]["resident_pages"]


def judge(journal, server, directory, turn):
    """Compares what the server shows with what was acknowledged."""
    shown = os.path.join(directory, "shown")
    with server.client() as client, open(shown, "wb") as file:
        for at in range(0, IMAGE, MIB):
            file.write(client.read(at, MIB))
        client.disconnect()
    count, wrong = journal.judge_image(shown, journal.acked, everything=turn % 10 == 9)
    expect(
        not wrong,
        f"round {turn}: {len(wrong)} of {count} units are wrong:\n" + "\n".join(wrong[:8]),
    )
    return count


def killed_again_and_again(directory, image, options):
    journal = Journal(IMAGE, 512)
    judged = recovered = dirty = 0
    for turn in range(ROUNDS + 1):
        with_threads = [*options, "--threads", turn % 2 + 1]
        server = Server(image, cache=CACHE, options=with_threads)
        try:
            said = warm_of(server)
            recovered += said["recovered_pages"]
            dirty += said["dirty_pages"]
            judged += judge(journal, server, directory, turn)
            if turn % 5 == 4 or turn == ROUNDS:
                with server.client() as client:
                    client.flush()
                    client.disconnect()
                with open(image, "rb") as a, open(os.path.join(directory, "shown"), "rb") as b:
                    expect(a.read() == b.read(), f"round {turn}: the image is not what was shown")
            if turn == ROUNDS:
                break
            load = Load(journal, connections=3, depth=6, seed=random.getrandbits(32))
            delay = random.uniform(0.02, 0.4)
            asyncio.run(load.run_until(server.address, server.kill, delay))
        except Failure as failure:
            raise Failure(f"round {turn}: {failure}")
        finally:
            server.kill()
        expect(server.status == -9, f"the server ended with {server.status}\n{server.stderr()}")
    expect(recovered > 500 * ROUNDS and dirty > 0, f"recovered {recovered} pages, {dirty} dirty")
    say(f"{ROUNDS} kills: {judged} units judged, {recovered} pages recovered, {dirty} of them dirty")


def hit_ratio(server, client, offsets):
    """Of reads of a page at each of the offsets."""

    def counts():
        cache = server.statistics()["cache"]
        return cache["hits"], cache["misses"]

    hits, misses = counts()
    for offset in offsets:
        client.read(offset, PAGE)
    now_hits, now_misses = counts()
    return (now_hits - hits) / (now_hits - hits + now_misses - misses)


def as_warm_as_before(directory):
    image = sparse_file(os.path.join(directory, "warm.img"), IMAGE)
    with open(image, "r+b") as file:
        file.write(os.urandom(IMAGE))
    options = ["--warm", warm_file("ratio"), "--readahead", "0"]
    # Some pages are read more often than others. The same reads each time: their ratio differs by
    # what the cache holds and not by what chance asked for.
    rng = random.Random(7)
    offsets = [int(rng.random() ** 4 * (IMAGE // PAGE)) * PAGE for _ in range(3000)]
    server = Server(image, cache=CACHE, options=options)
    with server.client() as client:
        cold = hit_ratio(server, client, offsets)
        before = hit_ratio(server, client, offsets)
        had = resident(server)
        client.disconnect()
    server.kill()
    began = time.monotonic()
    with Server(image, cache=CACHE, options=options) as server:
        gap = time.monotonic() - began
        with server.client() as client:
            after = hit_ratio(server, client, offsets)
            client.disconnect()
        found = warm_of(server)["recovered_pages"]
        text = run(program(), "stat", server.stat_address).stdout
        expect(f"warm: recovered {found} pages, 0 dirty" in text, text)
    said = f"hit ratio {cold:.3f} cold, {before:.3f} before the kill, {after:.3f} after"
    # A page or two may have been on its way when the server was killed; a cache that came back cold
    # would cost all the difference.
    expect(before - cold > 0.3, f"{said}: the reads do not show whether the cache is warm")
    expect(before - after < (before - cold) / 4, said)
    expect(found > had * 0.94, f"{found} of {had} pages recovered")
    say(f"{said}; served again after {gap:.2f} s")
    gives_up_what_is_over_a_limit(image, options)


def gives_up_what_is_over_a_limit(image, options):
    """Of a cache that comes back with more pages than the export may have now, though nobody asks
    for anything."""
    most = 4 * MIB // PAGE
    server = Server(image, cache=CACHE, options=options)
    had = resident(server)
    server.kill()
    expect(had > most, f"{had} pages, which are too few to show it")
    with Server(image, cache=CACHE, options=[*options, "--limit", "memory=4M"]) as server:
        found = warm_of(server)["recovered_pages"]
        expect(found > most, f"{found} of {had} pages recovered")
        wait_for(lambda: resident(server) <= most, PATIENCE, f"at most {most} pages")
        expect(resident(server) > most * 0.9, "more have gone than had to")


def refused(image, *options):
    done = run(program(), "serve", image, "--cache", CACHE, *options, check=False)
    lines = done.stderr.strip().splitlines()
    expect(done.returncode != 0 and len(lines) == 1, f"{options}: {done.returncode} {done.stderr}")
    return lines[0]


def what_does_not_fit(directory, image, options):
    with Server(image, cache=CACHE, options=options) as server:
        other = sparse_file(os.path.join(directory, "other.img"), IMAGE)
        if STRESS:  # it waits for the lock for a while
            line = refused(other, *options)
            expect("in use by another server" in line, line)
        with server.client() as client:
            client.write(0, b"w" * (64 * KIB))
            server.kill()
    os.rename(other, image)
    socket = os.path.join(directory, "refused.sock")
    line = refused(image, *options, "--socket", socket)
    expect("not written back yet, and that is another file now" in line, line)
    line = refused(image, "--warm", os.path.join(directory, "disk.warm"), "--socket", socket)
    expect("must be a file in memory" in line, line)
    with Server(image, cache=CACHE, options=[*options, "--warm-discard"]) as server:
        expect(warm_of(server)["recovered_pages"] == 0, "not discarded")


def test(directory):
    image = sparse_file(os.path.join(directory, "disk.img"), IMAGE)
    options = ["--warm", warm_file("kill")]
    try:
        killed_again_and_again(directory, image, options)
        as_warm_as_before(directory)
        what_does_not_fit(directory, image, options)
    finally:
        for name in ("kill", "ratio"):
            if os.path.exists(warm_file(name)):
                os.remove(warm_file(name))


main(test)
