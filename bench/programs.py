"""What the parts of bench/run share that ask programs for samples (bench/memory, bench/ring): the programs, who is
measured, the aims, and how a table is printed.
"""

import os
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Subject:
    """One column: who is measured, and by which program."""

    name: str
    program: str
    subject: str
    package: str = ""
    hint: bool = False  # neither ours nor a peer

    @property
    def ours(self):
        return self.program.endswith("_forebay") and not self.hint


@dataclass(frozen=True)
class Aim:
    """At most `most` times the best of `peers` in the same measure, or times what `of` says of ourselves."""

    subject: str
    most: float
    peers: tuple = ()
    own_measure: str = ""


class Refused(Exception):
    """One line: why there is no figure."""


class Program:
    """A running memory_* program that answers commands."""

    def __init__(self, path, package, arguments):
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise Refused("not built" + (f": install {package} and build again" if package else ""))
        self.path = path
        self.process = subprocess.Popen([path, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, start_new_session=True)

    def ask(self, *words):
        try:
            self.process.stdin.write(" ".join(str(w) for w in words) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # its obituary comes below
        for line in self.process.stdout:
            kind, _, rest = line.strip().partition(" ")
            if kind == "ok":
                return rest
            if kind == "error":
                raise Refused(rest)
        said = self.process.stderr.read().strip().splitlines()
        raise Refused(f"{self.path.name} has ended with status {self.process.wait()}: {(said or ['no message'])[-1]}")

    def stop(self):
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Programs:
    """The programs that a part of bench/run asks: each is started when it is first needed.

    Who calls turns() has `rounds` and `progress`.
    """

    def __init__(self, build, windows, arguments=()):
        self.build = Path(build)
        self.cpus = two_cpus()
        self.arguments = ["--cpus", ",".join(map(str, self.cpus)), "--windows", str(windows), *arguments]
        self.programs = {}
        self.about = {}  # program -> what it says it measures
        self.refused = {}  # program -> why it does not run

    def start(self, subject):
        return Program(self.build / "bench" / subject.program, subject.package, self.arguments)

    def program(self, subject, fresh=False):
        """The running program of a subject, or one more of it, which is the caller's; Refused if there is none."""
        name = subject.program
        if name in self.refused:
            raise Refused(self.refused[name])
        try:
            if fresh:
                return self.start(subject)
            if name not in self.programs:
                self.programs[name] = self.start(subject)
                self.about[name] = self.programs[name].ask("about")
        except Refused as e:
            self.refused[name] = str(e)
            raise
        return self.programs[name]

    def turns(self, label, subjects, ask):
        """The subjects of a measure, taking turns: {name: {"rounds": [what `ask` says], "median": ns}, or {"failed": why}}."""
        rows = {s.name: {"rounds": []} for s in subjects}
        for turn in range(self.rounds):
            for s in subjects:
                if "failed" in rows[s.name]:
                    continue
                self.progress(f"{label}: round {turn + 1} of {self.rounds}, {s.name}")
                try:
                    rows[s.name]["rounds"].append(ask(s))
                except Refused as e:
                    rows[s.name] = {"failed": str(e)}
        for row in rows.values():
            if "rounds" in row:
                row["median"] = statistics.median(r["ns"] for r in row["rounds"])
        return rows

    def close(self):
        for program in self.programs.values():
            program.stop()
        self.programs.clear()


def two_cpus():
    """Two CPUs that this process may use, on different cores if there are any."""
    allowed = sorted(os.sched_getaffinity(0))
    siblings = Path(f"/sys/devices/system/cpu/cpu{allowed[0]}/topology/thread_siblings_list")
    try:
        own = {int(c) for part in siblings.read_text().strip().split(",") for c in part.split("-")}
    except (OSError, ValueError):
        own = {allowed[0]}
    return [allowed[0], *([c for c in allowed if c not in own] or allowed[1:])[:1]]


def compare(aim, result, family_results):
    """What became of an aim: the median of the rounds' ratios, the lowest and the highest.

    A ratio within a round is steadier than that of two medians: where the hypervisor puts two CPUs may change in between.
    """
    ours = result["subjects"].get(aim.subject, {})
    if aim.own_measure:
        other = next((r for r in family_results if r["name"] == aim.own_measure), None)
        candidates = {aim.own_measure: other["subjects"].get(aim.subject, {})} if other else {}
    else:
        candidates = {p: result["subjects"].get(p, {}) for p in aim.peers}
    candidates = {n: c for n, c in candidates.items() if "median" in c}
    if "median" not in ours or not candidates:
        return None
    best = min(candidates, key=lambda n: candidates[n]["median"])
    ratios = [o["ns"] / p["ns"] for o, p in zip(ours["rounds"], candidates[best]["rounds"])]
    return {"subject": aim.subject, "of": best, "most": aim.most, "ratio": statistics.median(ratios),
            "ratio_min": min(ratios), "ratio_max": max(ratios)}


# -- what is printed

def ns(value):
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def cell(figure):
    if "failed" in figure:
        return "-"
    each = [r["ns"] for r in figure["rounds"]]
    return f"{ns(figure['median'])} ({ns(min(each))}-{ns(max(each))})"


def table(rows, left=(0,)):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  " + "  ".join(c.ljust(w) if i in left else c.rjust(w)
                               for i, (c, w) in enumerate(zip(row, widths))).rstrip())


def print_failures(results):
    said = dict.fromkeys((n, f["failed"]) for r in results for n, f in r["subjects"].items() if "failed" in f)
    for name, why in said:
        print(f"  {name}: {why}")


def print_aims(rows):
    """(label, what compare() said) each."""
    lines = [["aims", "", "ratio", "lowest", "highest", "at most", ""]]
    lines += [[label, f"{a['subject']} / {a['of']}", *(f"{a[k]:.2f}" for k in ("ratio", "ratio_min", "ratio_max", "most")),
               "reached" if a["ratio"] <= a["most"] else "NOT reached"] for label, a in rows]
    if len(lines) > 1:
        table(lines, left=(0, 1, 6))
