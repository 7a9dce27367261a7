#!/usr/bin/env python3
"""`forebay replay`: known traces give known miss ratios, every format is read, and what is wrong is
said in one line."""

import json
import lzma
import os
import random
import shutil
import struct
import xml.etree.ElementTree

from lib import Cases, expect, main, program, run

TRACES = os.path.join(os.environ["FOREBAY_SOURCE"], "tests", "traces")
CLOUD = os.path.join(TRACES, "cloudPhysicsIO.oracleGeneral.bin.xz")
LOOP = os.path.join(TRACES, "loop.oracleGeneral.bin.xz")


def replay(*arguments):
    done = run(program(), "replay", *arguments, "--json")
    return json.loads(done.stdout)["traces"]


def ratios(trace):
    return {
        (p["policy"], s["blocks"]): s["miss_ratio"] for p in trace["policies"] for s in p["sizes"]
    }


def misses(path, policy, size, *more):
    (trace,) = replay(path, "--policy", policy, "--size", str(size), *more)
    return trace["policies"][0]["sizes"][0]["misses"]


def known_ratios(directory):
    """What libCacheSim gives."""
    (cloud, loop) = replay(CLOUD, LOOP, "--size", "1%,10%")
    expect(cloud["requests"] == 113872 and cloud["footprint_blocks"] == 48974, str(cloud)[:200])
    expect(loop["requests"] == 505500 and loop["footprint_blocks"] == 1011, str(loop)[:200])
    known = {
        "exact-lru": (0.838, 0.805, 0.005),
        "arc": (0.828, 0.773, 0.005),
        "lirs": (0.832, 0.752, 0.005),
        "belady": (0.793, 0.629, 0.005),
        "s3-fifo": (0.830, 0.753, 0.01),
    }
    found = ratios(cloud)
    for policy, (small, large, tolerance) in known.items():
        for blocks, ratio in ((489, small), (4897, large)):
            got = found[policy, blocks]
            expect(abs(got - ratio) <= tolerance, f"{policy}, {blocks}: {got}, not {ratio}")
    # A loop is the worst for recency, and LIRS keeps as much of it as the best possible, nearly.
    found = ratios(loop)
    for policy in ("exact-lru", "fifo", "clock", "lru", "2q", "arc", "sieve"):
        expect(found[policy, 101] == 1.0, f"{policy}: {found[policy, 101]}")
    best = (1011 + (505500 - 1011) * (1 - 100 / 1010)) / 505500
    expect(abs(found["belady", 101] - best) < 0.001, f"{found['belady', 101]}, not {best}")
    expect(found["lirs", 101] - best < 0.005, f"{found['lirs', 101]}, not {best}")
    # The default is nowhere far from the best of the others.
    others = ("exact-lru", "clock", "2q", "arc", "lirs", "s3-fifo")
    for trace in (cloud, loop):
        found = ratios(trace)
        for blocks in {b for _, b in found}:
            best = min(found[policy, blocks] for policy in others)
            got = found["adaptive", blocks]
            expect(got <= 1.01 * best, f"{trace['trace']}, {blocks}: {got}, others {best}")


def formats(directory):
    """One small load in every format."""
    numbers = [1, 2, 3, 1, 2, 4, 1, 2, 3, 4]

    def write(name, data):
        path = os.path.join(directory, name)
        with open(path, "wb") as file:
            file.write(data)
        return path

    oracle = b"".join(struct.pack("<IQIq", 0, n, 512, -1) for n in numbers)
    msr = "".join(f"128166372003061629,hm,1,Read,{n * 4096},4096,100\n" for n in numbers)
    text = "# a comment\n\n" + "".join(f"{n}\n" for n in numbers)
    ops = "".join(f"{'rw'[n % 2]} {n * 4096} 4096\r\n" for n in numbers)
    paths = [
        write("a.bin", oracle),
        write("a.bin.xz", lzma.compress(oracle)),
        write("a.oracleGeneral", oracle),
        write("a.csv", msr.encode()),
        write("a.csv.xz", lzma.compress(msr.encode())),
        write("a.txt", text.encode()),
        write("b.txt", ops.encode()),
        write("noend.txt", text.rstrip("\n").encode()),
    ]
    if shutil.which("zstd"):
        run("zstd", "-q", paths[0], "-o", paths[0] + ".zst")
        paths.append(paths[0] + ".zst")
    for path in paths:
        (trace,) = replay(path, "--size", "2,3")
        expect((trace["requests"], trace["footprint_blocks"]) == (10, 4), f"{path}: {trace}")
        found = ratios(trace)
        for policy, two, three in (("fifo", 10, 8), ("exact-lru", 10, 6), ("belady", 7, 5)):
            got = (found[policy, 2] * 10, found[policy, 3] * 10)
            expect(
                abs(got[0] - two) + abs(got[1] - three) < 1e-6, f"{path}: {policy}: {got}"
            )
    # Ranges are cut into blocks; each disk has its own.
    path = write("c.csv", b"1,hm,0,Write,4095,2,9\n1,hm,0,Read,0,8192,9\n1,hm,1,Read,0,4096,9\n")
    (trace,) = replay(path, "--size", "50%")
    expect((trace["requests"], trace["footprint_blocks"]) == (5, 3), str(trace))
    (trace,) = replay(path, "--size", "50%", "--block-size", "8K")
    expect((trace["requests"], trace["footprint_blocks"]) == (3, 2), str(trace))
    (trace,) = replay(write("d", b"7\n7\n8\n"), "--format", "text", "--size", "4K")
    expect(trace["policies"][0]["sizes"][0]["blocks"] == 1, str(trace))


def estimated(directory):
    """The curve that a server estimates is near the exact one; what it says of exact LRU is so."""
    (cloud, loop) = replay(CLOUD, LOOP, "--mrc", "--size", "1%,10%")
    expect(cloud["rate"] < 0.5 and cloud["sampled_blocks"] < 16384, str(cloud)[:200])
    expect(cloud["mean_error"] < 0.01 and cloud["max_error"] < 0.06, str(cloud)[:200])
    for size, known in zip(cloud["sizes"], (0.838, 0.805)):
        expect(abs(size["exact"] - known) <= 0.001, str(size))
        expect(abs(size["sampled"] - size["exact"]) <= 0.02, str(size))
    # All of its blocks are in the sample, but where the curve falls sizes are known to 1/16.
    expect(loop["rate"] > 0.999 and loop["mean_error"] < 0.01, str(loop)[:200])
    table = run(program(), "replay", LOOP, "--mrc").stdout
    for words in ("100.00 %", "exact LRU", "1.0000", "in the mean"):
        expect(words in table, table)


def scan(directory):
    """A scan of many times the cache leaves a hot set where it is."""
    rng = random.Random(1)
    hot = [rng.randrange(500) for _ in range(6000)]
    after = [rng.randrange(500) for _ in range(2000)]
    before = list(range(100_000, 102_000))
    device = range(10_000, 20_000)
    paths = []
    for name, middle in (("quiet", []), ("scanned", list(device))):
        path = os.path.join(directory, name)
        with open(path, "w") as file:
            file.writelines(f"{n}\n" for n in before + hot + middle + after)
        paths.append(path)
    for policy, resists in (("adaptive", True), ("s3-fifo", True), ("clock", False)):
        quiet, scanned = (misses(path, policy, 950) for path in paths)
        lost = (scanned - len(device) - quiet) / len(after)
        expect((lost <= 0.02) == resists, f"{policy}: the scan cost {lost:.1%} of the hits")


def output(directory):
    table = run(program(), "replay", LOOP, CLOUD, "--policy", "adaptive,lirs,arc").stdout
    for words in ("505500 requests for 1011 blocks", "0.1% (1)", "10% (101)", "median over 2"):
        expect(words in table, table)
    expect(max(map(len, table.splitlines())) <= 110, table)
    picture = os.path.join(directory, "curve.svg")
    run(program(), "replay", CLOUD, "--policy", "clock,belady", "--size", "1%", "--svg", picture)
    root = xml.etree.ElementTree.parse(picture).getroot()
    marks = root.findall(".//{http://www.w3.org/2000/svg}circle")
    expect(len(marks) == 2 * 19, f"{len(marks)} marks")
    names = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    expect("clock" in names and "belady" in names and "miss ratio" in names, str(names))


def bad_input(directory):
    def file(name, data):
        path = os.path.join(directory, name)
        with open(path, "wb") as out:
            out.write(data)
        return path

    good = file("good", b"1\n2\n")
    with open(CLOUD, "rb") as trace:
        packed = trace.read()
    for arguments, words in (
        (("/nowhere/at.all",), ("/nowhere/at.all", "No such file")),
        ((directory,), (directory, "directory")),
        ((file("short.bin", b"x" * 25),), ("short.bin", "1 bytes of a record of 24", "record 2")),
        ((file("cut.bin.xz", packed[:-1000]),), ("cut.bin.xz", "too early")),
        ((file("broken.bin.xz", packed[:5000] + b"!!!!" + packed[5004:]),), ("damaged",)),
        ((file("not.bin.xz", b"plain text\n" * 10),), ("not compressed by xz",)),
        ((file("not.bin.zst", b"plain text\n" * 10),), ("not compressed by zstd",)),
        ((file("empty", b""),), ("empty", "no requests")),
        ((file("a.csv", b"Timestamp,a\n1,2,3\n"),), ("a.csv", "line 2", "seven fields")),
        ((file("b.csv", b"1,h,0,Trim,0,1,1\n"),), ("line 1", "neither Read nor Write")),
        ((file("c.csv", b"1,h,0,Read,x,1,1\n"),), ("line 1", "offset")),
        ((file("e", b"1\ntwo\n"),), ("line 2", "block number")),
        ((file("f", b"read 0\n"),), ("line 1", "op offset length")),
        ((file("g", b"read 0 -1\n"),), ("line 1", "length")),
        ((file("h", b"read 0 99999999999\n"),), ("line 1", "1 GiB")),
        ((file("i", b"1" * 9000),), ("line 1", "too long")),
        ((good, "--policy", "magic"), ("magic", "adaptive", "lirs")),
        ((good, "--size", "0"), ("--size 0", "above 0")),
        ((good, "--size", "1%,0%"), ("--size 0%", "above 0")),
        ((good, "--size", "-1"), ("--size -1", "above 0")),
        ((good, "--size", "101%"), ("101%", "footprint")),
        ((good, "--size", "1Q"), ("1Q", "unit")),
        ((good, "--size", "big"), ("big", "not a size")),
        ((good, "--size", "1e-9"), ("1e-9", "less than a block")),
        ((good, "--block-size", "1000"), ("1000", "power of two")),
        ((good, "--format", "pcap"), ("pcap", "oracle")),
        ((good, "--svg", "/nowhere/at.all"), ("/nowhere/at.all", "cannot be written")),
        ((good, "--mrc", "--policy", "lru"), ("--mrc", "--policy")),
        ((), ("TRACE",)),
    ):
        done = run(program(), "replay", *arguments, check=False)
        expect(done.returncode == 1, f"{arguments}: status {done.returncode}")
        expect(len(done.stderr.splitlines()) == 1, f"{arguments}: {done.stderr}")
        expect(not done.stdout, f"{arguments}: {done.stdout}")
        for word in words:
            expect(word in done.stderr, f"{arguments}: {done.stderr}")


def test(directory):
    cases = Cases()
    for step in (known_ratios, estimated, formats, scan, output, bad_input):
        with cases.case(step.__name__):
            step(directory)
    cases.finish()


main(test)
