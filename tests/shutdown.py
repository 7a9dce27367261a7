#!/usr/bin/env python3
# ctest: processors=2
"""SIGTERM and SIGINT under load: exit status 0, every acknowledged byte on disk, the socket file
gone.

A flush at exit that takes longer than a second tells how far it is; the slow device for that is
nbdkit's memory with a delay, seen as a file through nbdfuse. That part needs root, /dev/fuse and
nbdkit, and is left out with a line where they are missing.
"""

import asyncio
import os
import random
import re
import shutil
import signal
import threading
import time

from journal import Journal, Load
from lib import KIB, MIB, PATIENCE, Cases, Cleanup, Server, expect, main, run, say, sparse_file, wait_for

IMAGE = 64 * MIB


def under_load(directory, number, threads):
    image = sparse_file(os.path.join(directory, f"{number.name}-{threads}.img"), IMAGE)
    journal = Journal(IMAGE, 4096)
    server = Server(image, cache="16M", options=["--threads", threads])
    with server:
        mix = {"write": 60, "read": 25, "zero": 8, "trim": 4, "fua": 3}
        load = Load(journal, connections=4, depth=8, mix=mix)
        end = lambda: server.process.send_signal(number)
        enough = lambda: load.done["write"] > 50
        asyncio.run(load.run_until(server.address, end, random.uniform(0.5, 1.2), enough))
        status = server.left()
        expect(status == 0, f"exit status {status}\n{server.stderr()}")
        expect(not os.path.exists(server.socket), "the socket file is still there")
    count, wrong = journal.judge_image(image, journal.acked)
    expect(load.done["write"] > 50, f"the load was too thin: {load.done}")
    expect(not wrong, f"{len(wrong)} of {count} units are wrong:\n" + "\n".join(wrong[:8]))


def idle(image):
    """With clients that are connected and silent the server leaves at once."""
    took = []
    # A machine may stall in one turn; a server that waits for its clients does so in each.
    while len(took) < 8 and min(took, default=3) >= 3:
        with Server(image, cache="16M") as server, server.client() as one, server.client() as two:
            one.read(0, 4096)
            two.write(0, bytes(4096))
            started = time.monotonic()
            status = server.stop(signal.SIGINT)
            took.append(time.monotonic() - started)
            expect(status == 0, f"exit status {status}")
            expect(not os.path.exists(server.socket), "the socket file is still there")
    expect(min(took) < 3, f"it took {took} s to leave with two silent clients")


def progress(directory):
    """A slow flush at exit shows progress, and ends with everything written."""
    for command in ("nbdkit", "nbdfuse", "fusermount3"):
        if not shutil.which(command):
            say(f"left out: progress of a slow flush: {command} is not installed")
            return
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        say("left out: progress of a slow flush: needs root and /dev/fuse")
        return
    size = 64 * MIB
    mount = os.path.join(directory, "slow")
    backing = sparse_file(os.path.join(directory, "slow.img"), size)
    os.mkdir(mount)
    with Cleanup() as cleanup:
        pidfile = os.path.join(directory, "nbdfuse.pid")
        command = [
            "nbdfuse",
            "-P",
            pidfile,
            os.path.join(mount, "disk.img"),
            "[",
            "nbdkit",
            "--exit-with-parent",
            "--threads",
            "1",
            "--filter=delay",
            "file",
            backing,
            "delay-write=100ms",
            "]",
        ]
        thread = threading.Thread(target=lambda: run(*command, check=False), daemon=True)
        thread.start()
        cleanup.callback(thread.join, PATIENCE)
        cleanup.later("fusermount3", "-u", "-z", mount)
        wait_for(lambda: os.path.exists(pidfile), PATIENCE, "the mount of the slow device")
        server = Server(os.path.join(mount, "disk.img"), cache="64M")
        with server:
            data = {}
            with server.client() as client:
                for index in range(
                    128
                ):  # Scattered, so that they cannot be merged into few large writes.
                    offset = index * 512 * KIB + 4096 * (index % 7)
                    data[offset] = os.urandom(4096)
                    client.write(offset, data[offset])
                client.disconnect()
            started = time.monotonic()
            status = server.stop(signal.SIGINT, seconds=2 * PATIENCE)
            took = time.monotonic() - started
            expect(status == 0, f"exit status {status}\n{server.stderr()}")
            shown = server.stderr() + server.stdout().split("\n", 1)[-1]
            expect(took > 1, f"the device was not slow enough to show anything: {took:.2f} s")
            steps = [int(number) for number in re.findall(r"(\d+) [KM]iB left", shown)]
            falling = len(set(steps)) > 2 and steps == sorted(steps, reverse=True)
            expect(falling, f"{took:.1f} s of writing back without progress shown: {shown!r}")
            say(f"a flush of {took:.1f} s said: {shown.strip()[:300]!r}")
    with open(backing, "rb") as file:
        for offset, expected in data.items():
            file.seek(offset)
            expect(file.read(4096) == expected, f"the block at {offset} is not on the slow device")


def test(directory):
    image = sparse_file(os.path.join(directory, "disk.img"), IMAGE)
    cases = Cases()
    for number in (signal.SIGTERM, signal.SIGINT):
        for threads in (1, 2):
            with cases.case(f"{number.name} under load, --threads {threads}"):
                under_load(directory, number, threads)
    with cases.case("SIGINT with silent clients"):
        idle(image)
    with cases.case("a slow flush shows progress"):
        progress(directory)
    cases.finish()


main(test)
