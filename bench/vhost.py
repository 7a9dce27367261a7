"""Measures vhost-user-blk: Forebay's beside qemu-storage-daemon's, by vhost_load, whose driver polls. bench/README.md says what
each case means.

Samples alternate, round after round; both servers run all the time and serve images of equal contents.
"""

import json
import shutil
import statistics
import subprocess
import time
from dataclasses import dataclass

from programs import Refused

RANGE = 256 << 20
OURS, PEER = "forebay", "qemu-storage-daemon"


@dataclass
class Measure:
    name: str
    title: str
    load: list  # arguments of vhost_load
    aim: float = 0  # least ratio to the peer's


MEASURES = [
    Measure("vhost-read-qd1", "vhost-user-blk, 4 KiB random read, resident, depth 1", ["--depth", "1"]),
    Measure("vhost-read-qd32", "vhost-user-blk, 4 KiB random read, resident, depth 32", ["--depth", "32"], 4.5),
    Measure("vhost-write-qd1", "vhost-user-blk, 4 KiB random write into the cache, depth 1", ["--depth", "1", "--write", "--fill"]),
    Measure("vhost-write-qd32", "vhost-user-blk, 4 KiB random write into the cache, depth 32",
            ["--depth", "32", "--write", "--fill"], 4.5),
]


def names():
    return [m.name for m in MEASURES]


class Server:
    """A server in the background; stop() ends it."""

    def __init__(self, command, sock, log):
        sock.unlink(missing_ok=True)
        with open(log, "wb") as out:
            self.process = subprocess.Popen([str(c) for c in command], stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        self.socket = sock
        end = time.monotonic() + 30
        while not sock.exists():
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                lines = log.read_text(errors="replace").strip().splitlines()
                raise Refused((lines or ["it does not come up"])[-1])
            time.sleep(0.05)

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class VhostBench:
    def __init__(self, program, load, work, rounds, seconds, peers_only, progress):
        self.program, self.load, self.work = program, load, work
        self.rounds, self.seconds, self.peers_only, self.progress = rounds, seconds, peers_only, progress
        self.servers = {}
        self.refused = {}

    def start(self, name):
        self.work.mkdir(parents=True, exist_ok=True)
        image, sock = self.work / f"{name}.img", self.work / f"{name}.sock"
        with open(image, "wb") as out:
            out.truncate(2 * RANGE)
        if name == OURS:
            command = [self.program, "serve", image, "--cache", "1G", "--vhost-user", sock]
        else:
            if shutil.which(PEER) is None:
                raise Refused("not installed")
            command = [PEER, "--blockdev", f"driver=file,filename={image},node-name=disk", "--export",
                       f"type=vhost-user-blk,id=export,addr.type=unix,addr.path={sock},node-name=disk,writable=on"]
        return Server(command, sock, self.work / f"{name}.log")

    def sample(self, measure, name):
        server = self.servers[name]
        done = subprocess.run([str(self.load), "--socket", str(server.socket), "--pid", str(server.process.pid), "--range",
                               str(RANGE), "--seconds", str(self.seconds), *measure.load], capture_output=True, text=True)
        if done.returncode != 0:
            raise Refused((done.stderr.strip().splitlines() or ["vhost_load failed"])[-1])
        return json.loads(done.stdout.splitlines()[0])

    def run(self, wanted):
        """The measures that are wanted; a list for --json."""
        results = []
        try:
            for name in [PEER] if self.peers_only else [OURS, PEER]:
                try:
                    self.servers[name] = self.start(name)
                except Refused as e:
                    self.refused[name] = str(e)
            for measure in MEASURES:
                if wanted(measure.name):
                    results.append(self.measure(measure))
        finally:
            for server in self.servers.values():
                server.stop()
        return results

    def measure(self, measure):
        samples = {name: [] for name in self.servers}
        for number in range(self.rounds):
            self.progress(f"{measure.name} {number + 1}/{self.rounds}")
            for name, list_of in samples.items():
                list_of.append(self.sample(measure, name))
        self.progress("")
        print(f"\n{measure.name}: {measure.title}")
        median = {}
        for name, list_of in samples.items():
            median[name] = {key: statistics.median(s[key] for s in list_of)
                            for key in ("per_second", "p50_us", "p99_us", "server_cpu_us")}
            m = median[name]
            print(f"  {name:<20} {m['per_second']:>9.0f} op/s   p50 {m['p50_us']:>7.1f} us   p99 {m['p99_us']:>8.1f} us   "
                  f"server CPU {m['server_cpu_us']:>6.2f} us")
        for name, why in self.refused.items():
            print(f"  {name:<20} left out: {why}")
        if OURS in median and PEER in median:
            ratio = median[OURS]["per_second"] / median[PEER]["per_second"]
            aim = f" (aim: {measure.aim:g}, {'met' if ratio >= measure.aim else 'missed'})" if measure.aim else ""
            print(f"  {ratio:.2f} times {PEER}{aim}")
        return {"name": measure.name, "samples": samples, "median": median, "refused": self.refused}
