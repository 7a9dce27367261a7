"""Stamped units, the journal of what a server promised about them, and a load of concurrent
requests that keeps it.

The image is an array of units (512 bytes, or the server's minimum block size if that is more). Each
write fills its units with stamps: run, unit number, sequence number of the write, filler, CRC. No
two requests that change a unit are ever in flight at once, so the sequence numbers of a unit are
also the order in which they took effect. From what was issued, acknowledged and flushed follows for
each unit a lower bound: content older than that must not be seen.

    acknowledged before the issue of a FLUSH that completed   -> on disk, whatever happens
    acknowledged with FUA                                     -> the same
    acknowledged                                              -> seen by every later read

A trim leaves its units with anything from before, or zeros, until they are written again.
"""

import asyncio
import fcntl
import os
import random
import struct
import zlib
from array import array

import nbd
from lib import Failure

_HEAD = struct.Struct("<8sQQ")
_CRC = struct.Struct("<I")
_FILLER = os.urandom(1 << 16)


class Journal:
    def __init__(self, size, unit):
        self.unit = unit
        self.count = size // unit
        self.run = os.urandom(8)
        self.sequence = 0
        self.zeros = bytes(unit)
        zero = [0] * self.count
        self.issued = array("Q", zero)  # the newest change sent
        self.acked = array("Q", zero)  # the newest change acknowledged
        self.durable = array("Q", zero)  # the newest change that a flush or FUA made durable
        self.trimmed = array("Q", zero)  # the newest trim sent; bounds up to it do not hold
        self.zeroed = {}  # unit -> sequence numbers of its changes to zeros that may still be seen
        self.busy = bytearray(self.count)  # 1 while a change to the unit is in flight
        self.unflushed = {}  # unit -> newest acknowledged change that is not known to be durable
        self.touched = set()  # units changed since the last judgement of the whole image

    def stamp(self, unit, sequence):
        start = (sequence * 4099 + unit * 17) % (len(_FILLER) - self.unit)
        body = (
            _HEAD.pack(self.run, unit, sequence)
            + _FILLER[start : start + self.unit - _HEAD.size - _CRC.size]
        )
        return body + _CRC.pack(zlib.crc32(body))

    # A change: issue, then acknowledge when the reply has come.

    def issue(self, first, count, kind):
        """Notes a change ('write', 'zero' or 'trim') and returns its sequence number and, for a
        write, the data."""
        self.sequence += 1
        sequence = self.sequence
        self.busy[first : first + count] = b"\1" * count
        units = range(first, first + count)
        for unit in units:
            self.issued[unit] = sequence
        self.touched.update(units)
        if kind == "write":
            return sequence, b"".join([self.stamp(unit, sequence) for unit in units])
        for unit in units:
            self.zeroed.setdefault(unit, []).append(sequence)
            if kind == "trim":
                self.trimmed[unit] = sequence
        return sequence, b""

    def acknowledge(self, first, count, sequence, durable):
        self.busy[first : first + count] = bytes(count)
        for unit in range(first, first + count):
            self.acked[unit] = sequence
            if durable:
                self.durable[unit] = sequence
                self.unflushed.pop(unit, None)
            else:
                self.unflushed[unit] = sequence

    def flush_issued(self):
        return dict(self.unflushed)

    def flush_completed(self, covered):
        for unit, sequence in covered.items():
            if self.durable[unit] < sequence:
                self.durable[unit] = sequence
            if self.unflushed.get(unit) == sequence:
                del self.unflushed[unit]

    # Judgement.

    def bound(self, bounds, unit):
        """The oldest change that may be seen, by one of the arrays of bounds; 0 if anything may."""
        return bounds[unit] if bounds[unit] > self.trimmed[unit] else 0

    def judge(self, unit, data, bound):
        """What is wrong with the content of a unit, or None."""
        if data == self.zeros:
            if bound == 0 or any(sequence >= bound for sequence in self.zeroed.get(unit, ())):
                return None
            return f"unit {unit} is zero, change {bound} is lost"
        run, number, sequence = _HEAD.unpack_from(data)
        if run != self.run:
            return f"unit {unit} holds something that nobody wrote: {data[:24].hex()}"
        if _CRC.unpack_from(data, self.unit - 4)[0] != zlib.crc32(data[:-4]):
            return (
                f"unit {unit} is torn (its stamp: unit {number}, change {sequence}; bound {bound})"
            )
        if number != unit:
            return f"unit {unit} holds unit {number} (change {sequence})"
        if sequence < bound:
            return f"unit {unit} holds change {sequence}, change {bound} is lost"
        if sequence > self.issued[unit]:
            return (
                f"unit {unit} holds change {sequence}, but {self.issued[unit]} is the newest issued"
            )
        return None

    def judge_image(self, path, bounds, everything=False):
        """Compares the image with the promises; the bounds are `durable` or `acked`. What it finds
        is the new truth.

        Returns the number of units judged and a list of what is wrong. No request may be in flight,
        and the server must be gone.
        """
        units = range(self.count) if everything else sorted(self.touched)
        wrong = []
        with open(path, "rb") as file:
            # What a killed server had under way reaches the file after its death; until it has, the
            # kernel holds the file, and so the server's lock.
            fcntl.flock(file, fcntl.LOCK_EX)
            image = file.read()
        for unit in units:
            data = image[unit * self.unit : (unit + 1) * self.unit]
            problem = self.judge(unit, data, self.bound(bounds, unit))
            if problem:
                wrong.append(problem)
            self._settle(unit, data)
        self.touched.clear()
        self.unflushed.clear()
        self.busy = bytearray(self.count)
        return len(units), wrong

    def _settle(self, unit, data):
        """The content found on disk is what every later look must find, or something newer."""
        if data == self.zeros:
            if self.issued[unit] == 0:
                return
            self.sequence += 1
            sequence = self.issued[unit] = self.sequence
            self.zeroed[unit] = [sequence]
        else:
            sequence = _HEAD.unpack_from(data)[2]
            self.zeroed.pop(unit, None)
        self.acked[unit] = self.durable[unit] = sequence
        self.trimmed[unit] = 0


class Load:
    """Random requests over several connections, each with several in flight, until stopped or the
    server dies."""

    # Weights of the operations.
    MIX = {"write": 50, "read": 25, "zero": 8, "trim": 4, "flush": 5, "fua": 8}

    def __init__(self, journal, connections=3, depth=8, seed=None, mix=None, units_max=128):
        self.journal = journal
        self.connections = connections
        self.depth = depth
        self.random = random.Random(seed if seed is not None else random.getrandbits(32))
        mix = mix or self.MIX
        self.names, self.weights = list(mix), list(mix.values())
        self.units_max = units_max
        self.stopping = False
        self.done = dict.fromkeys(mix, 0)
        self.clients = []

    def pick(self):
        """A range of units; three in four on page boundaries."""
        unit, count = self.journal.unit, self.journal.count
        length = min(1 << self.random.randrange(self.units_max.bit_length()), self.units_max)
        length = self.random.randint(1, length)
        first = self.random.randrange(count - length + 1)
        if self.random.random() < 0.75:
            step = max(1, 4096 // unit)
            length = max(step, length // step * step)
            first = min(first // step * step, count - length)
        return first, length

    async def worker(self, client):
        journal = self.journal
        while not self.stopping:
            name = self.random.choices(self.names, self.weights)[0]
            if name == "flush":
                covered = journal.flush_issued()
                await client.flush()
                journal.flush_completed(covered)
            elif name == "read":
                await self.read(client, *self.pick())
            else:
                first, count = self.pick()
                while journal.busy.find(1, first, first + count) >= 0:
                    first, count = self.pick()
                await self.change(client, name, first, count)
            self.done[name] += 1

    async def change(self, client, name, first, count):
        journal = self.journal
        kind = "write" if name == "fua" else name
        fua = name == "fua" or (name == "zero" and self.random.random() < 0.2)
        flags = nbd.FUA if fua else 0
        sequence, data = journal.issue(first, count, kind)
        offset, length = first * journal.unit, count * journal.unit
        if kind == "write":
            await client.write(offset, data, flags)
        elif kind == "zero":
            hole = nbd.NO_HOLE if self.random.random() < 0.5 else 0
            await client.zero(offset, length, flags | hole)
        else:
            await client.trim(offset, length, flags)
        journal.acknowledge(first, count, sequence, fua)

    async def read(self, client, first, count):
        journal = self.journal
        units = range(first, first + count)
        bounds = [journal.bound(journal.acked, unit) for unit in units]
        # A read that runs beside a change to the unit may see any mixture of before and after.
        calm = [0 if journal.busy[unit] else journal.issued[unit] + 1 for unit in units]
        data = await client.read(first * journal.unit, count * journal.unit)
        for index, unit in enumerate(units):
            if calm[index] != journal.issued[unit] + 1:
                continue
            content = data[index * journal.unit : (index + 1) * journal.unit]
            problem = journal.judge(unit, content, bounds[index])
            if problem:
                raise Failure(f"a read while the server ran: {problem}")

    async def run(self, address, export=""):
        """Loads the server until `stop` or until every connection has died; returns when nothing is
        in flight."""
        self.stopping = False
        self.clients = [
            await nbd.AsyncClient.open(address, export) for _ in range(self.connections)
        ]
        workers = [self.worker(client) for client in self.clients for _ in range(self.depth)]
        results = await asyncio.gather(*workers, return_exceptions=True)
        for client in self.clients:
            await client.close()
        for result in results:
            leaving = isinstance(result, nbd.NbdError) and result.error == nbd.ESHUTDOWN
            if (
                isinstance(result, BaseException)
                and not isinstance(result, ConnectionError)
                and not leaving
            ):
                raise result

    async def run_until(self, address, end, delay, enough=lambda: True):
        """As run(); calls `end` so many seconds after its clients have come and it is `enough`."""
        running = asyncio.ensure_future(self.run(address))
        while not running.done() and not (self.clients and enough()):
            await asyncio.sleep(0.002)
        await asyncio.sleep(delay)
        end()
        await running

    def stop(self):
        self.stopping = True
