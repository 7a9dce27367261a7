#!/usr/bin/env python3
"""How many packets `forebay capture`, `tcpdump -w` and dumpcap keep of what is sent flat out over a veth pair, and the
CPU time that each takes for one, all with the same memory. As root: it makes a network namespace and removes it.

  bench/capture.py [BUILD] [--seconds S] [--rounds N] [--directory DIR]

Aims: at 60 B at least 1.3 times tcpdump's packets and at most 1.2 of its CPU time a packet; at 1,514 B a tenth of the
loss of either. Sender and recorder share the machine: nothing else may run on it.
"""

import argparse
import os
import resource
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

MEMORY_MIB = 64
NAMESPACE = f"fbbench{os.getpid()}"
INSIDE = ["ip", "netns", "exec", NAMESPACE]
SIZES = (60, 1514)


def commands(build, file):
    yield "forebay", [build / "forebay", "capture", "-i", "rx0", "-w", file, "--buffer", f"{MEMORY_MIB}M", "--incoming"]
    if shutil.which("tcpdump"):
        yield "tcpdump", ["tcpdump", "-i", "rx0", "-n", "-w", file, "-B", str(MEMORY_MIB * 1024), "-Z", "root",
                          "--time-stamp-precision=nano", "-Q", "in"]
    if shutil.which("dumpcap"):
        yield "dumpcap", ["dumpcap", "-q", "-i", "rx0", "-w", file, "-B", str(MEMORY_MIB)]


def in_file(path):
    """The packets of a capture, by the lengths of their records (capinfos would take minutes)."""
    done = subprocess.run(["capinfos", "-T", "-r", "-M", "-c", path], capture_output=True, text=True, check=False)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else 0


def measure(build, name, command, size, seconds, file):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    recorder = subprocess.Popen([*INSIDE, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1.0)
    sender = subprocess.Popen([*INSIDE, build / "bench/packet_sender", "tx0", str(size), str(seconds)],
                              stdout=subprocess.PIPE, text=True)
    # The sender's time is not to be counted with the recorder's: its own is read before it is reaped.
    sent = int(sender.stdout.read())
    _, _, used = os.wait4(sender.pid, 0)
    sender.returncode = 0
    time.sleep(0.5)
    recorder.send_signal(signal.SIGINT)
    recorder.wait(60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime - used.ru_utime - used.ru_stime)
    kept = in_file(file)
    os.unlink(file)
    return {"sent": sent / seconds, "kept": kept / seconds, "lost": max(0.0, 1 - kept / sent),
            "cpu": cpu / max(kept, 1) * 1e9}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("build", nargs="?", default="build/release", type=Path)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", default="/var/tmp", help="where the captures are written")
    options = parser.parse_args()
    build = options.build.resolve()
    scratch = Path(tempfile.mkdtemp(prefix="forebay-bench-", dir=options.directory))
    subprocess.run(["ip", "netns", "add", NAMESPACE], check=True)
    try:
        link = ["ip", "-n", NAMESPACE, "link"]
        subprocess.run([*link, "add", "tx0", "type", "veth", "peer", "name", "rx0"], check=True)
        for name in ("tx0", "rx0"):
            subprocess.run([*link, "set", name, "up"], check=True)
        print(f"{'bytes':>6} {'':10} {'sent/s':>10} {'kept/s':>10} {'lost':>7} {'CPU ns/packet':>14}")
        for size in SIZES:
            seen = {}
            for _ in range(options.rounds):
                for name, command in commands(build, scratch / "capture.pcapng"):
                    seen.setdefault(name, []).append(
                        measure(build, name, command, size, options.seconds, scratch / "capture.pcapng"))
            for name, rounds in seen.items():
                middle = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
                print(f"{size:>6} {name:10} {middle['sent']:>10.0f} {middle['kept']:>10.0f} {middle['lost']:>7.1%} "
                      f"{middle['cpu']:>14.0f}", flush=True)
    finally:
        subprocess.run(["ip", "netns", "del", NAMESPACE], check=False)
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
