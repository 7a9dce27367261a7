"""Hits of page caches beside their peers: the cache part of bench/run. bench/README.md says what each measure means.

One program, build/release/bench/cache_forebay, holds all of them and is asked in turn, round after round.
"""

import statistics
import sys
from dataclasses import dataclass

from programs import Aim, Programs, Refused, Subject, cell, compare, print_aims, print_failures, table

PROGRAM = "cache_forebay"
SIZES = (64, 256, 1024, 4096)


@dataclass(frozen=True)
class Shape(Subject):
    """A subject of the one program."""

    own: bool = False

    @property
    def ours(self):
        return self.own


@dataclass(frozen=True)
class Family:
    name: str
    title: str
    pattern: str
    threads: int
    subjects: tuple
    aims: tuple = ()
    most_ns: tuple = ()  # (subject, nanoseconds)
    twice: str = ""  # the measure with one thread: two threads together at least 1.9 times as many hits


def shape(name, subject, own=False):
    return Shape(name, PROGRAM, subject, own=own, package="" if own else "librocksdb-dev" if "ocks" in name else "")


PIN, VIEW = shape("forebay pin", "pin", True), shape("forebay view", "view", True)
BARE = shape("memory itself", "bare")
FIX, OPTIMISTIC = shape("vmcache fixS", "vmcache_fix"), shape("vmcache optimistic", "vmcache_optimistic")
MAP, PREAD, MMAP = shape("lock + hash map", "map"), shape("kernel pread", "pread"), shape("kernel mmap", "mmap")
CLOCK, LRU = shape("RocksDB HyperClock", "rocksdb_clock"), shape("RocksDB LRU", "rocksdb_lru")
ALL = (PIN, VIEW, FIX, OPTIMISTIC, CLOCK, LRU, MAP, PREAD, MMAP, BARE)

FAMILIES = (
    Family("cache-hit", "find a page and let it go", "hold", 1, (PIN, VIEW, FIX, OPTIMISTIC, CLOCK, LRU, MAP),
           (Aim("forebay pin", 0.7, ("vmcache fixS",)), Aim("forebay pin", 1 / 12, ("RocksDB HyperClock",))),
           (("forebay pin", 25), ("forebay view", 10))),
    Family("cache-word", "find a page and read 8 bytes of it", "word", 1, ALL,
           (Aim("forebay pin", 0.7, ("vmcache fixS",)), Aim("forebay view", 0.7, ("vmcache optimistic",)))),
    Family("cache-copy", "find a page and copy it out", "copy", 1, ALL,
           (Aim("forebay view", 1.2, ("memory itself",)), Aim("forebay view", 0.55, ("kernel pread",)))),
    Family("cache-2t", "two threads, each: find a page and read 8 bytes of it", "word", 2, ALL, twice="cache-word"),
    Family("cache-one", "the same page again and again, 8 bytes of it", "one", 1, (PIN, VIEW, FIX, OPTIMISTIC, CLOCK)),
    Family("cache-2t-one", "two threads, the same page again and again", "one", 2, (PIN, VIEW, FIX, OPTIMISTIC, CLOCK),
           twice="cache-one"),
)
GROWTH = "cache-growth"


def names():
    return [*(f.name for f in FAMILIES), GROWTH]


class HitBench(Programs):
    def __init__(self, build, rounds, windows, wanted, peers_only=False, progress=lambda text: None, mib=1024):
        super().__init__(build, windows, ("--mib", str(mib)))
        self.rounds, self.progress, self.peers_only, self.mib = rounds, progress, peers_only, mib
        self.families = [f for f in FAMILIES if wanted(f.name)]
        self.growth = wanted(GROWTH)
        self.results = []

    def start(self, subject):
        if len(self.cpus) < 2:
            raise Refused("needs two CPUs")
        return super().start(subject)

    @staticmethod
    def sample(program, s, pattern, threads):
        ns_hit, windows, disturbed = program.ask("sample", s.subject, pattern, threads).split()
        return {"ns": float(ns_hit), "windows": int(windows), "disturbed": int(disturbed)}

    def measure(self, f):
        subjects = [s for s in f.subjects if not (self.peers_only and s.ours)]
        rows = self.turns(f.name, subjects, lambda s: self.sample(self.program(s), s, f.pattern, f.threads))
        result = {"name": f.name, "title": f.title, "unit": "ns", "subjects": rows}
        aims = list(f.aims)
        if f.twice:
            aims += [Aim(s.name, 2 / 1.9, own_measure=f.twice) for s in subjects if s.name == VIEW.name]
        result["aims"] = [a for a in (compare(aim, result, self.results) for aim in aims) if a]
        for name, most in f.most_ns:
            got = rows.get(name, {})
            if "median" in got:
                each = [r["ns"] / most for r in got["rounds"]]
                result["aims"].append({"subject": name, "of": f"{most} ns", "most": 1.0,
                                       "ratio": statistics.median(each), "ratio_min": min(each), "ratio_max": max(each)})
        return result

    def measure_growth(self):
        """Hits as the cache grows: a program for each size, one after the other, because of their memory."""
        got = []
        for mib in SIZES:
            other = Programs(self.build, 15, ("--mib", str(mib)))
            try:
                for pattern in ("hold", "word"):
                    rows = self.turns(f"{GROWTH}, {mib} MiB", (PIN, VIEW) if not self.peers_only else (),
                                      lambda s, p=pattern: self.sample(other.program(s), s, p, 1))
                    got.append({"name": f"{GROWTH}-{mib}-{pattern}", "title": "as it grows", "unit": "ns", "mib": mib,
                                "pattern": pattern, "subjects": rows, "aims": []})
            finally:
                other.close()
        return got

    def run(self):
        for f in self.families:
            result = self.measure(f)
            self.progress("")
            self.results.append(result)
            print_family(result, self.mib)
        self.close()
        if self.growth:
            got = self.measure_growth()
            self.progress("")
            self.results += got
            print_growth(got)

    def our_failure(self):
        """Why the program could not be run at all, or nothing."""
        return self.refused.get(PROGRAM)


def print_family(result, mib):
    print(f"\n{result['name']}: {result['title']}; {mib} MiB resident, ns a hit of one thread: median (lowest-highest round)")
    table([[name, cell(row)] for name, row in result["subjects"].items()])
    print_failures([result])
    print_aims((result["name"], a) for a in result["aims"])
    sys.stdout.flush()


def print_growth(results):
    print(f"\n{GROWTH}: hits by what is resident, ns a hit: median (lowest-highest round)")
    heads = list(results[0]["subjects"])
    table([["MiB", "", *heads]] + [[str(r["mib"]), r["pattern"], *(cell(r["subjects"][h]) for h in heads)] for r in results],
          left=(1,))
    print_failures(results)
    sys.stdout.flush()
