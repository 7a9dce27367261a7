"""Measures the way to a device: reads of an image by uring_queue_pair beside fio's io_uring engine at equal depth, and large
reads into an arena beside the same into what malloc gives, and writes through the page cache beside the kernel's.
bench/README.md says what each case means.

Samples alternate, round after round. Both sides read at random places that differ from round to round.
"""

import json
import shutil
import statistics
import subprocess
from dataclasses import dataclass

from programs import Refused


def output(command, enter=None):
    """What a command prints; `enter` is called in its process before it begins."""
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          preexec_fn=enter)
    if done.returncode != 0:
        raise Refused((done.stderr.strip().splitlines() or [f"{command[0]} failed"])[-1])
    return done.stdout


def fio(image, depth, seconds, ramp):
    """What a job of fio's reads at random, and the CPU microseconds that a read takes."""
    if shutil.which("fio") is None:
        raise Refused("not installed")
    text = output(["fio", "--name=cold", f"--filename={image}", "--readonly", "--rw=randread", "--bs=4k", "--direct=1",
                   "--ioengine=io_uring", f"--iodepth={depth}", "--norandommap", "--randrepeat=0", "--time_based",
                   f"--runtime={int(seconds * 1000)}ms", f"--ramp_time={int(ramp * 1000)}ms", "--output-format=json"])
    job = json.loads(text[text.index("{"):])["jobs"][0]
    read, percentile = job["read"], job["read"]["clat_ns"]["percentile"]
    cpu_us = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] * 1000
    return {"op/s": read["iops"], "MB/s": read["bw_bytes"] / 1e6, "cpu_us": cpu_us / max(1, read["total_ios"]),
            "p50_us": percentile["50.000000"] / 1000, "p99_us": percentile["99.000000"] / 1000,
            "p99.9_us": percentile["99.900000"] / 1000}


@dataclass
class Measure:
    name: str
    title: str
    ours: list  # arguments of device_read
    peer: str   # "fio", or the peer's arguments for device_read
    peer_name: str
    aims: list  # (figure, "at least" or "at most", ratio to the peer's)
    depth: int


MEASURES = [
    Measure("device-qd32", "4 KiB random reads of the image, uring_queue_pair, depth 32", ["--depth", "32"], "fio",
            "fio io_uring", [("op/s", "at least", 1.0), ("cpu_us", "at most", 0.7)], 32),
    Measure("device-qd128", "4 KiB random reads of the image, uring_queue_pair, depth 128", ["--depth", "128"], "fio",
            "fio io_uring", [("op/s", "at least", 1.0), ("cpu_us", "at most", 0.7)], 128),
    Measure("device-1m", "1 MiB random reads of the image, depth 4: into an arena, and into malloc's 4 KiB pages",
            ["--depth", "4", "--block", "1048576"], ["--depth", "4", "--block", "1048576", "--memory", "malloc"],
            "into malloc", [("cpu_us", "at most", 0.25)], 4),
]


WRITE_BACK = "write-back"
WRITES = 250_000


def names():
    return [m.name for m in MEASURES] + [WRITE_BACK]


class DeviceBench:
    """`program`: device_read; `image`: gives the image's path when it is needed."""

    def __init__(self, program, image, rounds, seconds, forget, progress):
        self.program, self.image, self.rounds, self.seconds = program, image, rounds, seconds
        self.forget, self.progress = forget, progress

    def ours(self, arguments):
        got = json.loads(output([self.program, self.image(), "--seconds", self.seconds, *arguments]))
        return {k: got[k] for k in ("op/s", "MB/s", "cpu_us", "p50_us", "p99_us")}

    def peer(self, measure):
        if measure.peer != "fio":
            return self.ours(measure.peer)
        return fio(self.image(), measure.depth, self.seconds, 0.2)

    def run(self, measure):
        sides = {"forebay": lambda: self.ours(measure.ours), measure.peer_name: lambda: self.peer(measure)}
        rounds, failed, medians = alternate(measure.name, sides, self.rounds, lambda: self.forget(self.image()), self.progress)
        result = {"name": measure.name, "title": measure.title, "medians": medians, "rounds": rounds, "failed": failed,
                  "aims": []}
        if len(medians) == 2:
            result["aims"] = [compare(aim, rounds["forebay"], rounds[measure.peer_name]) for aim in measure.aims]
        print_result(result, measure)
        return result


    def run_write_back(self, program, image):
        """Random writes over `image` and a flush, through our page cache and through the kernel's."""
        result = {"name": WRITE_BACK, "title": f"{WRITES:,} random 4 KiB writes through a page cache, then a flush"}
        rounds = {"forebay": [], "kernel": []}
        try:
            for i in range(self.rounds):
                for way, samples in rounds.items():
                    self.progress(f"{WRITE_BACK}: round {i + 1} of {self.rounds}, {way}")
                    samples.append(json.loads(output([program, image, "--way", way, "--count", WRITES])))
        except Refused as e:
            result["failed"] = str(e)
        self.progress("")
        print(f"\n{WRITE_BACK}: {result['title']}")
        if "failed" in result:
            print(f"  {result['failed']}")
            return result
        figures = ("op/s", "cpu_us", "p99.9_ms", "longest_ms", "flush_ms")
        medians = {n: {k: statistics.median(r[k] for r in of) for k in figures} for n, of in rounds.items()}
        print(f"  {'':<16}" + "".join(f"{h:>12}" for h in ("op/s", "CPU us/op", "p99.9 ms", "longest ms", "a flush ms")))
        for name, m in medians.items():
            cells = [f"{m['op/s']:,.0f}"] + [f"{m[k]:.2f}" for k in figures[1:]]
            print(f"  {name:<16}" + "".join(f"{c:>12}" for c in cells))
        faster = compare(("op/s", "at least", 1.3), rounds["forebay"], rounds["kernel"])
        shorter = compare(("longest_ms", "at most", 1.0), rounds["forebay"], rounds["kernel"])
        for label, a in (("writes a second until durable", faster), ("longest write", shorter)):
            print_aim(label, a, "the kernel's")
        return {**result, "medians": medians, "rounds": rounds, "aims": [faster, shorter]}


def alternate(name, sides, count, forget, progress):
    """Samples of all sides, `count` rounds of one each: the rounds, why a side failed, and the medians of the others.

    `sides`: a function for each name, which gives a sample or raises Refused.
    """
    rounds = {side: [] for side in sides}
    failed = {}
    for i in range(count):
        for side, sample in sides.items():
            if side in failed:
                continue
            progress(f"{name}: round {i + 1} of {count}, {side}")
            forget()
            try:
                rounds[side].append(sample())
            except Refused as e:
                failed[side] = str(e)
    progress("")
    medians = {side: {k: statistics.median(r[k] for r in of) for k in of[0]} for side, of in rounds.items()
               if of and side not in failed}
    return rounds, failed, medians


def compare(aim, ours, peers):
    figure, sense, bound = aim
    ratios = sorted(o[figure] / p[figure] for o, p in zip(ours, peers))
    ratio = statistics.median(ratios)
    reached = ratio >= bound if sense == "at least" else ratio <= bound
    return {"figure": figure, "sense": sense, "bound": bound, "ratio": ratio, "lowest": ratios[0], "highest": ratios[-1],
            "reached": reached}


def print_aim(label, a, peer):
    print(f"  {label}: {a['ratio']:.2f} of {peer} (rounds {a['lowest']:.2f} to {a['highest']:.2f}); "
          f"aim: {a['sense']} {a['bound']:.3g}: {'reached' if a['reached'] else 'NOT reached'}")


LABELS = {"op/s": "reads a second", "cpu_us": "CPU a read", "MB/s": "bytes a second"}


def print_figures(result, sides):
    """The title and a line for each side: its medians, or why it failed."""
    print(f"\n{result['name']}: {result['title']}")
    print(f"  {'':<18}" + "".join(f"{h:>12}" for h in ("op/s", "MB/s", "CPU us/op", "p50 us", "p99 us")))
    for name in sides:
        if name in result["failed"]:
            print(f"  {name:<18}  {result['failed'][name]}")
            continue
        m = result["medians"][name]
        cells = [f"{m['op/s']:,.0f}", f"{m['MB/s']:,.0f}", f"{m['cpu_us']:.2f}", f"{m['p50_us']:,.0f}", f"{m['p99_us']:,.0f}"]
        print(f"  {name:<18}" + "".join(f"{c:>12}" for c in cells))


def print_result(result, measure):
    print_figures(result, ("forebay", measure.peer_name))
    for a in result["aims"]:
        print_aim(LABELS[a["figure"]], a, measure.peer_name)
