#!/usr/bin/env python3
# ctest: processors=2
"""kill -9 at 50 random moments under load: what was flushed or written with FUA is there, and
nothing foreign is.

kill -9 spares the kernel's page cache and the disk, so what it takes away is exactly what the
server alone held: its dirty pages. Every round the load runs over three connections, flushes on one
cover acknowledged writes on all; then the image file itself is compared with the journal of
promises. In every fifth round the server writes through: there every acknowledged change must have
survived. The socket file that the dead server left is taken over by the next one.
"""

import asyncio
import os
import random

from journal import Journal, Load
from lib import MIB, Failure, Server, expect, main, say, sparse_file

ROUNDS = 50
IMAGE = 32 * MIB
CACHE = "8M"


def load_and_kill(load, server, delay):
    """Kills it at a random moment, but not before a random number of requests: where it is slow, the
    rounds together would show too little."""
    least = random.randrange(250)
    enough = lambda: sum(load.done.values()) >= least
    asyncio.run(load.run_until(server.address, server.kill, delay, enough))


def test(directory):
    image = sparse_file(os.path.join(directory, "disk.img"), IMAGE)
    with Server(image, cache=CACHE) as server, server.client() as client:
        unit = max(512, client.block_sizes[0] if client.block_sizes else 512)
        client.disconnect()
    journal = Journal(IMAGE, unit)
    judged = 0
    total = {}
    for turn in range(ROUNDS):
        through = turn % 5 == 4
        mode = "--write-through" if through else "--write-back"
        server = Server(image, cache=CACHE, options=[mode, "--threads", turn % 2 + 1])
        load = Load(journal, connections=3, depth=6, seed=random.getrandbits(32))
        try:
            load_and_kill(load, server, random.uniform(0.05, 0.8))
        except Failure as failure:
            raise Failure(f"round {turn}: {failure}")
        finally:
            server.kill()
        expect(
            server.status == -9,
            f"round {turn}: the server ended on its own with {server.status}\n{server.stderr()}",
        )
        bounds = journal.acked if through else journal.durable
        count, wrong = journal.judge_image(image, bounds, everything=turn % 10 == 9)
        judged += count
        expect(
            not wrong,
            f"round {turn} ({mode}): {len(wrong)} of {count} units are wrong:\n"
            + "\n".join(wrong[:8]),
        )
        for name, number in load.done.items():
            total[name] = total.get(name, 0) + number
    say(f"{ROUNDS} kills; operations {total}; {judged} units judged")
    enough = all(total[name] >= ROUNDS for name in total)
    expect(enough, f"the load was too thin to show anything: {total}")


main(test)
