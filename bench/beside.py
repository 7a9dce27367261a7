"""Measures what readers of resident blocks notice of write-back: each server alone and beside a client that writes and flushes.
bench/README.md says what each case means.

The servers and the client of the reads are bench/run's; fio's nbd engine writes, at a steady rate.
"""

import shutil
import statistics
import subprocess
import time
from dataclasses import dataclass

from programs import Refused

READ_RANGE = 512 << 20  # resident and never written; the rest of the image is the writer's
WRITES_A_SECOND = 20000
WRITES_A_FLUSH = 2000
SETTLE_S = 0.5  # from the writer's start until what it flushes is on its way to the disk
OURS = "forebay"


@dataclass
class Measure:
    name: str
    title: str
    depth: int


MEASURES = [
    Measure("beside-qd1", "4 KiB random read, resident, depth 1, while another client writes and flushes", 1),
    Measure("beside-qd32", "the same, depth 32", 32),
]
MOST_P99 = 2
LEAST_RATE = 0.8


def names():
    return [m.name for m in MEASURES]


class Writer:
    """A client that writes 4 KiB blocks to the upper half of the image and flushes, until it is stopped."""

    def __init__(self, server, image_bytes):
        if shutil.which("fio") is None:
            raise Refused("fio is not installed")
        self.process = subprocess.Popen(
            ["fio", "--name=writer", "--thread", "--ioengine=nbd", f"--uri=nbd+unix:///{server.export}?socket={server.socket}",
             "--rw=randwrite", "--bs=4k", "--norandommap", "--iodepth=16", f"--rate_iops={WRITES_A_SECOND}",
             f"--fsync={WRITES_A_FLUSH}", f"--offset={READ_RANGE}", f"--size={image_bytes - READ_RANGE}", "--time_based",
             "--runtime=600"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        time.sleep(SETTLE_S)

    def check(self):
        """Refused if it has ended by itself."""
        if self.process.poll() is not None:
            said = self.process.stdout.read().splitlines()
            raise Refused(next((line for line in said if "error" in line), "fio has ended"))

    def stop(self):
        self.process.terminate()
        self.process.communicate()


class BesideBench:
    """`servers` are running ones by name, `missing` says of others why they are not. `read(server, depth)` samples reads of
    READ_RANGE, `flush(server)` waits until what was written is durable."""

    def __init__(self, servers, missing, read, flush, image_bytes, rounds, progress):
        self.servers, self.missing, self.read, self.flush = servers, missing, read, flush
        self.image_bytes, self.rounds, self.progress = image_bytes, rounds, progress

    def pair(self, server, depth):
        """A sample of the server alone, and one beside the writer."""
        alone = self.read(server, depth)
        writer = Writer(server, self.image_bytes)
        try:
            beside = self.read(server, depth)
            writer.check()
        finally:
            writer.stop()
        self.flush(server)  # nothing of it is left for the next one's turn
        return {"alone": alone, "beside": beside}

    def run(self, measure):
        rounds, failed = {name: [] for name in [*self.servers, *self.missing]}, dict(self.missing)
        for turn in range(self.rounds):
            for name, server in self.servers.items():
                if name in failed:
                    continue
                self.progress(f"{measure.name}: round {turn + 1} of {self.rounds}, {name}")
                try:
                    rounds[name].append(self.pair(server, measure.depth))
                except Refused as e:
                    failed[name] = str(e)
        self.progress("")
        rows = {n: {"failed": failed[n]} if n in failed else {"rounds": r, **summary(r)} for n, r in rounds.items()}
        print_measure(measure, rows)
        return {"name": measure.name, "servers": rows}


def summary(rounds):
    """Medians, and the medians of what each round's two samples say of each other."""
    out = {when: {k: statistics.median(r[when][k] for r in rounds) for k in ("op/s", "p99_us")} for when in ("alone", "beside")}
    for ratio, key in (("rate", "op/s"), ("p99", "p99_us")):
        out[ratio] = statistics.median(r["beside"][key] / r["alone"][key] for r in rounds)
    return out


def print_measure(measure, rows):
    print(f"\n{measure.name}: {measure.title}")
    heads = ["alone op/s", "beside op/s", "ratio", "alone p99 us", "beside p99 us", "ratio"]
    print(f"  {'':<16}" + "".join(f"{h:>15}" for h in heads))
    for name, row in rows.items():
        if "failed" in row:
            print(f"  {name:<16}  {row['failed']}")
            continue
        cells = [f"{row['alone']['op/s']:,.0f}", f"{row['beside']['op/s']:,.0f}", f"{row['rate']:.2f}",
                 f"{row['alone']['p99_us']:,.0f}", f"{row['beside']['p99_us']:,.0f}", f"{row['p99']:.2f}"]
        print(f"  {name:<16}" + "".join(f"{c:>15}" for c in cells))
    ours = rows.get(OURS, {})
    if "rate" in ours:
        for what, value, reached, aim in (("rate", ours["rate"], ours["rate"] >= LEAST_RATE, f"at least {LEAST_RATE}"),
                                          ("p99", ours["p99"], ours["p99"] <= MOST_P99, f"at most {MOST_P99}")):
            print(f"  forebay: {what} {value:.2f} of what it is alone; aim: {aim}: {'reached' if reached else 'NOT reached'}")
