"""Measures reads through the page cache that mostly miss: beside the device read at equal depth, fio, and pread through the
kernel's page cache with as much memory. bench/README.md says what each case means.

Samples alternate, round after round. All sides read at random places that differ from round to round.
"""

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import devices
from programs import Refused

GIB = 1 << 30
MIB = 1 << 20
FAST_BYTES = GIB
FAST_CACHE_MIB = 64
# A process's own memory, beside what it caches.
OWN_MIB = 48


@contextlib.contextmanager
def memory_limit(nbytes):
    """A memory cgroup of that size: the function that puts the calling process there."""
    root = Path("/sys/fs/cgroup")
    version2 = (root / "cgroup.controllers").exists()
    group = (root if version2 else root / "memory") / f"forebay-bench-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.max" if version2 else "memory.limit_in_bytes")).write_text(str(nbytes))
    except OSError as e:
        raise Refused(f"no memory cgroup: {e.strerror}") from e
    try:
        yield lambda: (group / "cgroup.procs").write_text(str(os.getpid()))
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


@contextlib.contextmanager
def fast_device():
    """A zram device of FAST_BYTES that does not compress well; gives its path."""
    size = Path("/sys/block/zram0/disksize")
    try:
        if int(size.read_text()) != 0:
            raise Refused("/dev/zram0 is in use")
        size.write_text(str(FAST_BYTES))
    except (OSError, ValueError) as e:
        raise Refused(f"no zram device: {e}") from e
    try:
        with open("/dev/zram0", "wb") as out:
            for _ in range(FAST_BYTES // (16 * MIB)):
                out.write(os.urandom(16 * MIB))
            out.flush()
            os.fsync(out.fileno())
        yield "/dev/zram0"
    finally:
        Path("/sys/block/zram0/reset").write_text("1")


@dataclass
class Measure:
    name: str
    title: str
    ours: list   # arguments of cached_reads
    peers: dict  # name -> how: ("device_read", arguments), ("fio", depth) or ("cached_reads", arguments)
    aims: list   # (figure, "at least" or "at most", ratio, peer), and whose figure where it is not that of `ours`
    cache_mib: int = 0  # 0: a sixteenth of the image
    fast: bool = False


IN_PLACE = "in place"


# fio looks at no byte of what it has read, and the device's reader neither; pread copies.
def miss(depth):
    of = ["--depth", depth]
    return Measure(f"cached-miss-qd{depth}", f"4 KiB random reads, cache of 1/16 of the image, depth {depth}",
                   ["--way", "forebay", *of],
                   {IN_PLACE: ("cached_reads", ["--way", "forebay", "--in-place", *of]),
                    "io_uring O_DIRECT": ("device_read", of), "fio io_uring": ("fio", depth),
                    "kernel pread": ("cached_reads", ["--way", "kernel", *of])},
                   [("op/s", "at least", 0.97, "io_uring O_DIRECT"), ("cpu_us", "at most", 0.8, "fio io_uring", IN_PLACE),
                    ("cpu_us", "at most", 1 / 3, "kernel pread")])


MEASURES = [
    miss(1), miss(32), miss(128),
    Measure("cached-sequential", "4 KiB sequential reads, one after the other, beside 1 MiB O_DIRECT reads",
            ["--way", "forebay", "--order", "sequential", "--depth", "1"],
            {"1 MiB O_DIRECT": ("cached_reads", ["--way", "direct"]),
             "kernel pread": ("cached_reads", ["--way", "kernel", "--order", "sequential", "--depth", "1"])},
            [("MB/s", "at least", 0.95, "1 MiB O_DIRECT")]),
    Measure("cached-fast", "4 KiB random reads of a zram device, one thread, no event loop, cache of 1/16",
            ["--way", "plain"], {"kernel pread": ("cached_reads", ["--way", "kernel", "--depth", "1"])},
            [("op/s", "at least", 2.5, "kernel pread")], cache_mib=FAST_CACHE_MIB, fast=True),
]


def names():
    return [m.name for m in MEASURES]


@dataclass
class CachedBench:
    """`helper` gives a program's path; `image` the image's when it is needed."""

    helper: object
    image: object
    rounds: int
    seconds: float
    forget: object
    progress: object

    def cached_reads(self, image, cache_mib, arguments):
        command = [self.helper("cached_reads"), image, "--seconds", self.seconds, "--cache", cache_mib, *arguments]
        if "kernel" not in arguments:
            return json.loads(devices.output(command))
        with memory_limit((cache_mib + OWN_MIB) * MIB) as enter:
            return json.loads(devices.output(command, enter))

    def sample(self, how, image, cache_mib):
        program, arguments = how
        if program == "fio":
            return devices.fio(image, arguments, self.seconds, 0.2)
        if program == "device_read":
            return json.loads(devices.output([self.helper("device_read"), image, "--seconds", self.seconds, *arguments]))
        return self.cached_reads(image, cache_mib, arguments)

    def run(self, measure):
        try:
            with fast_device() if measure.fast else contextlib.nullcontext(None) as fast:
                result = self.run_rounds(measure, fast or self.image())
        except Refused as e:
            result = {"name": measure.name, "title": measure.title, "failed": {"all": str(e)}, "medians": {}, "aims": []}
        print_result(result)
        return result

    def run_rounds(self, measure, image):
        cache_mib = measure.cache_mib or os.stat(image).st_size // 16 // MIB
        ways = {"forebay": ("cached_reads", measure.ours), **measure.peers}
        sides = {name: lambda how=how: self.sample(how, image, cache_mib) for name, how in ways.items()}
        rounds, failed, medians = devices.alternate(measure.name, sides, self.rounds, lambda: self.forget(image), self.progress)
        aims = []
        for figure, kind, ratio, peer, *whose in measure.aims:
            mine = whose[0] if whose else "forebay"
            if mine in medians and peer in medians:
                aims.append({**devices.compare((figure, kind, ratio), rounds[mine], rounds[peer]), "peer": peer, "side": mine})
        return {"name": measure.name, "title": measure.title, "medians": medians, "rounds": rounds, "failed": failed,
                "aims": aims}


def print_result(result):
    devices.print_figures(result, [*result["medians"], *result["failed"]])
    for a in result["aims"]:
        label = devices.LABELS[a["figure"]]
        devices.print_aim(label if a["side"] == "forebay" else f"{label}, {a['side']}", a, a["peer"])
