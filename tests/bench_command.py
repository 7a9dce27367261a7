#!/usr/bin/env python3
# ctest: processors=2
"""`forebay bench burst`: the table, the JSON and the picture tell the same; others' figures come into the picture; bad
input is one line. What the figures are is not looked at, but that they are figures."""

import json
import os
import xml.etree.ElementTree

from lib import Cases, expect, main, program, run

BATCHES = [1, 2, 4, 8, 16, 32, 64, 128, 256]
SVG = "{http://www.w3.org/2000/svg}"


def burst(*arguments):
    done = run(program(), "bench", "burst", "--rounds", "1", *arguments)
    expect(not done.stderr, f"something on stderr: {done.stderr}")
    return done.stdout


def subjects():
    rings = ["forebay spsc", "forebay mpmc"] if len(os.sched_getaffinity(0)) > 1 else []
    return [*rings, "buffer pool"]


def measures(directory):
    picture = os.path.join(directory, "burst.svg")
    got = json.loads(burst("--json", "--out", picture))
    expect([line["name"] for line in got["lines"]] == subjects(), f"{got}")
    for line in got["lines"]:
        expect(not line["peer"], f"{line}")
        expect([p["batch"] for p in line["points"]] == BATCHES, f"{line}")
        expect(all(0 < p["ns"] < 1e7 for p in line["points"]), f"{line}")
    root = xml.etree.ElementTree.parse(picture).getroot()
    points = [mark.find(f"{SVG}title").text for mark in root.iter(f"{SVG}circle")]
    expect(len(points) == len(BATCHES) * len(subjects()), f"{points}")
    for line in got["lines"]:
        for p in line["points"]:
            expect(f"{line['name']}, by {p['batch']}: {p['ns']:.2f} ns" in points, f"{line['name']}: {points}")


def others(directory):
    """As bench/run writes them, in a larger whole; and a line that is measured here stays ours."""
    theirs = {"unit": "ns an item", "lines": [
        {"name": "rte_ring SP/SC", "peer": True, "points": [{"batch": 1, "ns": 77.25}, {"batch": 32, "ns": 1.5}]},
        {"name": "buffer pool", "peer": False, "points": [{"batch": 1, "ns": 123456.75}]}]}
    path, picture = os.path.join(directory, "with.json"), os.path.join(directory, "both.svg")
    for whole in (theirs, {"machine": {}, "rings": {"burst": theirs}}):
        with open(path, "w", encoding="ascii") as file:
            json.dump(whole, file)
        table = burst("--with", path, "--out", picture).splitlines()
        expect("rte_ring SP/SC" in table[0], "\n".join(table))
        expect(table[1].split()[0] == "1" and table[1].split()[-1] == "77.25", table[1])
        expect(table[2].split()[-1] == "-", table[2])
        with open(picture, encoding="utf-8") as file:
            svg = file.read()
        expect("rte_ring SP/SC, by 32: 1.50 ns" in svg and "123456.75" not in svg, svg)


def bad_input(directory):
    path = os.path.join(directory, "bad.json")
    with open(path, "w", encoding="ascii") as file:
        file.write('{"lines": [{"name": "x", "peer": true, "points": [{"batch": 0, "ns": 1}]}]}')
    torn = os.path.join(directory, "torn.json")
    with open(torn, "w", encoding="ascii") as file:
        file.write('{"lines": [')
    nowhere = os.path.join(directory, "no", "where.svg")
    for arguments, words in (
        ((), ("subcommand",)),
        (("burst", "--cpus", "0,99999"), ("99999",)),
        (("burst", "--cpus", "0"), ("cpus",)),
        (("burst", "--rounds", "0"), ("rounds",)),
        (("burst", "--rounds", "1", "--with", "/no/such.json"), ("/no/such.json",)),
        (("burst", "--rounds", "1", "--with", path), (path,)),
        (("burst", "--rounds", "1", "--with", torn), (torn,)),
        (("burst", "--rounds", "1", "--out", nowhere), (nowhere,)),
    ):
        done = run(program(), "bench", *arguments, check=False)
        expect(done.returncode == 1, f"{arguments}: status {done.returncode}")
        expect(len(done.stderr.splitlines()) == 1, f"{arguments}: {done.stderr}")
        for word in words:
            expect(word in done.stderr, f"{arguments}: {done.stderr}")


def test(directory):
    cases = Cases()
    for step in (measures, others, bad_input):
        with cases.case(step.__name__):
            step(directory)
    cases.finish()


main(test)
