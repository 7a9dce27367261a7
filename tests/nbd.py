"""A small NBD client on the wire, for tests that need more, or worse, than a well-behaved client
sends.

`Client` blocks and shows every message; it makes no attempt to be polite, so hostile requests can
be put together from the same parts. `AsyncClient` keeps many requests in flight from one thread
(asyncio), for load. Both speak fixed newstyle with simple or structured replies and
base:allocation. Offsets and lengths are in bytes. A broken connection is a ConnectionError, an
error from the server is an `NbdError`, a breach of the protocol by the server a `Breach`.
"""

import asyncio
import os
import socket
import struct
import time

# Seconds that a test waits for what must come: a machine with other work may stall a process for
# several, and a limit near them would judge the machine. What never comes is seen all the same.
PATIENCE = 60

NBDMAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF

# Handshake flags.
FIXED_NEWSTYLE, NO_ZEROES = 1, 2

# Options.
OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_STARTTLS, OPT_INFO, OPT_GO = 1, 2, 3, 5, 6, 7
OPT_STRUCTURED_REPLY, OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT = 8, 9, 10

# Option replies.
REP_ACK, REP_SERVER, REP_INFO, REP_META_CONTEXT = 1, 2, 3, 4
REP_ERR = 1 << 31
REP_ERR_UNSUP, REP_ERR_POLICY, REP_ERR_INVALID = REP_ERR + 1, REP_ERR + 2, REP_ERR + 3
REP_ERR_UNKNOWN, REP_ERR_TOO_BIG = REP_ERR + 6, REP_ERR + 9

INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE = 0, 1, 2, 3

# Transmission flags.
HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA = 1, 2, 4, 8
SEND_TRIM, SEND_WRITE_ZEROES, SEND_DF, CAN_MULTI_CONN = 1 << 5, 1 << 6, 1 << 7, 1 << 8
SEND_CACHE, SEND_FAST_ZERO = 1 << 10, 1 << 11

# Commands and their flags.
CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_CACHE = 0, 1, 2, 3, 4, 5
CMD_WRITE_ZEROES, CMD_BLOCK_STATUS = 6, 7
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16

# Structured reply chunks.
CHUNK_NONE, CHUNK_DATA, CHUNK_HOLE, CHUNK_STATUS = 0, 1, 2, 5
CHUNK_ERROR, CHUNK_ERROR_OFFSET = 0x8001, 0x8002
DONE = 1
STATE_HOLE, STATE_ZERO = 1, 2

EPERM, EIO, ENOMEM, EINVAL, ENOSPC = 1, 5, 12, 22, 28
EOVERFLOW, ENOTSUP, ESHUTDOWN = 75, 95, 108

_REQUEST = struct.Struct(">IHHQQI")
_CHUNK = struct.Struct(">HHQI")


class NbdError(Exception):
    """The server answered a request with an error value."""

    def __init__(self, error):
        super().__init__(f"NBD error {error}")
        self.error = error


class Breach(Exception):
    """The server broke the protocol."""


def request(command, offset, length, flags=0, cookie=1, payload=b"", magic=REQUEST_MAGIC):
    """The bytes of one request."""
    return _REQUEST.pack(magic, flags, command, cookie, offset, length) + payload


def connect(address, timeout=PATIENCE):
    """A connected stream socket. `address` is the path of a unix socket or a (host, port) pair."""
    if isinstance(address, (str, os.PathLike)):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout)
        end = time.monotonic() + timeout
        while True:
            try:
                sock.connect(os.fspath(address))
                return sock
            except BlockingIOError:  # The queue of the listening socket is full.
                if time.monotonic() > end:
                    raise
                time.sleep(0.005)
    sock = socket.create_connection(address, timeout)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class Reply:
    """What came back for one request: error (0 = success), data of a read, extents of a block
    status, raw chunks."""

    def __init__(self, cookie):
        self.cookie = cookie
        self.error = 0
        self.data = None
        self.extents = {}  # context id -> [(length, flags), ...]
        self.chunks = []  # (type, offset, length) in the order of arrival
        self.simple = False

    def check(self):
        if self.error:
            raise NbdError(self.error)
        return self


class _Assembly:
    """Puts the chunks of a structured reply together and holds the server to their rules."""

    def __init__(self, cookie, command, offset, length, flags):
        self.reply = Reply(cookie)
        self.command, self.offset, self.length, self.flags = command, offset, length, flags
        self.covered = 0
        self.spans = []

    def content(self, offset, length):
        if self.command != CMD_READ:
            raise Breach("a content chunk in the reply to something other than a read")
        if self.reply.data is None:
            self.reply.data = bytearray(self.length)
        if length == 0 or offset < self.offset or offset + length > self.offset + self.length:
            raise Breach(
                f"content chunk {offset}+{length} outside of read {self.offset}+{self.length}"
            )
        for start, end in self.spans:
            if offset < end and start < offset + length:
                raise Breach("content chunks overlap")
        if self.flags & DF and self.spans:
            raise Breach("more than one content chunk although DF was set")
        self.spans.append((offset, offset + length))
        self.covered += length

    def chunk(self, kind, payload):
        reply = self.reply
        if kind == CHUNK_NONE:
            if payload:
                raise Breach("a NONE chunk with a payload")
            reply.chunks.append((kind, 0, 0))
        elif kind == CHUNK_DATA:
            if len(payload) < 9:
                raise Breach("a data chunk without data")
            (offset,) = struct.unpack_from(">Q", payload)
            self.content(offset, len(payload) - 8)
            at = offset - self.offset
            reply.data[at : at + len(payload) - 8] = memoryview(payload)[8:]
            reply.chunks.append((kind, offset, len(payload) - 8))
        elif kind == CHUNK_HOLE:
            if len(payload) != 12:
                raise Breach("a hole chunk that is not 12 bytes long")
            offset, length = struct.unpack(">QI", payload)
            self.content(offset, length)
            reply.chunks.append((kind, offset, length))
        elif kind == CHUNK_STATUS:
            if self.command != CMD_BLOCK_STATUS:
                raise Breach("a status chunk in the reply to something else")
            if len(payload) < 12 or (len(payload) - 4) % 8:
                raise Breach(f"a status chunk of {len(payload)} bytes")
            (context,) = struct.unpack_from(">I", payload)
            if context in reply.extents:
                raise Breach("two status chunks for one context")
            extents = list(struct.iter_unpack(">II", payload[4:]))
            if any(length == 0 for length, _ in extents):
                raise Breach("an extent of length 0")
            if sum(length for length, _ in extents[:-1]) >= self.length:
                raise Breach("extents before the last reach past the request")
            if self.flags & REQ_ONE and (len(extents) != 1 or extents[0][0] > self.length):
                raise Breach(f"REQ_ONE was answered with {extents[:3]}")
            reply.extents[context] = extents
            reply.chunks.append((kind, 0, len(payload)))
        elif kind & 0x8000:
            error, message = struct.unpack_from(">IH", payload)
            if error == 0:
                raise Breach("an error chunk with error 0")
            tail = 8 if kind == CHUNK_ERROR_OFFSET else 0
            if 6 + message + tail > len(payload):
                raise Breach("an error chunk whose message does not fit")
            reply.error = reply.error or error
            reply.chunks.append((kind, 0, len(payload)))
        else:
            raise Breach(f"unknown chunk type {kind}")

    def finish(self):
        reply = self.reply
        if self.command == CMD_READ:
            if not reply.error and self.covered != self.length:
                raise Breach(f"a read of {self.length} bytes got {self.covered}")
            reply.data = bytes(reply.data or b"")
        if self.command == CMD_BLOCK_STATUS and not reply.error and not reply.extents:
            raise Breach("a successful block status without extents")
        return reply


class Client:
    """One connection, blocking. The constructor has exchanged the greeting; what follows is up to
    the caller."""

    def __init__(self, address, timeout=PATIENCE, flags=FIXED_NEWSTYLE | NO_ZEROES, greet=True):
        self.sock = connect(address, timeout)
        self.structured = False
        self.size = None
        self.flags = None
        self.block_sizes = None  # (minimum, preferred, maximum payload)
        self.contexts = {}  # name -> id
        self.requests = {}  # cookie -> (command, offset, length, flags)
        self.assemblies = {}
        self.next_cookie = 1
        self.client_flags = flags
        if greet:
            self.greet(flags)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    # Bytes.

    def send(self, data):
        self.sock.sendall(data)

    def receive(self, count):
        parts = []
        while count:
            part = self.sock.recv(min(count, 1 << 20))
            if not part:
                raise ConnectionError("the server closed the connection")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def closed_by_server(self, timeout=PATIENCE):
        """True when the server has closed the connection, whatever it sent before."""
        self.sock.settimeout(timeout)
        try:
            while self.sock.recv(1 << 16):
                pass
            return True
        except ConnectionError:
            return True
        except (TimeoutError, socket.timeout):
            return False

    # Handshake.

    def greet(self, flags):
        magic, option_magic, self.handshake_flags = struct.unpack(">QQH", self.receive(18))
        if magic != NBDMAGIC or option_magic != IHAVEOPT:
            raise Breach(f"greeting with {magic:x} {option_magic:x}")
        self.send(struct.pack(">I", flags))

    def send_option(self, option, data=b"", length=None):
        self.send(
            struct.pack(">QII", IHAVEOPT, option, len(data) if length is None else length) + data
        )

    def option_reply(self, option):
        magic, echoed, kind, length = struct.unpack(">QIII", self.receive(20))
        if magic != OPTION_REPLY_MAGIC:
            raise Breach(f"option reply magic {magic:x}")
        if echoed != option:
            raise Breach(f"reply to option {echoed}, not {option}")
        if length > 1 << 16:
            raise Breach(f"option reply of {length} bytes")
        return kind, self.receive(length)

    def option(self, option, data=b""):
        """Sends an option and returns all replies to it as (type, data), the final one last."""
        self.send_option(option, data)
        replies = []
        while True:
            replies.append(self.option_reply(option))
            kind = replies[-1][0]
            if kind == REP_ACK or kind & REP_ERR:
                return replies

    def list(self):
        replies = self.option(OPT_LIST)
        if replies[-1][0] != REP_ACK:
            raise Breach(f"LIST ended with {replies[-1]}")
        names = []
        for kind, data in replies[:-1]:
            if kind != REP_SERVER:
                raise Breach(f"LIST was answered with type {kind}")
            (length,) = struct.unpack_from(">I", data)
            names.append(data[4 : 4 + length].decode())
        return names

    def use_structured(self):
        replies = self.option(OPT_STRUCTURED_REPLY)
        if replies != [(REP_ACK, b"")]:
            raise Breach(f"STRUCTURED_REPLY was answered with {replies}")
        self.structured = True
        return self

    @staticmethod
    def meta_query(export, queries):
        name = export.encode()
        data = struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries))
        for query in queries:
            data += struct.pack(">I", len(query)) + query.encode()
        return data

    def meta(self, option, export, queries):
        """LIST_META_CONTEXT or SET_META_CONTEXT; returns {name: id} and the type of the final
        reply."""
        replies = self.option(option, self.meta_query(export, queries))
        contexts = {}
        for kind, data in replies[:-1]:
            if kind != REP_META_CONTEXT:
                raise Breach(f"a meta context option was answered with type {kind}")
            contexts[data[4:].decode()] = struct.unpack_from(">I", data)[0]
        return contexts, replies[-1][0]

    @staticmethod
    def info_request(export, infos):
        name = export.encode()
        return (
            struct.pack(">I", len(name))
            + name
            + struct.pack(f">H{len(infos)}H", len(infos), *infos)
        )

    def info(self, option, export="", infos=(INFO_BLOCK_SIZE,)):
        """INFO or GO; returns the type of the final reply and keeps size, flags and block sizes."""
        replies = self.option(option, self.info_request(export, infos))
        for kind, data in replies[:-1]:
            if kind != REP_INFO:
                raise Breach(f"INFO/GO was answered with type {kind}")
            (what,) = struct.unpack_from(">H", data)
            if what == INFO_EXPORT:
                if len(data) != 12:
                    raise Breach("INFO_EXPORT is not 12 bytes long")
                _, self.size, self.flags = struct.unpack(">HQH", data)
            elif what == INFO_BLOCK_SIZE:
                if len(data) != 14:
                    raise Breach("INFO_BLOCK_SIZE is not 14 bytes long")
                self.block_sizes = struct.unpack(">HIII", data)[1:]
        return replies[-1][0]

    def go(self, export="", infos=(INFO_BLOCK_SIZE,)):
        final = self.info(OPT_GO, export, infos)
        if final != REP_ACK:
            raise Breach(f"GO {export!r} ended with {final:#x}")
        if self.size is None:
            raise Breach("GO without INFO_EXPORT")
        return self

    def start(self, export="", structured=True, allocation=True):
        """The usual handshake in one call."""
        if structured:
            self.use_structured()
            if allocation:
                self.contexts, _ = self.meta(OPT_SET_META_CONTEXT, export, ["base:allocation"])
        return self.go(export)

    def export_name(self, export=""):
        """EXPORT_NAME: straight to transmission."""
        self.send_option(OPT_EXPORT_NAME, export.encode())
        self.size, self.flags = struct.unpack(">QH", self.receive(10))
        if not self.client_flags & NO_ZEROES and self.receive(124) != bytes(124):
            raise Breach("the reserved bytes after EXPORT_NAME are not zero")
        return self

    # Transmission.

    def submit(self, command, offset=0, length=0, flags=0, payload=b""):
        """Sends one request and returns its cookie."""
        cookie = self.next_cookie
        self.next_cookie += 1
        self.requests[cookie] = (command, offset, length, flags)
        self.send(request(command, offset, length, flags, cookie, payload))
        return cookie

    def reply(self):
        """The next complete reply, whichever request it belongs to."""
        while True:
            (magic,) = struct.unpack(">I", self.receive(4))
            if magic == SIMPLE_REPLY_MAGIC:
                error, cookie = struct.unpack(">IQ", self.receive(12))
                command, _, length, _ = self.take(cookie)
                reply = Reply(cookie)
                reply.simple = True
                reply.error = error
                if command == CMD_READ:
                    if self.structured:
                        raise Breach("a simple reply to a read although replies are structured")
                    if not error:
                        reply.data = self.receive(length)
                return reply
            if magic != STRUCTURED_REPLY_MAGIC:
                raise Breach(f"reply magic {magic:x}")
            if not self.structured:
                raise Breach("a structured reply that was not negotiated")
            flags, kind, cookie, length = _CHUNK.unpack(self.receive(16))
            if length > (64 << 20):
                raise Breach(f"a chunk of {length} bytes")
            payload = self.receive(length)
            if cookie not in self.requests:
                raise Breach(f"a reply to the unknown cookie {cookie}")
            if cookie not in self.assemblies:
                self.assemblies[cookie] = _Assembly(cookie, *self.requests[cookie])
            assembly = self.assemblies[cookie]
            assembly.chunk(kind, payload)
            if kind == CHUNK_NONE and not flags & DONE:
                raise Breach("a NONE chunk without the DONE flag")
            if flags & DONE:
                del self.assemblies[cookie]
                self.take(cookie)
                return assembly.finish()

    def take(self, cookie):
        if cookie not in self.requests:
            raise Breach(f"a reply to the unknown cookie {cookie}")
        return self.requests.pop(cookie)

    def call(self, command, offset=0, length=0, flags=0, payload=b""):
        """One request and its reply; no other request may be in flight."""
        cookie = self.submit(command, offset, length, flags, payload)
        reply = self.reply()
        if reply.cookie != cookie:
            raise Breach("the reply belongs to another request")
        return reply

    def read(self, offset, length, flags=0):
        return self.call(CMD_READ, offset, length, flags).check().data

    def write(self, offset, data, flags=0):
        self.call(CMD_WRITE, offset, len(data), flags, data).check()

    def flush(self):
        self.call(CMD_FLUSH).check()

    def trim(self, offset, length, flags=0):
        self.call(CMD_TRIM, offset, length, flags).check()

    def zero(self, offset, length, flags=0):
        self.call(CMD_WRITE_ZEROES, offset, length, flags).check()

    def status(self, offset, length, flags=0):
        """The extents of base:allocation as [(length, flags), ...]."""
        reply = self.call(CMD_BLOCK_STATUS, offset, length, flags).check()
        return reply.extents[self.contexts["base:allocation"]]

    def disconnect(self):
        self.send(request(CMD_DISC, 0, 0))
        self.sock.close()


class AsyncClient:
    """One connection with any number of requests in flight, inside an asyncio event loop.

    A request that the death of the connection leaves unanswered ends with a ConnectionError.
    """

    @classmethod
    async def open(cls, address, export="", structured=True):
        self = cls()
        first = Client(address)
        first.start(export, structured, allocation=False)
        self.size, self.flags, self.block_sizes = first.size, first.flags, first.block_sizes
        self.structured = structured
        self.waiting = {}  # cookie -> (future, command, offset, length, flags)
        self.assemblies = {}
        self.next_cookie = 1
        self.broken = None
        first.sock.setblocking(False)
        self.reader, self.writer = await asyncio.open_connection(sock=first.sock, limit=4 << 20)
        self.receiver = asyncio.ensure_future(self._receive())
        return self

    async def _receive(self):
        try:
            while True:
                head = await self.reader.readexactly(16)
                (magic,) = struct.unpack_from(">I", head)
                if magic == SIMPLE_REPLY_MAGIC:
                    error, cookie = struct.unpack_from(">IQ", head, 4)
                    if cookie not in self.waiting:
                        raise Breach(f"a reply to the unknown cookie {cookie}")
                    future, command, _, length, _ = self.waiting.pop(cookie)
                    reply = Reply(cookie)
                    reply.error = error
                    if command == CMD_READ:
                        if self.structured:
                            raise Breach("a simple reply to a read although replies are structured")
                        if not error:
                            reply.data = await self.reader.readexactly(length)
                elif magic == STRUCTURED_REPLY_MAGIC and self.structured:
                    flags, kind, cookie, length = _CHUNK.unpack(
                        head[4:] + await self.reader.readexactly(4)
                    )
                    payload = await self.reader.readexactly(length) if length else b""
                    if cookie not in self.waiting:
                        raise Breach(f"a reply to the unknown cookie {cookie}")
                    assembly = self.assemblies.get(cookie)
                    if assembly is None:
                        assembly = _Assembly(cookie, *self.waiting[cookie][1:])
                        self.assemblies[cookie] = assembly
                    assembly.chunk(kind, payload)
                    if not flags & DONE:
                        continue
                    del self.assemblies[cookie]
                    future = self.waiting.pop(cookie)[0]
                    reply = assembly.finish()
                else:
                    raise Breach(f"reply magic {magic:x}")
                if not future.done():
                    future.set_result(reply)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            self._break(ConnectionError(f"the connection ended: {error}"))
        except Exception as error:  # A breach belongs to whoever waits.
            self._break(error)

    def _break(self, error):
        self.broken = error
        for entry in self.waiting.values():
            if not entry[0].done():
                entry[0].set_exception(error)
        self.waiting.clear()
        self.writer.close()

    async def call(self, command, offset=0, length=0, flags=0, payload=b""):
        if self.broken:
            raise self.broken
        if self.writer.transport.is_closing():
            raise ConnectionError("the connection has ended")
        cookie = self.next_cookie
        self.next_cookie += 1
        future = asyncio.get_running_loop().create_future()
        self.waiting[cookie] = (future, command, offset, length, flags)
        self.writer.write(request(command, offset, length, flags, cookie))
        if payload:
            self.writer.write(payload)
        return (await future).check()

    async def read(self, offset, length, flags=0):
        return (await self.call(CMD_READ, offset, length, flags)).data

    async def write(self, offset, data, flags=0):
        await self.call(CMD_WRITE, offset, len(data), flags, data)

    async def flush(self):
        await self.call(CMD_FLUSH)

    async def trim(self, offset, length, flags=0):
        await self.call(CMD_TRIM, offset, length, flags)

    async def zero(self, offset, length, flags=0):
        await self.call(CMD_WRITE_ZEROES, offset, length, flags)

    async def close(self):
        """Says goodbye; requests still in flight are answered or end with a ConnectionError."""
        if not self.broken:
            self.writer.write(request(CMD_DISC, 0, 0))
        await asyncio.wait([self.receiver], timeout=PATIENCE)
        self.writer.close()
