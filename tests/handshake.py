#!/usr/bin/env python3
"""The handshake, as the protocol document of NetworkBlockDevice/nbd says: the polite, the edge and
the hostile.
"""

import os
import socket
import struct

import nbd
from lib import MIB, PAGE, expect, main
from wire import CACHE, NAME, SIZE, pattern, run_cases

BASE = "base:allocation"
CACHED = "forebay:cache"


def greeting(wire):
    with wire.raw() as client:
        expect(client.handshake_flags & 3 == 3, f"handshake flags {client.handshake_flags}")
        expect(client.handshake_flags & ~3 == 0, "unknown handshake flags")


def listing(wire):
    with wire.raw() as client:
        expect(client.list() == [NAME], f"LIST says {client.list()}")
        replies = client.option(nbd.OPT_LIST, b"data")
        expect(replies[-1][0] == nbd.REP_ERR_INVALID, f"LIST with data: {replies}")
        expect(client.list() == [NAME], "LIST after a bad LIST")


def info(wire):
    with wire.raw() as client:
        for name in ("", NAME):
            expect(client.info(nbd.OPT_INFO, name) == nbd.REP_ACK, f"INFO {name!r}")
            expect(client.size == SIZE, f"size {client.size}")
        minimum, preferred, maximum = client.block_sizes
        for size in (minimum, preferred):
            expect(size and size & (size - 1) == 0, f"{size} is no power of 2")
        expect(
            minimum <= 65536 and preferred >= max(minimum, 512) and maximum >= max(preferred, MIB),
            f"block sizes {client.block_sizes}",
        )
        first = (client.size, client.flags, client.block_sizes)
        expect(client.info(nbd.OPT_GO, NAME) == nbd.REP_ACK, "GO after INFO")
        expect(
            first == (client.size, client.flags, client.block_sizes),
            "GO says something other than INFO",
        )


def info_details(wire):
    """The requests for information are optional, and unknown ones are ignored."""
    with wire.raw() as client:
        infos = (nbd.INFO_NAME, nbd.INFO_DESCRIPTION, nbd.INFO_BLOCK_SIZE, 999)
        expect(client.info(nbd.OPT_INFO, "", infos) == nbd.REP_ACK, "INFO with unknown requests")
        expect(client.info(nbd.OPT_INFO, NAME, ()) == nbd.REP_ACK, "INFO without requests")
        replies = client.option(nbd.OPT_INFO, client.info_request("", (nbd.INFO_NAME,)))
        names = [data[2:].decode() for kind, data in replies[:-1] if data[:2] == b"\0\1"]
        expect(names in ([], [NAME]), f"canonical name {names}")


def info_malformed(wire):
    with wire.raw() as client:
        for what, data in (
            ("empty", b""),
            ("5 bytes", b"\0" * 5),
            ("name too long", struct.pack(">I", 100) + b"abc\0\0"),
            ("name of 4 GiB", struct.pack(">I", 0xFFFFFFFF) + b"\0\0"),
            ("too few requests", struct.pack(">IHH", 0, 3, 1)),
            ("bytes left over", struct.pack(">IHH", 0, 0, 1)),
        ):
            for option in (nbd.OPT_INFO, nbd.OPT_GO):
                replies = client.option(option, data)
                expect(replies[-1][0] == nbd.REP_ERR_INVALID, f"{what}: {replies[-1][0]:#x}")
        expect(client.list() == [NAME], "LIST afterwards")


def unknown_export(wire):
    with wire.raw() as client:
        for option in (nbd.OPT_INFO, nbd.OPT_GO):
            for name in ("nothing", "disk.im", "disk.img2", "DISK.IMG", "../disk.img", "\u00e9"):
                final = client.info(option, name)
                expect(final == nbd.REP_ERR_UNKNOWN, f"option {option} {name!r}: {final:#x}")
        client.go(NAME)
        client.read(0, PAGE)


def unknown_options(wire):
    with wire.raw() as client:
        for option, data in (
            (4, b""),
            (nbd.OPT_STARTTLS, b""),
            (77, b"x" * 1000),
            (0xFFFFFFFF, b"\0"),
            (0, b""),
        ):
            replies = client.option(option, data)
            expect(len(replies) == 1, f"option {option}: {replies}")
            expect(
                replies[0][0] in (nbd.REP_ERR_UNSUP, nbd.REP_ERR_POLICY),
                f"option {option}: {replies}",
            )
        client.start()
        client.read(0, PAGE)


def abort(wire):
    with wire.raw() as client:
        expect(client.option(nbd.OPT_ABORT)[-1][0] == nbd.REP_ACK, "ABORT is not acknowledged")
        expect(client.closed_by_server(), "the connection is still open after ABORT")
    with wire.raw() as client:
        expect(
            client.option(nbd.OPT_ABORT, b"bye")[-1][0] == nbd.REP_ACK,
            "ABORT with data is not acknowledged",
        )
    with wire.raw() as client:
        client.send_option(nbd.OPT_ABORT)
    wire.alive()


def export_name(wire):
    for flags in (nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES, nbd.FIXED_NEWSTYLE, nbd.NO_ZEROES, 0):
        for name in ("", NAME):
            with wire.raw(flags=flags) as client:
                client.export_name(name)
                expect(
                    client.size == SIZE and client.flags & nbd.HAS_FLAGS,
                    f"flags {flags}: {client.size}",
                )
                expect(not client.flags & nbd.SEND_DF, "DF without structured replies")
                client.write(0, pattern(PAGE, flags))
                expect(client.read(0, PAGE) == pattern(PAGE, flags), "data")
    with wire.raw() as client:
        client.send_option(nbd.OPT_EXPORT_NAME, b"nothing")
        expect(client.closed_by_server(), "EXPORT_NAME of an unknown export must end the session")


def go_without_zeroes(wire):
    """After GO there are no reserved bytes, whatever the client flags say."""
    with wire.raw(flags=nbd.FIXED_NEWSTYLE) as client:
        client.go()
        client.read(0, PAGE)


def client_flags(wire):
    """An unknown client flag: the server must drop the connection."""
    with wire.raw(greet=False) as client:
        client.receive(18)
        client.send(struct.pack(">I", 0x80000003))
        try:
            client.send_option(nbd.OPT_LIST)
        except ConnectionError:
            pass
        expect(client.closed_by_server(), "unknown client flags were accepted")


def huge_option(wire):
    """An option longer than any sane one: an error, or the end of the connection, or the data is
    thrown away; but never memory for all of it.
    """
    kept = []
    options = (nbd.OPT_LIST, nbd.OPT_GO, 77, nbd.OPT_EXPORT_NAME, nbd.OPT_SET_META_CONTEXT)
    for option in options:
        client = wire.raw()
        kept.append(client)
        client.send_option(option, b"", length=0xFFFFFFFF)
        try:
            for _ in range(32):
                client.send(bytes(MIB))
            client.sock.settimeout(0.2)
            kind, _ = client.option_reply(option)
            expect(kind & nbd.REP_ERR, f"option {option} of 4 GiB: {kind:#x}")
        except (ConnectionError, TimeoutError, socket.timeout):
            pass
    limit = CACHE + 64 * MIB
    used = wire.server.memory()
    expect(used <= limit, f"{used / MIB:.0f} MiB are resident")
    for client in kept:
        client.sock.close()
    with wire.raw() as client:
        data = struct.pack(">I", 70000) + b"n" * 70000 + struct.pack(">H", 0)
        try:
            client.send_option(nbd.OPT_GO, data)
            kind, _ = client.option_reply(nbd.OPT_GO)
            expect(kind & nbd.REP_ERR, f"GO with a name of 70000 bytes: {kind:#x}")
            expect(client.list() == [NAME], "LIST afterwards")
        except ConnectionError:
            pass
    wire.alive()


def bad_option_magic(wire):
    with wire.raw() as client:
        client.send(struct.pack(">QII", 0x1234, nbd.OPT_LIST, 0))
        expect(client.closed_by_server(), "a wrong option magic was accepted")
    with wire.raw(greet=False) as client:
        client.send(os.urandom(4096))
        expect(client.closed_by_server(), "noise was accepted")
    wire.alive()


def structured_reply(wire):
    with wire.raw() as client:
        replies = client.option(nbd.OPT_STRUCTURED_REPLY, b"x")
        expect(replies[-1][0] == nbd.REP_ERR_INVALID, f"STRUCTURED_REPLY with data: {replies}")
        client.use_structured()
        replies = client.option(nbd.OPT_STRUCTURED_REPLY)
        expect(
            replies[-1][0] in (nbd.REP_ACK, nbd.REP_ERR_INVALID),
            f"a second STRUCTURED_REPLY: {replies}",
        )
        client.go()
        expect(client.flags & nbd.SEND_DF, "no DF with structured replies")
        client.read(0, PAGE)


def meta_context(wire):
    with wire.raw() as client:
        _, final = client.meta(nbd.OPT_SET_META_CONTEXT, "", [BASE])
        expect(
            final == nbd.REP_ERR_INVALID, f"SET_META_CONTEXT before structured replies: {final:#x}"
        )
        client.use_structured()
        for queries, wanted in (
            ([], [BASE, CACHED]),
            ([BASE], [BASE]),
            (["base:"], [BASE]),
            (["forebay:"], [CACHED]),
            (["x-no:thing"], []),
            (["base:nothing"], []),
            (["x-no:thing", BASE], [BASE]),
        ):
            contexts, final = client.meta(nbd.OPT_LIST_META_CONTEXT, NAME, queries)
            expect(
                final == nbd.REP_ACK and list(contexts) == wanted,
                f"LIST_META_CONTEXT {queries}: {contexts}",
            )
        for queries, wanted in (
            ([], []),
            ([BASE], [BASE]),
            (["base:"], []),
            (["base:nothing"], []),
            (["x-no:thing", BASE], [BASE]),
            ([BASE, BASE], [BASE]),
            ([CACHED, BASE], [BASE, CACHED]),
        ):
            contexts, final = client.meta(nbd.OPT_SET_META_CONTEXT, "", queries)
            expect(
                final == nbd.REP_ACK and list(contexts) == wanted,
                f"SET_META_CONTEXT {queries}: {contexts}",
            )
        _, final = client.meta(nbd.OPT_SET_META_CONTEXT, "nothing", [BASE])
        expect(final == nbd.REP_ERR_UNKNOWN, f"SET_META_CONTEXT of an unknown export: {final:#x}")
        for what, data in (
            ("empty", b""),
            ("name too long", struct.pack(">I", 9) + b"x"),
            ("query too long", struct.pack(">III", 0, 1, 100) + b"base:"),
            ("too few queries", struct.pack(">III", 0, 2, 5) + b"base:"),
            ("4 Gi queries", struct.pack(">II", 0, 0xFFFFFFFF)),
            ("bytes left over", struct.pack(">II", 0, 0) + b"x"),
        ):
            final = client.option(nbd.OPT_SET_META_CONTEXT, data)[-1][0]
            expect(final == nbd.REP_ERR_INVALID, f"SET_META_CONTEXT, {what}: {final:#x}")
        client.go()
        reply = client.call(nbd.CMD_BLOCK_STATUS, 0, PAGE)
        expect(
            reply.error == nbd.EINVAL,
            f"block status after a failed SET_META_CONTEXT: {reply.error}",
        )


def meta_context_of_another(wire):
    """A context that was set for one name counts for the other name of the same export, or not at
    all: no crash."""
    with wire.raw() as client:
        client.use_structured()
        client.meta(nbd.OPT_SET_META_CONTEXT, "", [BASE])
        client.go(NAME)
        reply = client.call(nbd.CMD_BLOCK_STATUS, 0, PAGE)
        expect(reply.error in (0, nbd.EINVAL), f"error {reply.error}")
        client.read(0, PAGE)


def transmission_flags(wire):
    with wire.client() as client:
        wanted = {
            "HAS_FLAGS": nbd.HAS_FLAGS,
            "FLUSH": nbd.SEND_FLUSH,
            "FUA": nbd.SEND_FUA,
            "TRIM": nbd.SEND_TRIM,
            "WRITE_ZEROES": nbd.SEND_WRITE_ZEROES,
            "DF": nbd.SEND_DF,
            "MULTI_CONN": nbd.CAN_MULTI_CONN,
            "CACHE": nbd.SEND_CACHE,
            "FAST_ZERO": nbd.SEND_FAST_ZERO,
        }
        missing = [name for name, bit in wanted.items() if not client.flags & bit]
        expect(not missing, f"not offered: {missing}")
        expect(not client.flags & nbd.READ_ONLY, "read-only")


STEPS = [
    greeting,
    listing,
    info,
    info_details,
    info_malformed,
    unknown_export,
    unknown_options,
    abort,
    export_name,
    go_without_zeroes,
    client_flags,
    huge_option,
    bad_option_magic,
    structured_reply,
    meta_context,
    meta_context_of_another,
    transmission_flags,
]


main(lambda directory: run_cases(directory, STEPS))
