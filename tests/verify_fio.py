#!/usr/bin/env python3
# ctest: processors=2
"""fio writes, reads and verifies 4 KiB to 256 KiB at random, queue depth 32, on an image 8 times
the cache.

Each pass mixes writes with plain reads and with verifying reads of what was written 64 blocks ago,
and reads everything back at its end. Then the server is restarted and fio verifies the same blocks
again through it, and once more in the image file itself.
"""

import os
import re
import threading

from lib import MIB, Failure, Server, expect, main, need, run, say, sparse_file

IMAGE = 256 * MIB
CACHE = "32M"


def fio(name, target, jobs, extra=(), check=True):
    share = IMAGE // jobs
    options = [
        "--rw=randwrite",
        "--verify=crc32c",
        "--bsrange=4k-256k",
        "--bs_unaligned=0",
        "--randrepeat=1",
        "--random_generator=tausworthe64",
        f"--numjobs={jobs}",
        f"--size={share}",
        f"--offset_increment={share}",
        "--verify_fatal=1",
        "--verify_dump=0",
        "--verify_state_save=0",
        "--group_reporting=1",
        "--thread=1",
    ]
    done = run("fio", f"--name={name}", *options, *target, *extra, check=check)
    text = done.stdout + done.stderr
    if check:
        expect(
            "verify:" not in text and "error" not in text.replace("errors", ""),
            f"fio {name}:\n{text}",
        )
    return done.returncode, text


def over_nbd(server, depth):
    return ["--ioengine=nbd", f"--uri={server.uri()}", f"--iodepth={depth}"]


def moved(text):
    """(bytes read, bytes written) as fio tells them."""
    units = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
    found = {}
    for key, number, unit in re.findall(
        r"^ +(READ|WRITE): .*? io=([\d.]+)(\w+) ", text, re.MULTILINE
    ):
        found[key] = float(number) * units[unit]
    return found.get("READ", 0), found.get("WRITE", 0)


class Watch:
    """Looks, while it is entered, how many parts of a process's memory can be neither read nor
    written: `before`, and `most` at any later moment."""

    def __init__(self, pid):
        self.pid = pid
        self.before = self.most = self.count()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.look)

    def count(self):
        with open(f"/proc/{self.pid}/maps") as file:
            return sum(line.split()[1] == "---p" for line in file)

    def look(self):
        while not self.ended.wait(0.001):
            self.most = max(self.most, self.count())

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()


def test(directory):
    need("fio")
    engines = run("fio", "--enghelp").stdout
    expect("nbd" in engines.split(), "this fio has no nbd engine")
    for mode, jobs, threads, guard in (
        ("--write-back", 1, 1, False),
        ("--write-back", 4, 2, True),
        ("--write-through", 4, 1, False),
    ):
        image = sparse_file(os.path.join(directory, "disk.img"), IMAGE)
        # Every transfer is checked to be of mapped memory, and the server's own stray access to a
        # page that the disk has ends it.
        os.environ["FOREBAY_DMA_GUARD"] = "*" if guard else ""
        with Server(image, cache=CACHE, options=[mode, "--threads", threads]) as server:
            _, text = fio(
                "write", over_nbd(server, 32), jobs, ["--verify_backlog=64", "--end_fsync=1"]
            )
            read, written = moved(text)
            expect(
                written > 0.98 * IMAGE and read > 0.98 * IMAGE,
                f"fio moved too little: {read} {written}\n{text}",
            )
            mixed = ["--rw=randrw", "--rwmixread=40", "--randseed=77", "--io_size=32M"]
            # Who looks may get no CPU while memory is protected; but not each time.
            for _ in range(5):
                with Watch(server.process.pid) as watch:
                    fio("mix", over_nbd(server, 32), jobs, mixed)
                if not guard or watch.most > watch.before + 2:
                    break
            else:
                raise Failure(f"protected parts of memory: {watch.before} before, {watch.most} under load")
            # The mix has changed blocks; the pass that the restart is to verify comes last.
            fio("again", over_nbd(server, 32), jobs, ["--do_verify=0"])
        with Server(image, cache=CACHE) as server:
            _, text = fio("again", over_nbd(server, 32), jobs, ["--verify_only=1"])
            read, written = moved(text)
            expect(
                read > 0.98 * IMAGE and written == 0,
                f"fio verified too little: {read} {written}\n{text}",
            )
        fio("again", ["--ioengine=psync", f"--filename={image}"], jobs, ["--verify_only=1"])
        say(f"{mode}, {jobs} connection(s), {threads} thread(s){', guarded' if guard else ''}: no mismatch")
    # The same check must see a single wrong byte.
    with open(image, "r+b") as file:
        file.seek(IMAGE // 3 + 1234)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    with Server(image, cache=CACHE) as server:
        status, text = fio("again", over_nbd(server, 32), jobs, ["--verify_only=1"], check=False)
        expect(status != 0, f"fio did not see a flipped bit:\n{text}")


main(test)
