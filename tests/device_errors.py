#!/usr/bin/env python3
"""A device that fails: the client gets the error, the server goes on, the failed data is kept and
written later.

EIO comes from nbdkit's error filter, as a file through nbdfuse, and is there while a trigger file
exists. ENOSPC comes from a small file system that is full, until a file in it is deleted. Both need
root; what is missing is left out.
"""

import os
import shutil
import subprocess
import time

import nbd
from lib import (
    KIB,
    MIB,
    PAGE,
    PATIENCE,
    Cases,
    Cleanup,
    Server,
    Skip,
    die_with_parent,
    expect,
    loop_device,
    main,
    need,
    need_device,
    need_root,
    run,
    say,
    sparse_file,
    wait_for,
)

SIZE = 32 * MIB


class Failing:
    """A file whose reads or writes fail with EIO as long as they are told to."""

    def __init__(self, directory, cleanup):
        self.backing = sparse_file(os.path.join(directory, "backing.img"), SIZE)
        self.read_trigger = os.path.join(directory, "fail-reads")
        self.write_trigger = os.path.join(directory, "fail-writes")
        mount = os.path.join(directory, "fuse")
        os.makedirs(mount, exist_ok=True)
        self.image = os.path.join(mount, "disk.img")
        pidfile = os.path.join(directory, "nbdfuse.pid")
        command = [
            "nbdfuse",
            "-P",
            pidfile,
            self.image,
            "[",
            "nbdkit",
            "--exit-with-parent",
            "--filter=error",
            "file",
            self.backing,
            "error=EIO",
            "error-pread-rate=100%",
            f"error-pread-file={self.read_trigger}",
            "error-pwrite-rate=100%",
            f"error-pwrite-file={self.write_trigger}",
            "error-zero-rate=100%",
            f"error-zero-file={self.write_trigger}",
            "error-trim-rate=100%",
            f"error-trim-file={self.write_trigger}",
            "]",
        ]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
        )
        cleanup.callback(process.wait, PATIENCE)
        cleanup.later("fusermount3", "-u", "-z", mount)
        wait_for(
            lambda: os.path.exists(pidfile) or process.poll() is not None, PATIENCE, "nbdfuse's mount"
        )
        if process.poll() is not None:
            raise Skip("nbdfuse cannot mount here")
        cleanup.callback(self.heal)

    def fail(self, trigger):
        open(trigger, "w").close()

    def heal(self):
        for trigger in (self.read_trigger, self.write_trigger):
            if os.path.exists(trigger):
                os.unlink(trigger)

    def holds(self, offset, data):
        with open(self.backing, "rb") as file:
            file.seek(offset)
            return file.read(len(data)) == data


def flushes(client, seconds=PATIENCE):
    """Flushes until it succeeds; the server retries in its own time."""
    end = time.monotonic() + seconds
    while True:
        error = client.call(nbd.CMD_FLUSH).error
        if error == 0:
            return
        expect(
            time.monotonic() < end,
            f"{seconds} s after the device is well again a flush still fails: {error}",
        )
        time.sleep(0.1)


def write_back(device):
    old, new = os.urandom(MIB), os.urandom(MIB)
    with Server(device.image, cache="16M") as server:
        client = server.client()
        client.write(0, old)
        client.write(8 * MIB, old)
        client.flush()
        expect(device.holds(0, old), "flushed data is not on the device")
        device.fail(device.write_trigger)
        client.write(0, new)
        for turn in range(3):
            error = client.call(nbd.CMD_FLUSH).error
            expect(error == nbd.EIO, f"flush {turn + 1} on a failing device: error {error}")
        with server.client() as second:
            error = second.call(nbd.CMD_FLUSH).error
            expect(error == nbd.EIO, f"a flush on another connection: error {error}")
            expect(second.read(0, MIB) == new, "the failed data is not kept")
        expect(client.read(0, MIB) == new, "the failed data is not kept")
        expect(client.read(8 * MIB, MIB) == old, "other data cannot be read")
        error = client.call(nbd.CMD_WRITE, 4 * MIB, PAGE, nbd.FUA, bytes(PAGE)).error
        expect(error == nbd.EIO, f"a FUA write on a failing device: error {error}")
        # Much traffic that wants the failed data's pages must not throw it away.
        for offset in range(9 * MIB, SIZE, MIB):
            client.read(offset, MIB)
        expect(client.read(0, MIB) == new, "the failed data has been evicted")
        device.heal()
        flushes(client)
        expect(
            device.holds(0, new),
            "the failed data has not been written after the device was well again",
        )
        expect(device.holds(8 * MIB, old), "data that was flushed earlier is lost")
        client.write(2 * MIB, old)
        client.flush()
        expect(device.holds(2 * MIB, old), "after the failure a write does not arrive")
        client.disconnect()


def write_through(device):
    data = os.urandom(64 * KIB)
    with Server(device.image, cache="16M", options=["--write-through"]) as server:
        client = server.client()
        client.write(0, data)
        expect(device.holds(0, data), "written through, but not on the device")
        device.fail(device.write_trigger)
        error = client.call(nbd.CMD_WRITE, 0, len(data), 0, os.urandom(64 * KIB)).error
        expect(error == nbd.EIO, f"a write on a failing device: error {error}")
        device.heal()
        client.write(0, data)
        flushes(client)
        expect(
            client.read(0, len(data)) == data and device.holds(0, data), "data after the failure"
        )
        client.disconnect()


def reads(device):
    data = os.urandom(MIB)
    with open(device.backing, "r+b") as file:
        file.seek(16 * MIB)
        file.write(data)
    with Server(device.image, cache="16M") as server:
        for structured in (True, False):
            client = server.client(structured=structured)
            device.fail(device.read_trigger)
            at = 16 * MIB + (0 if structured else 512 * KIB)
            error = client.call(nbd.CMD_READ, at, 64 * KIB).error
            expect(error == nbd.EIO, f"a read on a failing device: error {error}")
            client.write(PAGE, bytes(PAGE))
            device.heal()
            expect(
                client.read(at, 64 * KIB) == data[at - 16 * MIB :][: 64 * KIB],
                "data after a failed read",
            )
            client.disconnect()


def leaving(device):
    """With data that cannot be written the server leaves all the same, and does not claim that all
    is well."""
    with Server(device.image, cache="16M") as server:
        client = server.client()
        client.write(0, os.urandom(PAGE))
        device.fail(device.write_trigger)
        client.call(nbd.CMD_FLUSH)
        status = server.stop()
        expect(status > 0, f"exit status {status} although data was lost")
        expect(
            "forebay: " in server.stderr(),
            f"it does not say that data was lost: {server.stderr()!r}",
        )
        device.heal()


def no_space(directory):
    need("mkfs.ext4", "losetup")
    with Cleanup() as cleanup:
        backing = sparse_file(os.path.join(directory, "small.fs"), 96 * MIB)
        run("mkfs.ext4", "-q", "-F", "-m", "0", backing)
        mount = os.path.join(directory, "small")
        os.makedirs(mount)
        device = loop_device(cleanup, backing)
        run("mount", device, mount)
        cleanup.unmount_later(mount)
        image = sparse_file(os.path.join(mount, "disk.img"), SIZE)
        filler = os.path.join(mount, "filler")
        free = os.statvfs(mount).f_bavail * os.statvfs(mount).f_frsize
        run("fallocate", "--length", str(free - 8 * MIB), filler)
        data = os.urandom(20 * MIB)
        with Server(image, cache="32M") as server:
            client = server.client()
            client.write(24 * MIB, data[:MIB])
            client.flush()
            accepted = []
            for offset in range(0, len(data), MIB):
                # The write itself may tell, if the server sees it coming; the flush must.
                error = client.call(
                    nbd.CMD_WRITE, offset, MIB, 0, data[offset : offset + MIB]
                ).error
                expect(error in (0, nbd.ENOSPC), f"a write to a full file system: error {error}")
                if error == 0:
                    accepted.append(offset)
            expect(accepted, "nothing was accepted")
            error = client.call(nbd.CMD_FLUSH).error
            expect(error == nbd.ENOSPC, f"a flush on a full file system: error {error}")
            expect(client.read(24 * MIB, MIB) == data[:MIB], "data that was flushed is lost")
            os.unlink(filler)
            flushes(client)
            client.disconnect()
        with open(image, "rb") as file:
            for offset in accepted:
                file.seek(offset)
                kept = file.read(MIB) == data[offset : offset + MIB]
                expect(
                    kept,
                    f"what was accepted at {offset} and found no space is not there afterwards",
                )
            file.seek(24 * MIB)
            expect(file.read(MIB) == data[:MIB], "data that was flushed is lost")


def test(directory):
    need_root()
    cases = Cases()
    missing = [name for name in ("nbdkit", "nbdfuse", "fusermount3") if not shutil.which(name)]
    if missing or not os.path.exists("/dev/fuse"):
        say(f"left out: EIO: {missing or '/dev/fuse'} is missing")
    else:
        for step in (write_back, write_through, reads, leaving):
            with cases.case(f"EIO: {step.__name__}"), Cleanup() as cleanup:
                place = os.path.join(directory, step.__name__)
                os.makedirs(place)
                step(Failing(place, cleanup))
    need_device("/dev/loop-control")
    with cases.case("ENOSPC"):
        no_space(directory)
    cases.finish()


main(test)
