"""Packets beside DPDK's: the packet part of bench/run. bench/README.md says what each measure means.

Packet buffers: one program, build/release/bench/packets_forebay, has both libraries and is asked in turn. Ports: a program
for each, on one end of a veth pair in a network namespace that is made for the sample; packet_sender is at the other.
"""

import contextlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass

from devices import alternate, compare, print_aim
from programs import Aim, Programs, Refused, Subject, cell, print_aims, print_failures, table
from programs import compare as compare_ns

PROGRAM = "packets_forebay"
OURS = Subject("forebay", PROGRAM, "forebay")


@dataclass(frozen=True)
class Peer(Subject):
    """In the same program as ours."""

    @property
    def ours(self):
        return False


MBUF = Peer("rte_pktmbuf", PROGRAM, "mbuf", "libdpdk-dev")
AIM = Aim("forebay", 0.7, ("rte_pktmbuf",))


@dataclass(frozen=True)
class Buffers:
    name: str
    title: str
    pattern: str
    aims: tuple = (AIM,)


@dataclass(frozen=True)
class Port:
    name: str
    title: str
    mode: str
    bytes: int


BUFFERS = (
    Buffers("packet-pair", "a packet allocated and freed", "pair"),
    Buffers("packet-headers", "the same with three pushes and a pull", "headers"),
    Buffers("packet-clone", "a clone made and freed", "clone"),
    Buffers("packet-burst", "32 allocated and freed by a call each, a packet", "burst", ()),
)
PORTS = tuple(Port(f"packet-{name}-{size}", f"{size} B over AF_XDP, {title}", mode, size)
              for name, mode, title in (("drop", "drop", "received and dropped"), ("swap", "macswap", "sent back, addresses exchanged"))
              for size in (60, 1514))
AIMS = (("op/s", "at least", 1.0), ("cpu_ns", "at most", 1.0))
LABELS_HERE = {"op/s": "packets a second", "cpu_ns": "CPU a packet"}
NAMESPACE = f"fbports{os.getpid()}"


def names():
    return [*(b.name for b in BUFFERS), *(p.name for p in PORTS)]


@contextlib.contextmanager
def pair():
    """tx0 and rx0 in a namespace that goes afterwards."""
    made = subprocess.run(["ip", "netns", "add", NAMESPACE], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise Refused(f"no network namespace: {made.stderr.strip()}")
    try:
        link = ["ip", "-n", NAMESPACE, "link"]
        commands = [[*link, "add", "tx0", "type", "veth", "peer", "name", "rx0"]]
        for name in ("tx0", "rx0"):
            quiet = f"net.ipv6.conf.{name}.disable_ipv6=1"
            commands += [["ip", "netns", "exec", NAMESPACE, "sysctl", "-qw", quiet], [*link, "set", name, "up"]]
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise Refused(f"{' '.join(command)}: {done.stderr.strip()}")
        yield
    finally:
        subprocess.run(["ip", "netns", "del", NAMESPACE], check=False)


class PacketBench(Programs):
    def __init__(self, build, rounds, windows, seconds, wanted, peers_only=False, progress=lambda text: None):
        super().__init__(build, windows)
        self.rounds, self.seconds, self.progress, self.peers_only = rounds, seconds, progress, peers_only
        self.buffers = [b for b in BUFFERS if wanted(b.name)]
        self.ports = [p for p in PORTS if wanted(p.name)]
        self.results = []

    # -- buffers

    def sample(self, subject, pattern):
        ns, windows, disturbed = self.program(subject).ask("sample", subject.subject, pattern).split()
        return {"ns": float(ns), "windows": int(windows), "disturbed": int(disturbed)}

    def measure_buffers(self, measure):
        subjects = [s for s in (OURS, MBUF) if not (self.peers_only and s.ours)]
        rows = self.turns(measure.name, subjects, lambda s: self.sample(s, measure.pattern))
        result = {"name": measure.name, "title": measure.title, "unit": "ns", "subjects": rows}
        result["aims"] = [a for a in (compare_ns(aim, result, []) for aim in measure.aims) if a]
        return result

    # -- ports

    def port(self, name, measure):
        """A sample of one of the two programs."""
        path = self.build / "bench" / f"packet_port_{name}"
        if not path.is_file():
            raise Refused("not built" + (": install libdpdk-dev and build again" if name == "dpdk" else ""))
        inside = ["ip", "netns", "exec", NAMESPACE, "taskset", "-c"]
        sender_cpu, cpu = self.cpus[0], self.cpus[-1]
        with pair():
            program = subprocess.Popen([*inside, str(cpu), path, "rx0", measure.mode, str(self.seconds)],
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            try:
                for line in program.stdout:
                    if line.strip() == "ready":
                        break
                else:
                    said = program.stderr.read().strip().splitlines()
                    raise Refused((said or ["it has ended without a message"])[-1])
                sender = subprocess.Popen([*inside, str(sender_cpu), self.build / "bench/packet_sender", "tx0", str(measure.bytes),
                                           str(self.seconds + 1.0)], stdout=subprocess.DEVNULL)
                out, err = program.communicate(timeout=self.seconds + 60)
                sender.terminate()
                sender.wait()
            finally:
                if program.poll() is None:
                    program.kill()
                    program.wait()
        if program.returncode != 0:
            raise Refused((err.strip().splitlines() or ["failed"])[-1])
        packets, cpu_ns, wall_ns = (int(w) for w in out.split())
        return {"op/s": packets / wall_ns * 1e9, "cpu_ns": cpu_ns / max(1, packets)}

    def measure_port(self, measure):
        names_here = ["dpdk"] if self.peers_only else ["forebay", "dpdk"]
        sides = {n: (lambda n=n: self.port(n, measure)) for n in names_here}
        rounds, failed, medians = alternate(measure.name, sides, self.rounds, lambda: time.sleep(0.1), self.progress)
        result = {"name": measure.name, "title": measure.title, "rounds": rounds, "medians": medians, "failed": failed, "aims": []}
        if len(medians) == 2:
            result["aims"] = [compare(aim, rounds["forebay"], rounds["dpdk"]) for aim in AIMS]
        if "forebay" in failed:
            self.refused["packet_port_forebay"] = failed["forebay"]
        return result

    def run(self):
        if self.buffers:
            got = [self.measure_buffers(b) for b in self.buffers]
            self.progress("")
            self.results += got
            print_buffers(got)
        self.close()
        for p in self.ports:
            result = self.measure_port(p)
            self.results.append(result)
            print_port(result)

    def our_failure(self):
        """Why one of our programs could not be run at all, or nothing; a missing namespace is the machine's affair."""
        return self.refused.get(PROGRAM)


def print_buffers(results):
    print("\npacket buffers, ns: median (lowest-highest round)")
    heads = list(results[0]["subjects"])
    table([["", "", *heads]] + [[r["name"], r["title"], *(cell(r["subjects"][h]) for h in heads)] for r in results],
          left=(0, 1))
    print_failures(results)
    print_aims((r["name"], a) for r in results for a in r["aims"])
    sys.stdout.flush()


def print_port(result):
    print(f"\n{result['name']}: {result['title']}")
    print(f"  {'':<10}" + "".join(f"{h:>14}" for h in ("packets/s", "CPU ns/packet")))
    for name in result["rounds"]:
        if name in result["failed"]:
            print(f"  {name:<10}  {result['failed'][name]}")
            continue
        m = result["medians"][name]
        print(f"  {name:<10}{m['op/s']:>14,.0f}{m['cpu_ns']:>14,.0f}")
    for a in result["aims"]:
        print_aim(LABELS_HERE[a["figure"]], a, "DPDK's")
    sys.stdout.flush()
