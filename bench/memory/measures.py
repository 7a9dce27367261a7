"""Allocators beside their peers: the memory part of bench/run. bench/README.md says what each measure means.

One program for each allocator (build/release/bench/memory_NAME) is started once and asked in turn, round after round
(A B C, A B C, ...). A program that is missing or fails makes a line in the table, never an error, unless it is Forebay's.
"""

import statistics
import sys
from dataclasses import dataclass

from programs import Aim, Programs, Refused, Subject, cell, compare, print_aims, print_failures, table

OURS = "memory_forebay"


@dataclass(frozen=True)
class Measure:
    name: str
    title: str
    pattern: str
    threads: int
    aims: tuple = ()


@dataclass(frozen=True)
class Family:
    """Measures that share a table: what is allocated, and by whom."""

    name: str
    title: str
    bytes: int
    subjects: tuple
    measures: tuple


FLOOR = Subject("floor", OURS, "floor", hint=True)
JEMALLOC = Subject("jemalloc", "memory_jemalloc", "malloc", "libjemalloc-dev")
TCMALLOC = Subject("tcmalloc", "memory_tcmalloc", "malloc", "libgoogle-perftools-dev")
MIMALLOC = Subject("mimalloc", "memory_mimalloc", "malloc", "libmimalloc-dev")
GLIBC = Subject("glibc", "memory_glibc", "malloc")
MEMPOOL = Subject("rte_mempool", "memory_dpdk", "mempool", "libdpdk-dev")
RTE_STACK = Subject("rte_stack", "memory_dpdk", "stack", "libdpdk-dev")
RTE_LF_STACK = Subject("rte lf_stack", "memory_dpdk", "lf_stack", "libdpdk-dev")
MALLOCS = (JEMALLOC, TCMALLOC, MIMALLOC, GLIBC)
BEST_OF = ("jemalloc", "tcmalloc", "mimalloc")

PATTERNS = (
    ("pair", "pair", 1, "allocate, free"),
    ("out32", "out32", 1, "32 out, back in random order"),
    ("churn", "churn", 1, "1,024 held, a random one replaced"),
    ("bulk", "bulk", 1, "32 by one call, each"),
    ("2t-pair", "pair", 2, "two threads: allocate, free"),
    ("2t-out32", "out32", 2, "two threads: 32 out, back in random order"),
    ("2t-churn", "churn", 2, "two threads: 1,024 held, a random one replaced"),
    ("cross", "cross", 2, "allocated on one CPU, freed on another"),
)


def measures(family, aims_of, leave_out=()):
    return tuple(Measure(f"{family}-{name}", title, pattern, threads, tuple(aims_of(name)))
                 for name, pattern, threads, title in PATTERNS if name not in leave_out)


def slab(size):
    name = f"slab{size}"
    subjects = (FLOOR, *MALLOCS, Subject("forebay slab", OURS, "slab"))
    return Family(name, f"objects of {size} bytes", size, subjects,
                  measures(name, lambda _: [Aim("forebay slab", 0.4, BEST_OF)]))


def lists():
    """Free lists of items that are nobody's memory: what lies below pools and caches."""
    ours = (("locked", "locked"), ("stack", "lock_free_stack"), ("bitmap", "bitmap"), ("buddy", "buddy"),
            ("per-CPU", "cached"))
    subjects = (FLOOR, RTE_STACK, RTE_LF_STACK, *(Subject(name, OURS, subject) for name, subject in ours))
    two_threads = Aim("stack", 1.0, ("rte lf_stack",))
    return Family("list", "free lists", 8, subjects,
                  measures("list", lambda name: [two_threads] if name.startswith("2t") or name == "cross" else []))


def pool():
    """Buffers of 2 KiB from a pool of fixed size."""
    ours = (Subject("forebay", OURS, "pool"), Subject("forebay raw", OURS, "raw_pool"))

    def aims_of(name):
        for s in ours:
            if name in ("pair", "out32", "churn"):
                yield Aim(s.name, 0.75, ("rte_mempool",))
            elif name.startswith("2t-"):
                yield Aim(s.name, 0.6, ("rte_mempool",))
                yield Aim(s.name, 1.15, own_measure="pool-" + name.removeprefix("2t-"))
            elif name == "cross":
                yield Aim(s.name, 1.0, ("rte_mempool",))

    return Family("pool", "buffers of 2 KiB", 2048, (FLOOR, MEMPOOL, *ours, *MALLOCS), measures("pool", aims_of))


FAMILIES = (pool(), lists(), slab(64), slab(256), slab(1024), slab(4096))
MEASURES = tuple(m for f in FAMILIES for m in f.measures)


@dataclass(frozen=True)
class Overhead:
    """Bytes of memory used beside the bytes asked for."""

    name: str
    title: str
    bytes: int
    count: int
    subjects: tuple
    most: float  # aim for ours, bytes


OVERHEADS = (
    Overhead("overhead-pool", "a pool of 65,535 buffers of 2 KiB", 2048, 65535,
             (MEMPOOL, Subject("forebay raw", OURS, "raw_pool")), 32 + 16),
    Overhead("overhead-slab256", "200,000 objects of 256 bytes, all in use", 256, 200_000,
             (*MALLOCS, Subject("forebay slab", OURS, "slab")), 0.03 * 256),
)


def names():
    return [m.name for m in MEASURES] + [o.name for o in OVERHEADS]


def names_in_short():
    """What names() has, for --help."""
    patterns = ", ".join(p[0] for p in PATTERNS)
    return f"{', '.join(f.name for f in FAMILIES)} (each with -{{{patterns}}}), {', '.join(o.name for o in OVERHEADS)}"


class MemoryBench(Programs):
    def __init__(self, build, rounds, windows, wanted, peers_only=False, touch=False, progress=lambda text: None):
        super().__init__(build, windows, ["--touch"] if touch else [])
        self.rounds, self.progress = rounds, progress
        self.wanted = wanted
        self.peers_only = peers_only
        self.results = []

    def subjects(self, of):
        return [s for s in of if not (self.peers_only and s.ours)]

    def sample(self, family, measure, subject):
        if measure.threads > len(self.cpus):
            raise Refused("needs two CPUs")
        answer = self.program(subject).ask("sample", subject.subject, measure.pattern, measure.threads, family.bytes)
        ns, windows, disturbed = answer.split()
        return {"ns": float(ns), "windows": int(windows), "disturbed": int(disturbed)}

    def run_measures(self, family, chosen):
        """Everything that shares a table takes its turn in each round, so that aims across measures are of one round too."""
        rows = {m.name: {s.name: [] for s in self.subjects(family.subjects)} for m in chosen}
        failed = {m.name: {} for m in chosen}
        for turn in range(self.rounds):
            for m in chosen:
                for s in self.subjects(family.subjects):
                    if s.name in failed[m.name]:
                        continue
                    self.progress(f"{m.name}: round {turn + 1} of {self.rounds}, {s.name}")
                    try:
                        rows[m.name][s.name].append(self.sample(family, m, s))
                    except Refused as e:
                        failed[m.name][s.name] = str(e)
        self.progress("")
        out = []
        for m in chosen:
            figures = {}
            for s in self.subjects(family.subjects):
                if s.name in failed[m.name]:
                    figures[s.name] = {"failed": failed[m.name][s.name]}
                else:
                    each = [r["ns"] for r in rows[m.name][s.name]]
                    figures[s.name] = {"median": statistics.median(each), "rounds": rows[m.name][s.name]}
            out.append({"name": m.name, "title": m.title, "unit": "ns", "subjects": figures})
        for m, result in zip(chosen, out):
            result["aims"] = [a for a in (compare(aim, result, out) for aim in m.aims) if a]
        return out

    def run_overhead(self, overhead):
        figures = {}
        for s in self.subjects(overhead.subjects):
            self.progress(f"{overhead.name}: {s.name}")
            try:
                program = self.program(s, fresh=True)  # a heap that nobody has used
                try:
                    figures[s.name] = {"bytes": float(program.ask("overhead", s.subject, overhead.bytes, overhead.count))}
                finally:
                    program.stop()
            except Refused as e:
                figures[s.name] = {"failed": str(e)}
        self.progress("")
        return {"name": overhead.name, "title": overhead.title, "unit": "bytes", "most": overhead.most,
                "subjects": figures}

    def run(self):
        for family in FAMILIES:
            chosen = [m for m in family.measures if self.wanted(m.name)]
            if chosen:
                got = self.run_measures(family, chosen)
                self.results += got
                print_family(family, got)
        for overhead in OVERHEADS:
            if self.wanted(overhead.name):
                self.results.append(self.run_overhead(overhead))
                print_overhead(overhead, self.results[-1])

    def our_failure(self):
        """Why Forebay's program could not be run at all, or nothing."""
        return self.refused.get(OURS)


# -- what is printed

def print_family(family, results):
    print(f"\n{family.name}: {family.title}, ns an allocate + free pair: median (lowest-highest round)")
    heads = list(results[0]["subjects"])
    table([["", *heads]] + [[r["name"].removeprefix(family.name + "-"), *(cell(r["subjects"][h]) for h in heads)]
                            for r in results])
    print_failures(results)
    print_aims((r["name"], a) for r in results for a in r["aims"])
    sys.stdout.flush()


def print_overhead(overhead, result):
    print(f"\n{overhead.name}: {overhead.title}: bytes beside each")
    figures = {n: f["bytes"] for n, f in result["subjects"].items() if "bytes" in f}
    table([["", *figures], ["bytes", *(f"{b:.1f}" for b in figures.values())],
           ["share", *(f"{100 * b / overhead.bytes:.1f}%" for b in figures.values())]])
    print_failures([result])
    for s in overhead.subjects:
        if s.ours and s.name in figures:
            print(f"  {s.name}: aim: at most {overhead.most:.3g} bytes: "
                  f"{'reached' if figures[s.name] <= overhead.most else 'NOT reached'}", flush=True)
