#!/usr/bin/env python3
"""--vhost-user from outside: the socket, the line that tells of it, the first messages of a front-end over it, NBD beside it,
and what is said of front-ends and options that make no sense. A guest is in guest.py, a driver in the unit tests."""

import os
import socket
import stat
import struct
import subprocess

from lib import MIB, PATIENCE, Cases, Server, expect, main, program, run, sparse_file, wait_for

GET_FEATURES, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM, GET_CONFIG = 1, 15, 17, 24
SIZE = 16 * MIB


def say(front_end, request, payload=b"", version=1):
    front_end.sendall(struct.pack("<III", request, version, len(payload)) + payload)


def ask(front_end, request, payload=b""):
    say(front_end, request, payload)
    head = front_end.recv(12, socket.MSG_WAITALL)
    expect(len(head) == 12, f"message {request}: no answer")
    answered, flags, size = struct.unpack("<III", head)
    expect((answered, flags) == (request, 5), f"message {request}: answer {answered}, flags {flags}")
    return front_end.recv(size, socket.MSG_WAITALL)


def connect(path):
    front_end = socket.socket(socket.AF_UNIX)
    front_end.settimeout(60)
    front_end.connect(path)
    return front_end


def capacity(front_end):
    config = ask(front_end, GET_CONFIG, struct.pack("<III", 0, 60, 0) + bytes(60))
    return struct.unpack_from("<Q", config, 12)[0] * 512


def test(directory):
    images = [sparse_file(os.path.join(directory, name), SIZE) for name in ("a.img", "b.img")]
    doors = [os.path.join(directory, name) for name in ("a.vhost", "b.vhost")]
    options = [word for door in doors for word in ("--vhost-user", door)]
    cases = Cases()
    with Server(*images, cache="16M", options=options) as server:
        with cases.case("both are told of, NBD as well"):
            for door in doors:
                expect(f"vhost-user:{door}" in server.stdout(), server.stdout())
                expect(stat.S_ISSOCK(os.stat(door).st_mode), f"{door} is no socket")
            with server.client() as client:
                client.read(0, 4096)
                client.disconnect()
        with cases.case("each is the disk of its image"):
            for door in doors:
                with connect(door) as front_end:
                    features = struct.unpack("<Q", ask(front_end, GET_FEATURES))[0]
                    for bit in (9, 11, 12, 13, 14, 28, 29, 30, 32, 34):
                        expect(features >> bit & 1, f"feature {bit} is not there: {features:#x}")
                    expect(ask(front_end, GET_PROTOCOL_FEATURES) != bytes(8), "no protocol features")
                    expect(ask(front_end, GET_QUEUE_NUM) == struct.pack("<Q", 16), "queues")
                    expect(capacity(front_end) == SIZE, "capacity")
        with cases.case("what makes no sense ends the connection, is told, and harms nobody"):
            with connect(doors[0]) as front_end, connect(doors[1]) as other:
                expect(capacity(other) == SIZE, "capacity")
                say(front_end, GET_FEATURES, version=3)
                expect(front_end.recv(1) == b"", "the connection goes on")
                expect(capacity(other) == SIZE, "capacity")
            wait_for(lambda: "vhost-user client of a.img" in server.stderr(), PATIENCE, "a line about it")
            with connect(doors[0]) as front_end:
                expect(capacity(front_end) == SIZE, "capacity")
        with cases.case("the sockets go with the server"):
            expect(server.stop() == 0, "status")
            expect(not any(map(os.path.exists, doors)), "a socket is left")
    with cases.case("more sockets than images"):
        done = run(program(), "serve", images[0], *options, check=False)
        expect(done.returncode == 1 and "more sockets than images" in done.stderr, done.stderr)
    with cases.case("without NBD, if only that is asked for"):
        with subprocess.Popen([program(), "serve", images[0], "--cache", "16M", "--vhost-user", doors[0]],
                              stdout=subprocess.PIPE, text=True, cwd=directory) as process:
            try:
                line = process.stdout.readline()
                expect("vhost-user:" in line and "nbd" not in line, line)
                expect(not os.path.exists(os.path.join(directory, "forebay.sock")), "an NBD socket")
            finally:
                process.terminate()
    cases.finish()


if __name__ == "__main__":
    main(test)
