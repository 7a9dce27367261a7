#!/usr/bin/env python3
# ctest: processors=2
"""64 clients on an image 100 times the cache: resident size stays under cache + 64 MiB, and nobody
holds up the others.

First all 64 clients read and write 4 KiB to 1 MiB at random, each verifying what it reads in a
region of its own. Then half of them turn silent at all the wrong places while the other half goes
on and must finish in bounded time.
"""

import asyncio
import os
import random
import struct

import nbd
from lib import KIB, MIB, PAGE, PATIENCE, Failure, Server, expect, main, say, sparse_file, wait_for

CACHE = 16 * MIB
IMAGE = 100 * CACHE
CLIENTS = 64
REGION = IMAGE // CLIENTS // PAGE * PAGE
ALLOWANCE = 64 * MIB
POOL = os.urandom(3 * MIB)


def content(place):
    return bytes(PAGE) if place is None else POOL[place : place + PAGE]


class Region:
    """One client's part of the image, and what each of its pages holds: a place in POOL, or None
    for zeros."""

    def __init__(self, number):
        self.start = number * REGION
        self.pages = [None] * (REGION // PAGE)

    def pick(self):
        length = min(MIB, PAGE << random.randrange(9))
        first = random.randrange(len(self.pages) - length // PAGE + 1)
        return first, length // PAGE

    async def step(self, client):
        first, count = self.pick()
        offset, length = self.start + first * PAGE, count * PAGE
        if random.random() < 0.5:
            place = random.randrange(len(POOL) - length)
            await client.write(offset, POOL[place : place + length])
            for index in range(count):
                self.pages[first + index] = place + index * PAGE
        else:
            data = await client.read(offset, length)
            for index in range(count):
                expected = content(self.pages[first + index])
                expect(
                    data[index * PAGE : (index + 1) * PAGE] == expected,
                    f"wrong data at {offset + index * PAGE}",
                )
        return length


async def work(address, region, moved):
    """Steps until `moved` bytes have gone through."""
    client = await nbd.AsyncClient.open(address)
    while moved > 0:
        moved -= await region.step(client)
    await client.close()


async def flood(server, regions, moved, seconds):
    workers = [asyncio.ensure_future(work(server.address, region, moved)) for region in regions]
    try:
        await asyncio.wait_for(asyncio.gather(*workers), seconds)
    except asyncio.TimeoutError:
        done = sum(1 for worker in workers if worker.done())
        raise Failure(
            f"after {seconds} s only {done} of {len(workers)} clients were done"
        ) from None
    finally:
        for worker in workers:
            worker.cancel()


# The silent half. Each takes a connection to a place where a careless server would wait for it.


def says_nothing(address, _):
    return nbd.Client(address, greet=False)


def stops_after_flags(address, _):
    return nbd.Client(address)


def stops_within_an_option(address, _):
    client = nbd.Client(address)
    client.send(struct.pack(">QI", nbd.IHAVEOPT, nbd.OPT_GO))
    return client


def stops_within_option_data(address, _):
    client = nbd.Client(address)
    client.send(struct.pack(">QII", nbd.IHAVEOPT, nbd.OPT_GO, 4000) + b"x" * 10)
    return client


def stops_within_a_header(address, _):
    client = nbd.Client(address).start()
    client.send(nbd.request(nbd.CMD_READ, 0, PAGE)[:13])
    return client


def stops_within_a_payload(address, region):
    client = nbd.Client(address).start()
    client.send(nbd.request(nbd.CMD_WRITE, region.start, MIB) + bytes(MIB // 2))
    return client


def stops_within_a_huge_payload(address, region):
    client = nbd.Client(address).start()
    client.send(nbd.request(nbd.CMD_WRITE, region.start, 16 * MIB) + bytes(MIB))
    return client


def never_reads_replies(address, region):
    """Asks for 16 times 1 MiB, and lets the answers lie."""
    client = nbd.Client(address).start()
    for index in range(16):
        client.send(nbd.request(nbd.CMD_READ, region.start + index * MIB, MIB, cookie=index))
    return client


SILENT = [
    says_nothing,
    stops_after_flags,
    stops_within_an_option,
    stops_within_option_data,
    stops_within_a_header,
    stops_within_a_payload,
    stops_within_a_huge_payload,
    never_reads_replies,
]


def late_reader(client, region):
    """Takes the answers that never_reads_replies let lie, and verifies them."""
    for index in range(16):
        client.requests[index] = (nbd.CMD_READ, region.start + index * MIB, MIB, 0)
    for _ in range(16):
        reply = client.reply().check()
        first = reply.cookie * MIB // PAGE
        for page in range(MIB // PAGE):
            data = reply.data[page * PAGE : (page + 1) * PAGE]
            expect(data == content(region.pages[first + page]), "a late reader got wrong data")


def check_memory(server, when):
    used = server.memory()
    limit = CACHE + ALLOWANCE
    say(f"{when}: at most {used / MIB:.1f} MiB resident, {limit / MIB:.0f} MiB allowed")
    expect(used <= limit, f"{when}: {used / MIB:.1f} MiB resident, {limit / MIB:.0f} MiB allowed")


def test(directory):
    image = sparse_file(os.path.join(directory, "disk.img"), IMAGE)
    regions = [Region(number) for number in range(CLIENTS)]
    with Server(image, cache=CACHE) as server:
        asyncio.run(flood(server, regions, 16 * MIB, 120))
        check_memory(server, "64 clients at work")

        half = CLIENTS // 2
        silent = [
            SILENT[number % len(SILENT)](server.address, regions[half + number])
            for number in range(half)
        ]
        asyncio.run(flood(server, regions[:half], 8 * MIB, 50))  # a late reader has 60 s
        check_memory(server, "32 silent clients")

        # What the ones that never read have asked for is theirs once they listen.
        for number in range(7, half, 8):
            late_reader(silent[number], regions[half + number])
        for client in silent:
            client.sock.close()

        # Connections come and go: nothing may be left behind of them.
        for _ in range(500):
            says_nothing(server.address, None).sock.close()
        for number in range(100):
            stops_within_a_payload(server.address, regions[half]).sock.close()
        asyncio.run(flood(server, regions[:half], MIB, 120))
        check_memory(server, "600 connections later")
        few = lambda: len(os.listdir(f"/proc/{server.pid}/fd")) < 64
        wait_for(few, PATIENCE, "less than 64 descriptors, with no client left,")
    with open(image, "rb") as file:
        # The regions of the silent half may hold parts of writes that were cut off.
        for region in regions[:half]:
            file.seek(region.start)
            data = file.read(REGION)
            for page, place in enumerate(region.pages):
                right = data[page * PAGE : (page + 1) * PAGE] == content(place)
                expect(right, f"after the end the image is wrong at {region.start + page * PAGE}")
    say(f"{CLIENTS} clients, image {IMAGE // MIB} MiB, requests {4 * KIB} to {MIB} bytes")


main(test)
