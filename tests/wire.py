"""What the two tests of the protocol share: the server under test, one way to run all cases on both
kinds of socket, and the checks that hold after each.

After each hostile case the server must still serve others. Where the protocol allows the connection
to go on, it must go on. Every case uses connections of its own.
"""

import os
import random

import nbd
from lib import MIB, PAGE, PATIENCE, Cases, Server, expect, sparse_file, wait_for

SIZE = 64 * MIB
NAME = "disk.img"
# Smaller than the largest request: nothing may need all of a request in the cache at once.
CACHE = 16 * MIB


def pattern(length, seed=0):
    return random.Random(seed).randbytes(length)


class Wire:
    """The server under test, and shorthands."""

    def __init__(self, server):
        self.server = server

    def raw(self, **options):
        return nbd.Client(self.server.address, **options)

    def client(self, structured=True):
        return nbd.Client(self.server.address).start(structured=structured)

    def alive(self):
        expect(self.server.alive(), f"the server has died\n{self.server.stderr()}")
        with self.client() as client:
            client.read(0, PAGE)


def expect_errors(client, cases):
    """Each request (command, offset, length, flags) must get an error that is wanted, and leave the
    connection in order. A write gets the payload that it announces.
    """
    for what, wanted, command, *arguments in cases:
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        offset, length, flags = (*arguments, 0)[:3]
        payload = bytes(length) if command == nbd.CMD_WRITE else b""
        reply = client.call(command, offset, length, flags, payload)
        expect(reply.error in wanted, f"{what}: error {reply.error}, expected {wanted}")
        client.read(0, PAGE)


def run_cases(directory, steps):
    cases = Cases()
    image = sparse_file(os.path.join(directory, NAME), SIZE)
    for tcp in (False, True):
        with Server(image, cache=CACHE, tcp=tcp) as server:
            wire = Wire(server)
            for step in steps:
                with cases.case(f"{step.__name__} over {'TCP' if tcp else 'a unix socket'}"):
                    step(wire)
                dead = f"the server has died in {step.__name__}\n{server.stderr()[-4000:]}"
                expect(server.alive(), dead)
            # What clients leave behind them does not stay.
            few = lambda: len(os.listdir(f"/proc/{server.pid}/fd")) < 40
            with cases.case("descriptors are closed again"):
                wait_for(few, PATIENCE, "less than 40 descriptors, with no client left,")
    cases.finish()
