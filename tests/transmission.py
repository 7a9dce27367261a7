#!/usr/bin/env python3
"""Transmission, as the protocol document of NetworkBlockDevice/nbd says: every command, what lies
at and beyond its limits, and what no honest client sends.
"""

import random
import socket
import struct

import nbd
from lib import KIB, MIB, PAGE, allocated, expect, main
from wire import SIZE, expect_errors, pattern, run_cases


def bounds(wire):
    two = 2 * PAGE
    last = SIZE - PAGE
    wraps = (1 << 64) - PAGE
    outside = (nbd.ENOSPC, nbd.EINVAL)
    cases = [
        ("read at the end", nbd.EINVAL, nbd.CMD_READ, SIZE, PAGE),
        ("read across the end", nbd.EINVAL, nbd.CMD_READ, last, two),
        ("read far out", nbd.EINVAL, nbd.CMD_READ, 1 << 62, PAGE),
        ("read where offset + length wraps", nbd.EINVAL, nbd.CMD_READ, wraps, two),
        ("write at the end", nbd.ENOSPC, nbd.CMD_WRITE, SIZE, PAGE),
        ("write across the end", nbd.ENOSPC, nbd.CMD_WRITE, last, two),
        ("write that wraps", outside, nbd.CMD_WRITE, wraps, PAGE),
        ("trim across the end", nbd.EINVAL, nbd.CMD_TRIM, last, two),
        ("zeroes across the end", nbd.ENOSPC, nbd.CMD_WRITE_ZEROES, last, two),
        ("zeroes that wrap", outside, nbd.CMD_WRITE_ZEROES, wraps, PAGE),
        ("cache across the end", nbd.EINVAL, nbd.CMD_CACHE, last, two),
    ]
    for structured in (False, True):
        with wire.client(structured) as client:
            client.write(last, pattern(PAGE))
            expect_errors(client, cases)
            if structured:
                status = ("status across the end", nbd.EINVAL, nbd.CMD_BLOCK_STATUS, last, two)
                expect_errors(client, [status])
            # The last page itself is there, and nothing above has changed it.
            expect(client.read(last, PAGE) == pattern(PAGE), "a refused request has changed data")


def zero_length(wire):
    """Unspecified what it does, but the server should not disconnect."""
    for structured in (False, True):
        with wire.client(structured) as client:
            for command in (
                nbd.CMD_READ,
                nbd.CMD_WRITE,
                nbd.CMD_TRIM,
                nbd.CMD_CACHE,
                nbd.CMD_WRITE_ZEROES,
            ):
                for offset in (0, SIZE):
                    client.call(command, offset, 0)
            if structured:
                client.call(nbd.CMD_BLOCK_STATUS, 0, 0)
            client.read(0, PAGE)


def too_long(wire):
    """Reads beyond the maximum get an error or the data, commands without a payload just work."""
    for structured in (False, True):
        with wire.client(structured) as client:
            maximum = client.block_sizes[2]
            for length in (maximum + PAGE, 48 * MIB, SIZE):
                error = client.call(nbd.CMD_READ, 0, length).error
                allowed = (0, nbd.EOVERFLOW, nbd.EINVAL)
                expect(error in allowed, f"read of {length}: error {error}")
                client.read(0, PAGE)
            error = client.call(nbd.CMD_READ, 0, 0xFFFFFFFF).error
            expect(error in (nbd.EOVERFLOW, nbd.EINVAL), f"read of 4 GiB: error {error}")
            client.read(0, PAGE)
            for command in (nbd.CMD_WRITE_ZEROES, nbd.CMD_TRIM):
                client.call(command, 0, SIZE).check()
            client.read(0, PAGE)


def too_long_write(wire):
    """A write beyond the maximum: an error with the payload thrown away, or the connection ends.
    The payload must never be taken for requests, of which this one consists.
    """
    with wire.client() as other:
        other.write(0, pattern(PAGE, 40))
        for structured in (False, True):
            with wire.client(structured) as client:
                evil = nbd.request(nbd.CMD_WRITE_ZEROES, 0, PAGE, cookie=99)
                length = (client.block_sizes[2] // len(evil) + 200) * len(evil)
                try:
                    payload = evil * (length // len(evil))
                    error = client.call(nbd.CMD_WRITE, PAGE, length, 0, payload).error
                    allowed = (0, nbd.EINVAL, nbd.EOVERFLOW)
                    expect(error in allowed, f"write of {length}: error {error}")
                    client.read(0, PAGE)
                except ConnectionError:
                    pass
            expect(other.read(0, PAGE) == pattern(PAGE, 40), "a payload was taken for requests")
        with wire.client() as client:
            try:
                client.send(nbd.request(nbd.CMD_WRITE, 0, 0xFFFFFFFF))
                for _ in range(4):
                    client.send(evil * (MIB // len(evil)))
            except ConnectionError:
                pass
        expect(other.read(0, PAGE) == pattern(PAGE, 40), "a payload was taken for requests")


def largest(wire):
    """The advertised maximum itself, and 32 MiB where the maximum is not smaller, must work."""
    with wire.client() as client:
        length = min(client.block_sizes[2], 32 * MIB, SIZE)
        data = pattern(length, 5)
        client.write(PAGE, data[: length - 2 * PAGE])
        expect(client.read(PAGE, length - 2 * PAGE) == data[: length - 2 * PAGE], "data")
        client.write(0, data)
        expect(client.read(0, length) == data, "data")
        expect(length == 32 * MIB, f"requests of 32 MiB are not supported, only {length}")


def unknown_command(wire):
    numbers = (8, 9, 77, 0xFFFF)
    cases = [(f"command {number}", nbd.EINVAL, number, 0, PAGE) for number in numbers]
    for structured in (False, True):
        with wire.client(structured) as client:
            expect_errors(client, cases)


def unknown_flags(wire):
    commands = (nbd.CMD_READ, nbd.CMD_WRITE, nbd.CMD_TRIM, nbd.CMD_CACHE, nbd.CMD_WRITE_ZEROES)
    cases = []
    for bit in (1 << 6, 1 << 15):
        for command in commands:
            cases.append((f"flag {bit:#x} on command {command}", nbd.EINVAL, command, 0, PAGE, bit))
        cases.append((f"flag {bit:#x} on FLUSH", nbd.EINVAL, nbd.CMD_FLUSH, 0, 0, bit))
    cases += [
        ("NO_HOLE on a read", nbd.EINVAL, nbd.CMD_READ, 0, PAGE, nbd.NO_HOLE),
        ("REQ_ONE on a write", nbd.EINVAL, nbd.CMD_WRITE, 0, PAGE, nbd.REQ_ONE),
        ("FAST_ZERO on a trim", nbd.EINVAL, nbd.CMD_TRIM, 0, PAGE, nbd.FAST_ZERO),
        ("DF on a write", nbd.EINVAL, nbd.CMD_WRITE, 0, PAGE, nbd.DF),
    ]
    for structured in (False, True):
        with wire.client(structured) as client:
            client.write(0, pattern(PAGE))
            expect_errors(client, cases)
            if not structured:
                # The flag was not offered, so it is unknown here.
                expect_errors(client, [("DF", nbd.EINVAL, nbd.CMD_READ, 0, PAGE, nbd.DF)])
            expect(client.read(0, PAGE) == pattern(PAGE), "a refused request has changed data")


def bad_magic(wire):
    for structured in (False, True):
        with wire.client(structured) as client:
            client.send(nbd.request(nbd.CMD_READ, 0, PAGE, magic=0x12345678))
            expect(client.closed_by_server(), "a wrong request magic was accepted")
    wire.alive()


def fragments(wire):
    """DF: one content chunk, whatever holes there are; without it there may be hole chunks."""
    with wire.client() as client:
        client.zero(0, 8 * MIB)
        for index in range(8):
            client.write(index * 128 * KIB, pattern(PAGE, index))
        client.flush()
        expected = b"".join(pattern(PAGE, index) + bytes(128 * KIB - PAGE) for index in range(8))
        reply = client.call(nbd.CMD_READ, 0, MIB).check()
        expect(reply.data == expected, "data")
        for offset, length in ((0, 65536), (PAGE, 65536), (128 * KIB - PAGE, 2 * PAGE), (0, MIB)):
            reply = client.call(nbd.CMD_READ, offset, length, nbd.DF)
            if reply.error == nbd.EOVERFLOW and length > 65536:
                continue
            reply.check()
            expect(
                reply.data == expected[offset : offset + length],
                f"data of {offset}+{length} with DF",
            )
        reply = client.call(nbd.CMD_READ, 0, 2 * PAGE, nbd.DF).check()
        kinds = [kind for kind, _, _ in reply.chunks if kind != nbd.CHUNK_NONE]
        expect(kinds == [nbd.CHUNK_DATA], f"data and a hole with DF came as {kinds}")


def hole_chunks(wire):
    """A read of a hole sends no zeros over the wire: also when the data was never in the cache."""
    with wire.client() as client:
        client.trim(32 * MIB, 8 * MIB)
        client.zero(32 * MIB, 8 * MIB)
        client.flush()
        reply = client.call(nbd.CMD_READ, 32 * MIB, 4 * MIB).check()
        expect(reply.data == bytes(4 * MIB), "a hole that is not zero")
        sent = sum(length for kind, _, length in reply.chunks if kind == nbd.CHUNK_DATA)
        expect(sent < MIB, f"{sent} bytes of zeros were sent for a hole of 4 MiB")


def write_zeroes(wire):
    with wire.client() as client:
        for flags in (0, nbd.NO_HOLE, nbd.FUA, nbd.FAST_ZERO, nbd.FAST_ZERO | nbd.NO_HOLE):
            client.write(0, pattern(MIB, 3))
            reply = client.call(nbd.CMD_WRITE_ZEROES, 64 * KIB, 512 * KIB, flags)
            allowed = (0, nbd.ENOTSUP) if flags & nbd.FAST_ZERO else (0,)
            expect(reply.error in allowed, f"flags {flags}: error {reply.error}")
            want = bytearray(pattern(MIB, 3))
            if not reply.error:
                want[64 * KIB : 576 * KIB] = bytes(512 * KIB)
            expect(client.read(0, MIB) == bytes(want), f"flags {flags}: wrong data")
            client.flush()
            expect(client.read(0, MIB) == bytes(want), f"flags {flags}: wrong data after a flush")


def no_hole(wire):
    """NO_HOLE: zeros that have their storage, whether that was a hole or data before."""
    image = wire.server.images[0]
    with wire.client() as client:
        client.trim(0, SIZE)
        client.flush()
        before = allocated(image)
        client.zero(0, 4 * MIB, nbd.NO_HOLE)
        client.write(8 * MIB, pattern(4 * MIB))
        client.zero(8 * MIB, 4 * MIB, nbd.NO_HOLE | nbd.FUA)
        client.flush()
        grown = allocated(image) - before
        expect(
            grown >= 8 * MIB, f"8 MiB of zeros without holes take {grown} bytes more than a hole"
        )
        expect(client.read(0, 12 * MIB) == bytes(12 * MIB), "zeros that are not zero")


def status(wire):
    """WRITE_ZEROES and TRIM over flushed data end as holes that read as zeros; writes end them."""
    with wire.client() as client:
        for command in (nbd.CMD_WRITE_ZEROES, nbd.CMD_TRIM):
            client.write(16 * MIB, pattern(4 * MIB))
            client.flush()
            data = client.status(16 * MIB, 4 * MIB)
            expect(
                all(not flags & nbd.STATE_HOLE for _, flags in data[:1]),
                f"data is called a hole: {data}",
            )
            client.call(command, 17 * MIB, 2 * MIB).check()
            client.flush()
            hole = client.status(17 * MIB, 2 * MIB)[0]
            expect(
                hole[1] & nbd.STATE_HOLE and hole[0] >= MIB,
                f"no hole after command {command}: {hole}",
            )
            if hole[1] & nbd.STATE_ZERO or command == nbd.CMD_WRITE_ZEROES:
                expect(
                    client.read(17 * MIB, 2 * MIB) == bytes(2 * MIB),
                    "a zero extent that is not zero",
                )
            # Dirty data that has not reached the file yet must count: an extent that reads as data
            # is no zero.
            client.write(18 * MIB, pattern(PAGE))
            at = 17 * MIB
            for length, flags in client.status(17 * MIB, 2 * MIB):
                if at <= 18 * MIB < at + length:
                    expect(not flags & nbd.STATE_ZERO, "fresh data is called zero")
                at += length
        one = client.status(16 * MIB, 4 * MIB, nbd.REQ_ONE)
        expect(len(one) == 1 and one[0][0] <= 4 * MIB, f"REQ_ONE: {one}")
        # The whole export can be walked.
        at = 0
        while at < SIZE:
            for length, _ in client.status(at, SIZE - at):
                at += length
        reply = client.call(nbd.CMD_BLOCK_STATUS, 0, PAGE, nbd.FUA)
        expect(reply.error == 0, f"FUA on a block status: {reply.error}")


def status_without_context(wire):
    with wire.raw() as client:
        client.use_structured()
        client.go()
        reply = client.call(nbd.CMD_BLOCK_STATUS, 0, PAGE)
        expect(reply.error == nbd.EINVAL, f"error {reply.error}")
        client.read(0, PAGE)
    with wire.raw() as client:
        client.go()
        reply = client.call(nbd.CMD_BLOCK_STATUS, 0, PAGE)
        expect(reply.error == nbd.EINVAL, f"error {reply.error}")
        client.read(0, PAGE)


def cache(wire):
    with wire.client() as client:
        client.write(MIB, pattern(MIB, 8))
        client.flush()
        client.call(nbd.CMD_CACHE, 0, 4 * MIB).check()
        client.call(
            nbd.CMD_CACHE, 0, SIZE
        )  # More than the cache holds: an error or not, but no harm.
        expect(client.read(MIB, MIB) == pattern(MIB, 8), "data")
        expect(
            client.call(nbd.CMD_CACHE, 0, PAGE, nbd.DF).error == nbd.EINVAL,
            "an unknown flag on CACHE",
        )


def trim(wire):
    """Data beside a trim stays."""
    with wire.client() as client:
        data = pattern(MIB, 9)
        client.write(0, data)
        client.trim(100 * KIB, 200 * KIB)
        client.trim(400 * KIB, PAGE, nbd.FUA)
        kept = client.read(0, MIB)
        for start, end in ((0, 100 * KIB), (300 * KIB, 400 * KIB), (404 * KIB, MIB)):
            expect(
                kept[start:end] == data[start:end],
                f"a trim has changed bytes beside it in {start}..{end}",
            )
        client.write(100 * KIB, data[100 * KIB : 300 * KIB])
        client.flush()
        expect(client.read(0, 400 * KIB) == data[: 400 * KIB], "a write after a trim is lost")


def fua_everywhere(wire):
    with wire.client() as client:
        client.write(0, pattern(PAGE), nbd.FUA)
        expect(client.call(nbd.CMD_READ, 0, PAGE, nbd.FUA).check().data == pattern(PAGE), "data")
        for command in (nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES, nbd.CMD_CACHE, nbd.CMD_BLOCK_STATUS):
            client.call(command, 0, PAGE, nbd.FUA).check()
        client.call(nbd.CMD_FLUSH, 0, 0, nbd.FUA).check()


def alignment(wire):
    """Requests in units of the minimum block size work anywhere; smaller get EINVAL, or work."""
    size = MIB
    with wire.client() as client:
        minimum = client.block_sizes[0]
        model = bytearray(pattern(size, 4))
        client.write(0, bytes(model))
        for turn in range(300):
            longest = random.choice((minimum, 9000, 200 * KIB)) // minimum
            count = random.randint(1, max(1, longest))
            offset = random.randrange(size // minimum - count + 1) * minimum
            length = count * minimum
            if turn % 4 == 3:
                client.zero(offset, length, random.choice((0, nbd.NO_HOLE, nbd.FUA)))
                model[offset : offset + length] = bytes(length)
            else:
                data = pattern(length, turn)
                client.write(offset, data)
                model[offset : offset + length] = data
            start, end = max(0, offset - 5000), min(size, offset + length + 5000)
            start, end = start // minimum * minimum, end // minimum * minimum
            same = client.read(start, end - start) == model[start:end]
            expect(same, f"wrong data at or near {offset}+{length} in turn {turn}")
            if turn % 20 == 0:
                client.flush()
        expect(client.read(0, size) == bytes(model), "data")
        if minimum == 1:
            return
        for command in (nbd.CMD_READ, nbd.CMD_WRITE, nbd.CMD_WRITE_ZEROES):
            for offset in (0, 1, minimum - 1):
                payload = b"x" if command == nbd.CMD_WRITE else b""
                error = client.call(command, offset, 1, 0, payload).error
                expect(error in (0, nbd.EINVAL), f"command {command}, 1 byte at {offset}: {error}")
                client.read(0, PAGE)


def pipelined(wire):
    """100 requests before the first reply is read; every reply is there exactly once."""
    for structured in (False, True):
        with wire.client(structured) as client:
            wanted = {}
            for index in range(50):
                client.submit(nbd.CMD_WRITE, index * 2 * PAGE, PAGE, 0, pattern(PAGE, index))
            for _ in range(50):
                client.reply().check()
            for index in range(50):
                wanted[client.submit(nbd.CMD_READ, index * 2 * PAGE, PAGE)] = pattern(PAGE, index)
                wanted[client.submit(nbd.CMD_READ, SIZE, PAGE)] = None
            while wanted:
                reply = client.reply()
                data = wanted.pop(reply.cookie)
                if data is None:
                    expect(reply.error == nbd.EINVAL, f"error {reply.error}")
                else:
                    expect(reply.check().data == data, "data")


def same_cookie(wire):
    """The cookie is the client's business: opaque, and free again after the reply."""
    with wire.client() as client:
        for cookie in (0, 0, (1 << 64) - 1, 1 << 63, 1 << 32):
            for command in (nbd.CMD_READ, nbd.CMD_WRITE_ZEROES, nbd.CMD_FLUSH):
                client.next_cookie = cookie
                client.call(command, 0, 0 if command == nbd.CMD_FLUSH else PAGE).check()


def byte_by_byte(wire):
    """Everything from the greeting on, a byte at a time."""
    with wire.raw(greet=False) as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        plain = client.sock.sendall

        def trickle(data):
            for byte in data:
                plain(bytes([byte]))

        client.send = trickle
        client.greet(nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES)
        client.start()
        client.write(0, pattern(2 * PAGE, 6))
        client.flush()
        expect(
            client.read(PAGE // 2, PAGE) == pattern(2 * PAGE, 6)[PAGE // 2 : PAGE // 2 + PAGE],
            "data",
        )


def in_one_piece(wire):
    """The whole conversation in one segment, requests and all, before the server has spoken."""
    with wire.raw(greet=False) as client:
        data = struct.pack(">I", 3)
        data += struct.pack(">QII", nbd.IHAVEOPT, nbd.OPT_STRUCTURED_REPLY, 0)
        body = client.info_request("", ())
        data += struct.pack(">QII", nbd.IHAVEOPT, nbd.OPT_GO, len(body)) + body
        data += nbd.request(
            nbd.CMD_WRITE, 0, PAGE, cookie=1, payload=pattern(PAGE, 2), flags=nbd.FUA
        )
        client.send(data)
        client.receive(18)
        client.structured = True
        expect(
            client.option_reply(nbd.OPT_STRUCTURED_REPLY)[0] == nbd.REP_ACK, "structured replies"
        )
        while client.option_reply(nbd.OPT_GO)[0] != nbd.REP_ACK:
            pass
        client.requests[1] = (nbd.CMD_WRITE, 0, PAGE, nbd.FUA)
        client.next_cookie = 2
        client.reply().check()
        expect(client.read(0, PAGE) == pattern(PAGE, 2), "data")


def disconnect(wire):
    """DISC with requests outstanding: they are handled, then the connection is closed."""
    with wire.client() as client:
        data = pattern(MIB, 21)
        for index in range(16):
            client.submit(
                nbd.CMD_WRITE,
                index * 64 * KIB,
                64 * KIB,
                0,
                data[index * 64 * KIB : (index + 1) * 64 * KIB],
            )
        client.send(nbd.request(nbd.CMD_DISC, 0, 0))
        expect(client.closed_by_server(), "the connection is still open after DISC")
    with wire.client() as client:
        expect(client.read(0, MIB) == data, "requests before DISC were not handled")
    # Without a word: the client is just gone, in the middle of many reads.
    for _ in range(10):
        with wire.client() as client:
            for _ in range(8):
                client.submit(nbd.CMD_READ, 0, MIB)
    wire.alive()


def half_closed(wire):
    """A client that shuts its sending side down still gets its replies."""
    with wire.client() as client:
        client.write(0, pattern(PAGE, 31))
        client.submit(nbd.CMD_READ, 0, PAGE)
        client.sock.shutdown(socket.SHUT_WR)
        try:
            expect(client.reply().check().data == pattern(PAGE, 31), "data")
        except ConnectionError:
            pass  # Taking it for a hard disconnect is allowed.
        expect(client.closed_by_server(), "the connection stays open for ever")


def connections_agree(wire):
    """multi-conn: what one connection has been told is written, every other reads."""
    clients = [wire.client() for _ in range(4)]
    for turn in range(100):
        writer, reader = random.sample(clients, 2)
        data = pattern(PAGE, turn)
        writer.write(turn % 7 * 512, data)
        expect(reader.read(turn % 7 * 512, PAGE) == data, "another connection reads old data")
    for client in clients:
        client.disconnect()


def noise(wire):
    """Random and nearly right requests: the server may answer or hang up, but lives."""
    chosen = random.Random(random.getrandbits(32))
    for _ in range(150):
        with wire.raw() as client:
            try:
                if chosen.random() < 0.5:
                    client.start()
                    for _ in range(chosen.randrange(1, 6)):
                        client.send(
                            nbd.request(
                                chosen.choice([0, 1, 3, 4, 5, 6, 7, chosen.randrange(65536)]),
                                chosen.choice(
                                    [0, SIZE, chosen.getrandbits(64), chosen.randrange(SIZE)]
                                ),
                                chosen.choice([0, 1, PAGE, chosen.randrange(MIB), 0xFFFFFFFF]),
                                chosen.choice([0, 1, chosen.getrandbits(16)]),
                                chosen.getrandbits(64),
                            )
                        )
                    client.send(chosen.randbytes(chosen.randrange(100)))
                else:
                    client.send(
                        struct.pack(
                            ">QII", nbd.IHAVEOPT, chosen.randrange(12), chosen.randrange(200)
                        )
                    )
                    client.send(chosen.randbytes(chosen.randrange(300)))
                client.sock.settimeout(0.01)
                while client.sock.recv(1 << 20):
                    pass
            except (OSError, nbd.Breach):
                pass
    wire.alive()


STEPS = [
    bounds,
    zero_length,
    too_long,
    too_long_write,
    largest,
    unknown_command,
    unknown_flags,
    bad_magic,
    fragments,
    hole_chunks,
    write_zeroes,
    no_hole,
    status,
    status_without_context,
    cache,
    trim,
    fua_everywhere,
    alignment,
    pipelined,
    same_cookie,
    byte_by_byte,
    in_one_piece,
    disconnect,
    half_closed,
    connections_agree,
    noise,
]


main(lambda directory: run_cases(directory, STEPS))
