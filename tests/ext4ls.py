#!/usr/bin/env python3
"""examples/ext4ls on images made by mke2fs: what it lists and extracts is what debugfs says and what
was put in, in blocks of 1, 2 and 4 KiB; damaged images end in one line, never in a crash or a loop."""

import os
import random
import shutil
import subprocess
import tempfile

from lib import KIB, MIB, expect, main, need, run

SIZE = 12 * MIB
DAMAGES = 12  # of each image that is damaged


def ext4ls(*arguments, check=True):
    program = os.path.join(os.environ["FOREBAY_BUILD"], "examples", "ext4ls")
    done = subprocess.run([program, *arguments], capture_output=True, timeout=30)
    if check:
        expect(done.returncode == 0, f"ext4ls {arguments}: {done.stderr.decode()}")
    return done


def make_tree(top, rng):
    os.makedirs(os.path.join(top, "deep/er/and/deeper"))
    os.makedirs(os.path.join(top, "many"))

    def write(name, data):
        with open(os.path.join(top, name), "wb") as file:
            file.write(data)

    write("empty", b"")
    write("small", b"holds water back\n")
    write("odd", rng.randbytes(5 * KIB + 123))
    write("deep/er/and/large", rng.randbytes(1500 * KIB))  # double indirect blocks of 1 KiB
    for i in range(120):  # several blocks of a directory, and an index where there is one
        write(f"many/a file with a rather long name, number {i:04}", b"%d\n" % i * (i % 7))
    with open(os.path.join(top, "sparse"), "wb") as file:  # many extents: a tree of them
        for i in range(1, 60):
            file.seek(i * 97 * KIB)
            file.write(rng.randbytes(8 * KIB))
        file.seek(6 * MIB - 1)  # mke2fs 1.47 forgets a hole at the end, with inline data
        file.write(b"!")
    os.symlink("small", os.path.join(top, "short link"))
    os.symlink("d/" * 100 + "nowhere", os.path.join(top, "long link"))
    os.chmod(os.path.join(top, "odd"), 0o640)


def same_trees(one, other):
    done = subprocess.run(["diff", "-r", "--no-dereference", one, other], capture_output=True, text=True)
    expect(done.returncode == 0, f"trees differ: {done.stdout[:500]}")


def listed_by_debugfs(image, path):
    entries = {}
    for line in run("debugfs", "-R", f'ls -p "{path}"', image).stdout.splitlines():
        if line.startswith("/"):
            _, inode, mode, _, _, name, size, _ = line.split("/")
            if inode != "0":
                entries[name] = (int(inode), int(mode, 8) & 0o7777, int(size) if size else None)
    return entries


def compare_lists(image, path):
    expected = listed_by_debugfs(image, path)
    lines = ext4ls(image, path).stdout.decode().splitlines()
    expect(len(lines) == len(expected), f"{path}: {len(lines)} entries, debugfs has {len(expected)}")
    for line in lines:
        inode, mode, size, name = line.split(maxsplit=3)
        theirs = expected[name.split(" -> ")[0]]
        expect((int(inode), int(mode[1:], 8)) == theirs[:2], f"{line!r}, debugfs: {theirs}")
        expect(theirs[2] in (None, int(size)), f"{line!r}, debugfs: {theirs}")


def make_image(path, tree, kind, block_bytes, *options):
    with open(path, "wb") as file:
        file.truncate(SIZE)
    run("mke2fs", "-q", "-F", "-t", kind, "-b", str(block_bytes), *options, "-d", tree, path)


def check_image(directory, image, tree):
    for path in ("/", "/many", "/deep/er"):
        compare_lists(image, path)
    out = os.path.join(directory, "out")
    ext4ls("-r", image, "/", out)
    shutil.rmtree(os.path.join(out, "lost+found"))
    same_trees(tree, out)
    shutil.rmtree(out)
    with open(os.path.join(tree, "sparse"), "rb") as file:
        expect(ext4ls("-x", image, "/sparse").stdout == file.read(), "the sparse file differs")
    dumped = subprocess.run(["debugfs", "-R", "cat /odd", image], capture_output=True).stdout
    expect(ext4ls("-x", image, "/odd").stdout == dumped, "not what debugfs reads")
    for path in ("/no such file", "/small/x", "/deep//er/./x"):
        done = ext4ls("-x", image, path, check=False)
        expect(done.returncode == 1 and done.stderr.count(b"\n") == 1, f"{path}: {done}")


def damage(directory, image, rng):
    """Changes a few bytes of the metadata, most of which lies at the start, and looks at everything."""
    with open(image, "rb") as file:
        whole = file.read()
    used = [at for at in range(1024, len(whole), KIB) if any(whole[at : at + KIB])][:300]
    out = os.path.join(directory, "out")
    with open(image, "r+b", buffering=0) as file:
        for number in range(DAMAGES):
            places = {
                1024 + rng.randrange(256) if rng.random() < 0.2 else rng.choice(used) + rng.randrange(KIB)
                for _ in range(rng.choice((1, 4, 64)))
            }
            for at in places:
                os.pwrite(file.fileno(), bytes([rng.choice((0, 0xFF, rng.randrange(256)))]), at)
            if number % 8 == 7:
                file.truncate(SIZE // 2)
            for arguments in (
                (image, "/many"),
                ("-x", image, "/sparse"),
                ("-x", image, "/deep/er/and/large"),
                ("-r", image, "/", out) if number % 4 == 0 else (image, "/"),
            ):
                done = ext4ls(*arguments, check=False)
                expect(done.returncode in (0, 1), f"damage {number} ended in {done.returncode}")
                said = done.stderr.count(b"\n") - done.stderr.count(b"left out\n")
                expect(said == done.returncode, f"damage {number}, {arguments}: {done.stderr}")
            for at in places:
                os.pwrite(file.fileno(), whole[at : at + 1], at)
            if number % 8 == 7:
                os.pwrite(file.fileno(), whole[SIZE // 2 :], SIZE // 2)
            shutil.rmtree(out, ignore_errors=True)


def bad_arguments(directory):
    nothing = os.path.join(directory, "nothing.img")
    with open(nothing, "wb") as file:
        file.truncate(MIB)
    for arguments, status in (
        ((), 2),
        (("-x", nothing), 2),
        (("-q", nothing, "/"), 2),
        ((nothing,), 1),
        ((os.path.join(directory, "none"),), 1),
    ):
        done = ext4ls(*arguments, check=False)
        expect(done.returncode == status, f"{arguments}: status {done.returncode}")
        expect(done.stderr.count(b"\n") == 1, f"{arguments}: {done.stderr}")


def check_images(disk, memory):
    """The last in a directory of a disk, whose file is read past the kernel's cache; the others in
    memory, because what has just been written to a disk is slow to read that way."""
    rng = random.Random(7)
    tree = os.path.join(memory, "tree")
    make_tree(tree, rng)
    for kind, block_bytes, *options in (
        ("ext2", 1 * KIB),
        ("ext2", 2 * KIB),
        ("ext2", 4 * KIB, "-r", "0"),
        ("ext4", 1 * KIB, "-O", "64bit"),
        ("ext4", 4 * KIB, "-O", "inline_data"),
        ("ext4", 2 * KIB, "-O", "^64bit"),
    ):
        last = kind == "ext4" and block_bytes == 2 * KIB
        image = os.path.join(disk if last else memory, "disk.img")
        make_image(image, tree, kind, block_bytes, *options)
        check_image(memory, image, tree)
        if (kind, block_bytes) in (("ext2", 1 * KIB), ("ext4", 4 * KIB)):
            damage(memory, image, rng)


def test(directory):
    need("mke2fs", "debugfs")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else directory) as memory:
        check_images(directory, memory)
        bad_arguments(memory)


main(test)
