"""Rings between threads beside their peers: the ring part of bench/run. bench/README.md says what each measure means.

One program for each library (build/release/bench/ring_NAME) is started once and asked in turn, round after round. All of
them run the loop of tools/forebay/ring_pipe.h.
"""

import sys
from dataclasses import dataclass

from programs import Aim, Programs, Refused, Subject, cell, compare, print_aims, print_failures, table

OURS = "ring_forebay"
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class BatchAim(Aim):
    """An aim for batches of this size."""

    batch: int = 1


@dataclass(frozen=True)
class Family:
    name: str
    title: str
    pattern: str
    subjects: tuple
    aims: tuple = ()


SPSC = Subject("forebay spsc", OURS, "spsc")
MPMC = Subject("forebay mpmc", OURS, "mpmc")
RTE_SPSC = Subject("rte_ring SP/SC", "ring_dpdk", "sp_sc", "libdpdk-dev")
RTE_MPMC = Subject("rte_ring MP/MC", "ring_dpdk", "mp_mc", "libdpdk-dev")
BOOST_SPSC = Subject("boost spsc_queue", "ring_boost", "spsc", "libboost-dev")
BOOST_MPMC = Subject("boost queue", "ring_boost", "queue", "libboost-dev")
MOODYCAMEL = Subject("moodycamel", "ring_moodycamel", "queue", "libconcurrentqueue-dev")
MANY = (RTE_MPMC, MOODYCAMEL, BOOST_MPMC, MPMC)

FAMILIES = (
    Family("ring-spsc", "one thread to one", "pipe", (RTE_SPSC, BOOST_SPSC, SPSC),
           (BatchAim("forebay spsc", 0.4, ("rte_ring SP/SC",), batch=1), BatchAim("forebay spsc", 1.0, ("boost spsc_queue",), batch=1),
            BatchAim("forebay spsc", 0.5, ("rte_ring SP/SC",), batch=8), BatchAim("forebay spsc", 0.75, ("rte_ring SP/SC",), batch=32))),
    Family("ring-mpmc", "many threads to many: one pushes, one pops", "pipe", MANY,
           (BatchAim("forebay mpmc", 0.5, ("rte_ring MP/MC",), batch=1), BatchAim("forebay mpmc", 0.5, ("moodycamel",), batch=1),
            BatchAim("forebay mpmc", 1.0, ("rte_ring MP/MC",), batch=32), BatchAim("forebay mpmc", 1.0, ("moodycamel",), batch=32))),
    Family("ring-pair", "many threads to many: both push a batch and pop one", "pair", MANY),
)


def names():
    return [f.name for f in FAMILIES]


class RingBench(Programs):
    def __init__(self, build, rounds, windows, wanted, peers_only=False, progress=lambda text: None):
        super().__init__(build, windows)
        self.rounds, self.progress = rounds, progress
        self.families = [f for f in FAMILIES if wanted(f.name)]
        self.peers_only = peers_only
        self.results = []

    def start(self, subject):
        if len(self.cpus) < 2:
            raise Refused("needs two CPUs")
        return super().start(subject)

    def sample(self, family, subject, batch):
        answer = self.program(subject).ask("sample", subject.subject, family.pattern, batch)
        ns_item, windows, disturbed = answer.split()
        return {"ns": float(ns_item), "windows": int(windows), "disturbed": int(disturbed)}

    def measure(self, family, batch):
        """All subjects of a family at one batch, taking turns."""
        subjects = [s for s in family.subjects if not (self.peers_only and s.ours)]
        rows = self.turns(f"{family.name}, batches of {batch}", subjects, lambda s: self.sample(family, s, batch))
        result = {"name": f"{family.name}-{batch}", "title": family.title, "batch": batch, "unit": "ns", "subjects": rows}
        result["aims"] = [a for a in (compare(aim, result, []) for aim in family.aims if aim.batch == batch) if a]
        return result

    def run(self):
        for family in self.families:
            got = [self.measure(family, batch) for batch in BATCHES]
            self.progress("")
            self.results += got
            print_family(family, got)

    def burst(self):
        """The peers and ourselves for `forebay bench burst --with`: one line of the picture each."""
        lines = []
        for family in self.families:
            if family.pattern != "pipe":
                continue
            got = [r for r in self.results if r["name"].startswith(family.name)]
            for s in family.subjects:
                points = [{"batch": r["batch"], "ns": r["subjects"][s.name]["median"]}
                          for r in got if "median" in r["subjects"].get(s.name, {})]
                if points:
                    lines.append({"name": s.name, "peer": not s.ours, "points": points})
        return {"unit": "ns an item", "lines": lines}

    def our_failure(self):
        """Why Forebay's program could not be run at all, or nothing."""
        return self.refused.get(OURS)


def print_family(family, results):
    print(f"\n{family.name}: {family.title}, ns an item by the batch: median (lowest-highest round)")
    heads = list(results[0]["subjects"])

    table([["batch", *heads]] + [[str(r["batch"]), *(cell(r["subjects"][h]) for h in heads)] for r in results], left=())
    print_failures(results)
    print_aims((f"by {r['batch']}", a) for r in results for a in r["aims"])
    sys.stdout.flush()
