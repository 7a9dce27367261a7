#!/usr/bin/env python3
# ctest: processors=2
"""A real file system: ext4 on a loop device over nbdfuse over the server; afterwards the raw image
holds the same."""

import contextlib
import os
import random
import shutil
import subprocess
import tempfile

from lib import (
    GIB,
    MIB,
    PATIENCE,
    Cleanup,
    Failure,
    Server,
    allocated,
    die_with_parent,
    expect,
    loop_device,
    main,
    need,
    need_device,
    need_root,
    run,
    say,
    sha256,
    sparse_file,
    wait_for,
)

IMAGE = GIB
TREE_MAX = 80 * MIB


def source_tree(directory):
    """A tar of a real source tree, bounded in size, with links, an odd name and a large file beside
    it."""
    tree = os.path.join(directory, "tree")
    total = 0
    for root, directories, files in os.walk("/usr/include"):
        directories.sort()
        target = os.path.join(tree, os.path.relpath(root, "/usr/include"))
        os.makedirs(target, exist_ok=True)
        for name in sorted(files):
            path = os.path.join(root, name)
            if os.path.islink(path):
                os.symlink(os.readlink(path), os.path.join(target, name))
            elif os.path.isfile(path) and total < TREE_MAX:
                shutil.copyfile(path, os.path.join(target, name))
                total += os.path.getsize(path)
    with open(os.path.join(tree, "large file \u00e9"), "wb") as file:
        for _ in range(24):
            file.write(os.urandom(MIB))
    with open(os.path.join(tree, "sparse"), "wb") as file:
        file.truncate(64 * MIB)
        file.seek(33 * MIB)
        file.write(os.urandom(10000))
    archive = os.path.join(directory, "tree.tar")
    run("tar", "--create", "--sparse", "--file", archive, "--directory", tree, ".")
    return tree, archive


def manifest(directory):
    """Every file's and link's content by its path; lost+found is the file system's own."""
    found = {}
    for root, directories, files in os.walk(directory):
        if "lost+found" in directories:
            directories.remove("lost+found")
        for name in files:
            path = os.path.join(root, name)
            key = os.path.relpath(path, directory)
            found[key] = "-> " + os.readlink(path) if os.path.islink(path) else sha256(path)
    return found


def compare(one, other, what):
    wrong = [path for path in one.keys() | other.keys() if one.get(path) != other.get(path)]
    expect(
        not wrong, f"{what}: {len(wrong)} of {len(one)} files differ, such as {sorted(wrong)[:5]}"
    )


@contextlib.contextmanager
def block_device(directory, server):
    """The server's export as a loop device, over a nbdfuse of its own: nothing of it is in the
    kernel's caches yet."""
    fuse = tempfile.mkdtemp(prefix="fuse-", dir=directory)
    pidfile = fuse + ".pid"
    with Cleanup() as cleanup, open(fuse + ".log", "w+") as log:
        nbdfuse = subprocess.Popen(
            ["nbdfuse", "-P", pidfile, os.path.join(fuse, "nbd"), server.uri()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent,
        )
        cleanup.callback(nbdfuse.wait, PATIENCE)
        # Not the polite kind: when the test has failed and the mount is busy it must still go away.
        cleanup.later("fusermount3", "-u", "-z", fuse)
        wait_for(
            lambda: os.path.exists(pidfile) or nbdfuse.poll() is not None, PATIENCE, "nbdfuse's mount"
        )
        if nbdfuse.poll() is not None:
            log.seek(0)
            raise Failure(f"nbdfuse ended with {nbdfuse.returncode}: {log.read()}")
        yield loop_device(cleanup, os.path.join(fuse, "nbd"))


@contextlib.contextmanager
def mounted(device, place, *options):
    with Cleanup() as cleanup:
        run("mount", *options, device, place)
        cleanup.unmount_later(place)
        yield


def check(device, place, expected, where):
    done = run("e2fsck", "-f", "-n", device, check=False)
    expect(done.returncode == 0, f"e2fsck {where}: {done.stdout}{done.stderr}")
    with mounted(device, place, "-o", "ro"):
        compare(expected, manifest(place), where)


def fill(archive, place, expected):
    """Unpacks the tree, and then makes changes that leave freed and rewritten blocks behind."""
    run("tar", "--extract", "--file", archive, "--directory", place)
    for path in random.sample(sorted(path for path in expected if path.endswith(".h")), 200):
        os.unlink(os.path.join(place, path))
        del expected[path]
    run("sync", "-f", place)
    run("fstrim", place, check=False)
    for number in range(200):
        path = f"new-{number}"
        with open(os.path.join(place, path), "wb") as file:
            file.write(os.urandom(random.randrange(1, 60000)))
        expected[path] = sha256(os.path.join(place, path))


def test(directory):
    need_root()
    need("nbdfuse", "fusermount3", "losetup", "mkfs.ext4", "e2fsck", "tar")
    need_device("/dev/fuse")
    need_device("/dev/loop-control")
    tree, archive = source_tree(directory)
    expected = manifest(tree)
    image = sparse_file(os.path.join(directory, "disk.img"), IMAGE)
    place = os.path.join(directory, "mnt")
    os.mkdir(place)
    with Server(image, cache="32M") as server:
        with block_device(directory, server) as device:
            run("mkfs.ext4", "-q", "-F", device)
            with mounted(device, place):
                fill(archive, place, expected)
        with block_device(directory, server) as device:
            check(device, place, expected, "through the server")
        expect(server.alive(), "the server has died")
    with Cleanup() as cleanup:
        check(loop_device(cleanup, image, "--read-only"), place, expected, "in the raw image")
    say(f"{len(expected)} files, image takes {allocated(image) / MIB:.0f} MiB")


main(test)
