#!/usr/bin/env python3
# ctest: processors=2
"""A memory limit smaller than the cache: the server starts, shrinks when the limit is halved under
load, and grows again.

The limit is that of a memory control group of the test's own (cgroups v1, or v2 if that has the
memory controller), which the server is started in. It is lowered as an administrator would do it:
on v1 the kernel refuses a limit below what is in use, so it is asked again until it takes it; on v2
memory.high comes first, because lowering memory.max alone ends processes at once.
"""

import asyncio
import contextlib
import os
import random
import time

import nbd
from lib import MIB, PAGE, PATIENCE, Failure, Server, Skip, expect, main, need_root, program, run, say
from lib import sparse_file

CACHE = 256 * MIB
IMAGE = 1024 * MIB
CLIENTS = 8


def read(path):
    with open(path) as file:
        return file.read()


class Group:
    """A control group below the one of this process, that is removed in any case."""

    def __init__(self):
        self.v1 = True
        for line in read("/proc/self/cgroup").splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                self.parent = self._mounted("cgroup", "memory", path)
                break
        else:
            self.v1 = False
            self.parent = self._mounted("cgroup2", "", "/")
            if "memory" not in read(f"{self.parent}/cgroup.subtree_control").split():
                raise Skip("no memory controller for a group of the test's own")
        self.path = f"{self.parent}/forebay-test-{os.getpid()}"
        try:
            os.mkdir(self.path)
        except OSError as error:
            raise Skip(f"no control group can be made: {error}") from None

    @staticmethod
    def _mounted(kind, option, path):
        for line in read("/proc/self/mountinfo").splitlines():
            left, right = line.split(" - ", 1)
            place = left.split()[4]
            if right.split()[0] != kind:
                continue
            if option and option not in right.split()[2].split(","):
                continue
            # Not every group that a process is in can be seen where it is mounted.
            return place + path.rstrip("/") if os.path.isdir(place + path) else place
        raise Skip(f"{kind} is not mounted")

    def file(self, name):
        return f"{self.path}/{name}"

    def write(self, name, value):
        with open(self.file(name), "w") as file:
            file.write(str(value))

    def enter(self):
        """Runs in the server before exec."""
        self.write("cgroup.procs", os.getpid())

    def set_limit(self, value):
        """True once the kernel has taken it."""
        try:
            self.write("memory.limit_in_bytes" if self.v1 else "memory.high", value)
        except OSError:
            return False
        if self.v1:
            return True
        if self.usage() <= value:
            self.write("memory.max", value)
            return True
        return False

    def usage(self):
        return int(read(self.file("memory.usage_in_bytes" if self.v1 else "memory.current")))

    def kills(self):
        text = read(self.file("memory.oom_control" if self.v1 else "memory.events"))
        return sum(int(n) for key, n in map(str.split, text.splitlines()) if key == "oom_kill")

    def remove(self):
        for _ in range(200):
            with contextlib.suppress(FileNotFoundError):
                try:
                    os.rmdir(self.path)
                except OSError:
                    time.sleep(0.02)
                    continue
            return
        say(f"cleaning up: {self.path} is still busy")


def anonymous(server):
    """Bytes of anonymous memory that the server has in memory."""
    for line in read(f"/proc/{server.pid}/smaps_rollup").splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise Failure("smaps_rollup does not say what is anonymous")


class Load:
    """Clients that read and write at random and verify what they read; a failed request or wrong
    data ends the test."""

    def __init__(self, server):
        self.server = server
        self.stopping = False
        self.requests = 0

    async def client(self, number):
        client = await nbd.AsyncClient.open(self.server.address)
        start, pages = number * (IMAGE // CLIENTS), IMAGE // CLIENTS // PAGE
        written = {}
        while not self.stopping:
            count = random.choice((1, 1, 4, 32))
            first = random.randrange(pages - count)
            offset = start + first * PAGE
            if random.random() < 0.3:
                data = os.urandom(PAGE) * count
                await client.write(offset, data)
                for page in range(first, first + count):
                    written[page] = data[:8]
            else:
                data = await client.read(offset, count * PAGE)
                for page in range(count):
                    expected = written.get(first + page, bytes(8))
                    found = data[page * PAGE : page * PAGE + 8]
                    expect(found == expected, f"wrong data at {offset + page * PAGE}")
            self.requests += 1
        await client.close()

    async def run(self, work):
        """The load, while `work` runs in a thread; its result."""
        tasks = [asyncio.ensure_future(self.client(number)) for number in range(CLIENTS)]
        job = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            done, _ = await asyncio.wait([job, *tasks], return_when=asyncio.FIRST_COMPLETED)
            if job not in done:
                for task in done:
                    task.result()  # raises
                raise Failure("a client ended too early")
            self.stopping = True
            await asyncio.gather(*tasks)
            return job.result()
        finally:
            self.stopping = True
            for task in tasks:
                task.cancel()


def until(condition, seconds, what):
    """Polls, and returns how long it took."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            raise Failure(f"{what} did not happen within {seconds} s")
        time.sleep(0.02)
    return time.monotonic() - start


def lower_under_load(group, server):
    """Fill, halve the limit, watch it kept, raise it again, watch the cache grow."""

    def work():
        until(lambda: anonymous(server) > 0.85 * CACHE, PATIENCE, "the cache was filled")
        before = anonymous(server)
        full = group.usage()
        limit = full // 2
        took = until(lambda: group.set_limit(limit), PATIENCE, "the kernel took the halved limit")
        took += until(lambda: group.usage() <= limit, PATIENCE, "the usage fell under the limit")
        after = anonymous(server)
        say(
            f"halved from {full // MIB} MiB to {limit // MIB} MiB: kept after {took * 1000:.0f} ms,"
            f" {before // MIB} MiB resident became {after // MIB} MiB"
        )
        expect(after < limit, "the server has more in memory than its group may")
        # It lives there, and does not creep up to it.
        requests = load.requests
        for _ in range(20):
            time.sleep(0.1)
            expect(group.usage() <= limit, "the usage is above the limit again")
        until(lambda: load.requests > requests + 20, PATIENCE, "20 requests more")
        shrunk = server.statistics()["pressure"]
        say(f"limit of the cache {shrunk['limit_bytes'] // MIB} MiB,"
            f" {shrunk['given_back_bytes'] // MIB} MiB given back")
        expect(shrunk["limit_bytes"] < CACHE * 0.6, f"the cache's limit: {shrunk}")
        expect(shrunk["given_back_bytes"] >= (before - after) * 0.8, f"given back: {shrunk}")
        expect(shrunk["committed_bytes"] <= limit, f"committed: {shrunk}")
        text = run(program(), "stat", server.stat_address).stdout
        expect("while memory is short" in text, f"stat does not show it:\n{text}")

        expect(group.set_limit(full * 2), "the limit could not be raised")
        took = until(lambda: anonymous(server) > 0.8 * CACHE, PATIENCE, "the cache grew again")
        say(f"grown to {anonymous(server) // MIB} MiB within {took:.1f} s")
        expect(server.statistics()["pressure"]["limit_raised"] > 0, "the limit was raised without a count")

    load = Load(server)
    asyncio.run(load.run(work))
    say(f"{load.requests} requests, none failed")


def start_small(group, image):
    """A cache twice as large as what its group may have."""
    expect(group.set_limit(CACHE // 2), "the limit could not be set")
    with Server(image, cache=CACHE, enter=group.enter) as server:
        expect("memory control group" in server.stderr(), f"no word of it: {server.stderr()}")
        pressure = server.statistics()["pressure"]
        expect(pressure["limit_bytes"] < CACHE // 2, f"the cache's limit: {pressure}")
        expect(pressure["group_limit_bytes"] == CACHE // 2, f"the group's limit: {pressure}")

        def work():
            until(lambda: load.requests > 4000, PATIENCE, "4,000 requests")
            expect(group.usage() <= CACHE // 2, "the usage is above the limit")

        load = Load(server)
        asyncio.run(load.run(work))
    expect(group.kills() == 0, "a process of the group was killed for want of memory")
    expect(group.set_limit(1 << 40), "the limit could not be lifted")


def test(directory):
    need_root()
    group = Group()
    try:
        image = sparse_file(os.path.join(directory, "disk.img"), IMAGE)
        start_small(group, image)
        image = sparse_file(os.path.join(directory, "disk.img"), IMAGE)
        with Server(image, cache=CACHE, enter=group.enter) as server:
            lower_under_load(group, server)
        expect(group.kills() == 0, "a process of the group was killed for want of memory")
    finally:
        group.remove()


main(test)
