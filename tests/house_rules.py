#!/usr/bin/env python3
# ctest: timeout=120 labels=house
"""Shows that each house rule's check passes a clean tree and fails one planted violation."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

SOURCE = pathlib.Path(os.environ.get("FOREBAY_SOURCE") or
                      pathlib.Path(__file__).resolve().parent.parent)
SCRIPTS = SOURCE / "scripts"

CLEAN = {
    "forebay/base/thing.h": """\
// A thing.
#pragma once

#include <atomic>

namespace forebay {

int twice(std::atomic<int>& number);

}  // namespace forebay
""",
    "forebay/base/thing.cc": """\
#include "forebay/base/thing.h"

namespace forebay {

int twice(std::atomic<int>& number) {
  // relaxed: nothing is published through the number
  return 2 * number.load(std::memory_order_relaxed);
}

}  // namespace forebay
""",
    "forebay/os/file.cc": "#include <fcntl.h>\n#include <sys/mman.h>\n\n#include \"forebay/base/thing.h\"\n",
    "forebay/cache/cache_test.cc": "#include <unistd.h>\n\n#include \"sim/clock.h\"\n",
    "sim/clock.h": "#pragma once\n\n#include \"forebay/cache/cache.h\"\n",
    "docs/man/thing.1": """\
.Dd January 1, 2026
.Dt THING 1
.Os
.Sh NAME
.Nm thing
.Nd does a thing
""",
}


class Tree:
    """A small tree that keeps every rule, with the given files put in."""

    def __init__(self, **extra):
        self.root = pathlib.Path(tempfile.mkdtemp())
        for name, text in {**CLEAN, **extra.get("files", {})}.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for name in (".clang-format", ".clang-tidy"):
            shutil.copy(SOURCE / name, self.root)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.root)

    def run(self, script, *arguments):
        done = subprocess.run([SCRIPTS / script, *arguments], capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr


class HouseRules(unittest.TestCase):
    def passes(self, script, *before, root_option=()):
        with Tree() as tree:
            status, said = tree.run(script, *before, *root_option, tree.root)
        self.assertEqual(status, 0, said)

    def fails(self, name, text, expected, script, *before, root_option=()):
        with Tree(files={name: text}) as tree:
            status, said = tree.run(script, *before, *root_option, tree.root)
        self.assertEqual(status, 1, said)
        self.assertRegex(said, expected)

    def test_layers(self):
        self.passes("check-layers")
        for name, text, expected in (
            ("forebay/memory/a.cc", '#include "forebay/cache/cache.h"\n', "later layer"),
            ("forebay/memory/a_test.cc", '#include "forebay/block/bio.h"\n', "later layer"),
            ("forebay/base/a.h", '#pragma once\n#include "forebay/os/fd.h"\n', "later layer"),
            ("forebay/cache/a.cc", "#include <sys/mman.h>\n", "system calls"),
            ("forebay/serve/a.cc", "#include <liburing.h>\n", "system calls"),
            ("forebay/base/a.cc", "#include <unistd.h>\n", "system calls"),
            ("tools/forebay/a.cc", "#include <fcntl.h>\n", "system calls"),
            ("forebay/cache/a.cc", '#include "sim/clock.h"\n', "outside the library"),
            ("tools/forebay/a.cc", '#include "sim/clock.h"\n', "nothing but tests"),
            ("forebay/cache/a.cc", '#include "tools/forebay/size.h"\n', "outside the library"),
            ("forebay/cache/a.cc", '#include "cache.h"\n', "from the root"),
            ("forebay/utils/a.cc", "int a;\n", "no layer"),
        ):
            with self.subTest(name + ": " + text):
                self.fails(name, text, expected, "check-layers")

    def test_layers_are_the_build_s(self):
        build = re.search(r"set\(FOREBAY_LAYERS ([a-z ]+)\)", (SOURCE / "CMakeLists.txt").read_text())
        script = re.search(r"^LAYERS = (\[.*\])$", (SCRIPTS / "check-layers").read_text(), re.MULTILINE)
        self.assertEqual(build[1].split(), json.loads(script[1]))

    def test_style(self):
        self.passes("check-style")
        long_file = "int a;\n" * 601
        for name, text, expected in (
            ("forebay/base/a.cc", long_file, "601 lines"),
            ("forebay/base/a.cc", "// " + "x" * 98 + "\n", "101 columns"),
            ("forebay/base/a.cc", "\tint a;\n", "tab"),
            ("forebay/base/a.cc", "int a; \n", "blanks"),
            ("forebay/base/a.cc", "int a;", "no newline"),
            ("forebay/base/a.cc", "// TO" + "DO: more\n", "unfinished"),
            ("tests/a_test.cc", "// FIX" + "ME\n", "unfinished"),
            ("forebay/base/a.h", "int a();\n", "pragma once"),
            ("forebay/base/a.cc", "int a = b.load(std::memory_order_acquire);\n", "memory order"),
            ("sim/a.cc", "// why\n\n\n\nint a = b.load(std::memory_order::relaxed);\n",
             "memory order"),
        ):
            with self.subTest(name + ": " + text[:50]):
                self.fails(name, text, expected, "check-style")
        with Tree(files={"forebay/base/a.cc": "// long: one table\n" + long_file}) as tree:
            self.assertEqual(tree.run("check-style", tree.root)[0], 0)

    def test_format(self):
        self.passes("format", "--check")
        self.fails("forebay/base/a.cc", "int  a ;\n", "a.cc: 1 lines", "format", "--check")

    def test_man(self):
        self.passes("check-man")
        with Tree(files={"docs/man/a.1": ".Sh NAME\n.Nm a\n.Bl -bullet\n.It\n.Xx\n"}) as tree:
            status, said = tree.run("check-man", tree.root)
        self.assertNotIn(status, (0, 77), said)

    def test_tidy(self):
        bad = "int difference(int a, int b) { return a == b ? b - b : 0; }\n"
        wrong_name = "int TwoWords() { return 2; }\n"
        bad_header = "#pragma once\nstruct BadName {};\n"
        for files, status_wanted, expected in (
            ({}, 0, "0 with findings"),
            ({"forebay/base/a.cc": bad}, 1, "misc-redundant-expression"),
            ({"tools/forebay/a.cc": wrong_name, "forebay/base/b.h": bad_header,
              "forebay/base/a.cc": '#include "forebay/base/b.h"\n'},
             1, "(?s)b.h[^\n]*readability-identifier-naming.*a.cc[^\n]*readability-identifier-naming"),
        ):
            with self.subTest(expected), Tree(files=files) as tree:
                build = tree.root / "build"
                build.mkdir()
                names = ["forebay/base/thing.cc", *(f for f in files if f.endswith(".cc"))]
                compiled = [tree.root / f for f in names]
                if len(files) == 1:  # as where several are compiled at a time
                    unity = build / "CMakeFiles/thing.dir/Unity/unity_g0_cxx.cxx"
                    unity.parent.mkdir(parents=True)
                    unity.write_text("".join(f'#include "{path}"\n' for path in compiled))
                    compiled = [unity]
                (build / "compile_commands.json").write_text(json.dumps([
                    {"directory": str(build), "file": str(path),
                     "command": f"clang++-19 -std=c++23 -I{tree.root} -c {path}"} for path in compiled]))
                arguments = ("--build", build, "--root", tree.root)
                status, said = tree.run("tidy", *arguments)
                self.assertEqual(status, status_wanted, said)
                self.assertRegex(said, expected)
                if len(files) > 1:
                    continue
                # What passed is not looked at again; what failed is.
                status, said = tree.run("tidy", *arguments)
                self.assertEqual(status, status_wanted, said)
                self.assertRegex(said, f"{len(names)} files, {status_wanted} looked at")
                if status_wanted != 0:
                    continue
                # A change in a header is a change in all that include it.
                (tree.root / "forebay/base/thing.h").write_text(
                    CLEAN["forebay/base/thing.h"].replace("twice(", "Twice("))
                status, said = tree.run("tidy", *arguments)
                self.assertEqual(status, 1, said)

    def test_header_alone(self):
        # house.headers builds a target of CMake's own; this shows that it fails on a header that needs another one first.
        project = """\
cmake_minimum_required(VERSION 3.25)
project(planted LANGUAGES CXX)
add_library(planted STATIC forebay/base/thing.cc)
target_compile_features(planted PUBLIC cxx_std_23)
target_sources(planted PUBLIC FILE_SET HEADERS BASE_DIRS ${PROJECT_SOURCE_DIR} FILES forebay/base/thing.h)
set_target_properties(planted PROPERTIES VERIFY_INTERFACE_HEADER_SETS ON)
"""
        needy = CLEAN["forebay/base/thing.h"].replace("#include <atomic>\n", "")
        source = CLEAN["forebay/base/thing.cc"].replace("#include", "#include <atomic>\n#include", 1)
        for header, good in ((CLEAN["forebay/base/thing.h"], True), (needy, False)):
            files = {"CMakeLists.txt": project, "forebay/base/thing.h": header,
                     "forebay/base/thing.cc": source}
            with self.subTest(good=good), Tree(files=files) as tree:
                build = tree.root / "build"
                subprocess.run(["cmake", "-G", "Ninja", "-S", tree.root, "-B", build], check=True,
                               capture_output=True)
                for target, wanted in (("planted", True),
                                       ("planted_verify_interface_header_sets", good)):
                    done = subprocess.run(["cmake", "--build", build, "--target", target],
                                          capture_output=True, text=True)
                    self.assertEqual(done.returncode == 0, wanted, done.stdout + done.stderr)


if __name__ == "__main__":
    unittest.main()
