#!/usr/bin/env python3
"""An image that grows while it is served: `forebay tune --resize`, and what clients that are connected, clients
that come, virtual machines, and a server that is killed and comes back with --warm see of it."""

import errno
import os
import socket
import struct

import nbd
from lib import KIB, MIB, PAGE, Cases, Server, expect, main, program, run, sparse_file

OLD = 2 * MIB + 1536  # ends inside a page
NEW = 5 * MIB + 512
NAME = "disk.img"


def tune(server, *arguments, where=None):
    return run(program(), "tune", where or server.stat_address, *arguments, check=False)


def resize(server, *arguments):
    done = tune(server, "--resize", *arguments)
    expect(done.returncode == 0 and not done.stderr, f"--resize: {done.stderr}")


def refused(server, arguments, said, where=None):
    done = tune(server, *arguments, where=where)
    expect(done.returncode == 1 and said in done.stderr, f"{arguments}: {done.stderr!r}")
    expect(done.stderr.count("\n") == 1, f"{arguments}: {done.stderr!r}")


def size_of(server, name=NAME):
    with nbd.Client(server.address) as client:
        expect(client.info(nbd.OPT_INFO, name) == nbd.REP_ACK, "INFO")
        return client.size


class FrontEnd:
    """As much of a virtual machine as asks for the size, and wants to be told of another."""

    GET_CONFIG, SET_PROTOCOL_FEATURES, SET_BACKEND_REQ_FD = 24, 16, 21

    def __init__(self, path, room=True):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(path)
        self.told, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.told.settimeout(60)
        if not room:
            server_end.setblocking(False)
            try:
                while True:
                    server_end.send(bytes(4096))
            except BlockingIOError:
                pass
            server_end.setblocking(True)
        self.say(self.SET_PROTOCOL_FEATURES, struct.pack("<Q", 1 << 5 | 1 << 9))
        header = struct.pack("<III", self.SET_BACKEND_REQ_FD, 1, 0)
        socket.send_fds(self.socket, [header], [server_end.fileno()])
        server_end.close()

    def say(self, request, payload):
        self.socket.sendall(struct.pack("<III", request, 1, len(payload)) + payload)

    def capacity(self):
        self.say(self.GET_CONFIG, struct.pack("<III", 0, 60, 0) + bytes(60))
        head = self.socket.recv(12, socket.MSG_WAITALL)
        config = self.socket.recv(struct.unpack("<III", head)[2], socket.MSG_WAITALL)
        return struct.unpack_from("<Q", config, 12)[0] * 512

    def wait_until_told(self):
        message = self.told.recv(12, socket.MSG_WAITALL)
        expect(struct.unpack("<III", message) == (2, 1, 0), f"told {message!r}")

    def close(self):
        self.socket.close()
        self.told.close()


def used_beyond(client, model):
    """Reads and writes across the old end and up to the new one, against `model`."""
    for at, length in ((OLD - 3 * KIB, 6 * KIB), (OLD + 512, PAGE), (NEW - MIB, MIB), (NEW - 512, 512)):
        data = os.urandom(length)
        client.write(at, data)
        model[at : at + length] = data
    for at in range(0, NEW, MIB):
        length = min(MIB, NEW - at)
        expect(client.read(at, length) == model[at : at + length], f"wrong data at {at}")


def grown_under_clients(cases, directory):
    image = sparse_file(os.path.join(directory, NAME), OLD)
    other = sparse_file(os.path.join(directory, "other.img"), OLD)
    door = os.path.join(directory, "vm.sock")
    model = bytearray(NEW)
    with Server(image, other, cache="8M", options=["--vhost-user", door]) as server:
        client = server.client(NAME)
        front_end = FrontEnd(door)
        with cases.case("before: the old size for everybody"):
            data = os.urandom(4 * KIB)
            client.write(OLD - len(data), data)  # waits in the last page, which is short
            model[OLD - len(data) : OLD] = data
            os.truncate(image, NEW)
            with open(image, "r+b") as file:  # what lies behind the end is not always zeros
                file.seek(OLD)
                model[OLD : OLD + 64 * KIB] = tail = os.urandom(64 * KIB)
                file.write(tail)
            expect(size_of(server) == OLD and front_end.capacity() == OLD, "it grows by itself")
            reply = client.call(nbd.CMD_READ, OLD, 512)
            expect(reply.error == errno.EINVAL, f"a read behind the end: {reply.error}")
            expect(client.read(OLD - 512, 512) == model[OLD - 512 : OLD], "the last block")
        with cases.case("what cannot be is refused in a line"):
            refused(server, ["--resize", "nothing"], "no export of that name")
            os.truncate(other, OLD - 512)
            refused(server, ["--resize", "other.img"], "smaller than")
            expect(size_of(server, "other.img") == OLD, "the other is smaller")
            os.truncate(other, OLD)
        with cases.case("after: all of it, without a reconnect"):
            resize(server, NAME)
            expect(size_of(server) == NEW and size_of(server, "other.img") == OLD, "sizes")
            expect(f"{NAME}: {NEW} bytes now" in server.stderr(), server.stderr())
            used_beyond(client, model)
            reply = client.call(nbd.CMD_READ, NEW, 512)
            expect(reply.error == errno.EINVAL, f"a read behind the new end: {reply.error}")
            shown = run("nbdinfo", "--size", server.uri(NAME)).stdout.strip()
            expect(shown == str(NEW), f"nbdinfo says {shown}")
        with cases.case("a virtual machine is told"):
            front_end.wait_until_told()
            expect(front_end.capacity() == NEW, "capacity")
            front_end.close()
        with cases.case("one that does not listen holds nobody up"):
            front_end = FrontEnd(door, room=False)
            expect(front_end.capacity() == NEW, "capacity")
            os.truncate(image, NEW + 700)  # a block and something, which is not served
            resize(server)
            expect(size_of(server) == NEW + 512 == front_end.capacity(), "size")
            front_end.close()
            resize(server)  # nothing to do
        client.flush()
        client.disconnect()
        expect(server.stop() == 0, "status")
    with cases.case("what was written is in the image"):
        with open(image, "rb") as file:
            expect(file.read(NEW) == model, "the image is not what was written")


def grown_and_killed(cases, directory):
    image = sparse_file(os.path.join(directory, NAME), OLD)
    model = bytearray(NEW)
    options = ["--warm", f"/dev/shm/forebay-test-{os.getpid()}-resize"]
    try:
        with cases.case("--warm: killed after it has grown, and back with all of it"):
            server = Server(image, cache="8M", options=options)
            try:
                with server.client() as client:
                    client.read(OLD - 512, 512)
                    os.truncate(image, NEW)
                    resize(server)
                    used_beyond(client, model)
            finally:
                server.kill()
            with Server(image, cache="8M", options=options) as again:
                with again.client() as client:
                    for at in range(0, NEW, MIB):
                        length = min(MIB, NEW - at)
                        expect(client.read(at, length) == model[at : at + length], f"at {at}")
                    client.disconnect()
    finally:
        if os.path.exists(options[1]):
            os.unlink(options[1])


def block_device(cases, directory):
    path = sparse_file(os.path.join(directory, "under.img"), 4 * MIB)
    found = run("losetup", "--find", "--show", path, check=False)
    if found.returncode:
        return
    name = found.stdout.strip()
    try:
        with cases.case("a block device that has grown"):
            with Server(name, cache="8M") as server, server.client() as client:
                os.truncate(path, 8 * MIB)
                run("losetup", "--set-capacity", name)
                resize(server)
                client.write(8 * MIB - PAGE, b"x" * PAGE)
                client.flush()
                client.disconnect()
                expect(size_of(server, os.path.basename(name)) == 8 * MIB, "size")
            with open(path, "rb") as file:
                file.seek(8 * MIB - PAGE)
                expect(file.read() == b"x" * PAGE, "what was written")
    finally:
        run("losetup", "--detach", name)


def test(directory):
    cases = Cases()
    grown_under_clients(cases, directory)
    grown_and_killed(cases, directory)
    block_device(cases, directory)
    cases.finish()


main(test)
