"""Measures the way to a device: reads of an image by uring_queue_pair beside fio's io_uring engine at equal depth, and large
reads into an arena beside the same into what malloc gives. bench/README.md says what each case means.

Samples alternate, round after round. Both sides read at random places that differ from round to round.
"""

import json
import shutil
import statistics
import subprocess
from dataclasses import dataclass

from programs import Refused


def output(command):
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
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


def names():
    return [m.name for m in MEASURES]


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
        rounds = {name: [] for name in sides}
        failed = {}
        for i in range(self.rounds):
            for name, sample in sides.items():
                self.progress(f"{measure.name}: round {i + 1} of {self.rounds}, {name}")
                if name in failed:
                    continue
                self.forget(self.image())
                try:
                    rounds[name].append(sample())
                except Refused as e:
                    failed[name] = str(e)
        self.progress("")
        medians = {n: {k: statistics.median(r[k] for r in of) for k in of[0]} for n, of in rounds.items()
                   if of and n not in failed}
        result = {"name": measure.name, "title": measure.title, "medians": medians, "rounds": rounds, "failed": failed,
                  "aims": []}
        if len(medians) == 2:
            result["aims"] = [compare(aim, rounds["forebay"], rounds[measure.peer_name]) for aim in measure.aims]
        print_result(result, measure)
        return result


def compare(aim, ours, peers):
    figure, sense, bound = aim
    ratios = sorted(o[figure] / p[figure] for o, p in zip(ours, peers))
    ratio = statistics.median(ratios)
    reached = ratio >= bound if sense == "at least" else ratio <= bound
    return {"figure": figure, "sense": sense, "bound": bound, "ratio": ratio, "lowest": ratios[0], "highest": ratios[-1],
            "reached": reached}


def print_result(result, measure):
    print(f"\n{result['name']}: {result['title']}")
    heads = ["op/s", "MB/s", "CPU us/op", "p50 us", "p99 us"]
    print(f"  {'':<16}" + "".join(f"{h:>12}" for h in heads))
    for name in ("forebay", measure.peer_name):
        if name in result["failed"]:
            print(f"  {name:<16}  {result['failed'][name]}")
        else:
            m = result["medians"][name]
            cells = [f"{m['op/s']:,.0f}", f"{m['MB/s']:,.0f}", f"{m['cpu_us']:.2f}", f"{m['p50_us']:,.0f}",
                     f"{m['p99_us']:,.0f}"]
            print(f"  {name:<16}" + "".join(f"{c:>12}" for c in cells))
    for a in result["aims"]:
        label = {"op/s": "reads a second", "cpu_us": "CPU a read"}[a["figure"]]
        print(f"  {label}: {a['ratio']:.2f} of {measure.peer_name} (rounds {a['lowest']:.2f} to {a['highest']:.2f}); "
              f"aim: {a['sense']} {a['bound']}: {'reached' if a['reached'] else 'NOT reached'}")
