#!/usr/bin/env python3
"""Every kind of bad input: one line that begins with `forebay: `, an exit status other than 0,
nothing changed on disk."""

import os
import shutil
import socket
import subprocess
import tempfile

from lib import (
    KIB,
    MIB,
    PATIENCE,
    Cases,
    Cleanup,
    Failure,
    Server,
    expect,
    free_port,
    main,
    program,
    run,
    say,
    sha256,
    sparse_file,
)


def snapshot(directory):
    """Everything in a directory that bad input must leave as it was."""
    found = {}
    for root, directories, files in os.walk(directory):
        for name in directories:
            found[os.path.join(root, name)] = "directory"
        for name in files:
            path = os.path.join(root, name)
            status = os.lstat(path)
            content = sha256(path) if os.path.isfile(path) else "special"
            found[path] = (
                status.st_mode,
                status.st_size,
                status.st_mtime_ns,
                status.st_blocks,
                content,
            )
    return found


class Bench:
    def __init__(self, directory, cases):
        self.directory = directory
        self.cases = cases
        self.socket = os.path.join(directory, "bad.sock")

    def path(self, name):
        return os.path.join(self.directory, name)

    def refused(self, name, *arguments, says=(), user=None, binary=None):
        """Runs the program and expects it to refuse; `says` are words of which one must be in the
        line."""
        with self.cases.case(name):
            before = snapshot(self.directory)
            command = [binary or program(), *map(str, arguments)]
            try:
                done = subprocess.run(
                    command,
                    capture_output=True,
                    text=True,
                    timeout=PATIENCE,
                    user=user,
                    stdin=subprocess.DEVNULL,
                    cwd=self.directory,
                    errors="replace",
                )
            except subprocess.TimeoutExpired:
                raise Failure(f"it was accepted, or hangs: no end after {PATIENCE} s") from None
            lines = done.stderr.splitlines()
            told = f"status {done.returncode}, stdout {done.stdout!r}, stderr {done.stderr!r}"
            expect(done.returncode > 0, f"no failing exit status: {told}")
            expect(len(lines) == 1, f"not exactly one line: {told}")
            expect(
                lines[0].startswith("forebay: "),
                f"the line does not begin with 'forebay: ': {told}",
            )
            expect(len(lines[0]) > len("forebay: ") + 10, f"the line says nothing: {told}")
            expect(not done.stdout, f"something on stdout: {told}")
            expect(
                not says or any(word.lower() in lines[0].lower() for word in says),
                f"none of {says}: {told}",
            )
            expect(snapshot(self.directory) == before, "something on disk has changed")
            say(f"        {lines[0]}")

    def serve(self, name, *arguments, **options):
        self.refused(name, "serve", *arguments, "--socket", self.socket, **options)


def images(bench, good):
    bench.serve("no such image", bench.path("nothing.img"), says=["nothing.img"])
    bench.serve("no such directory", bench.path("nowhere/disk.img"), says=["nowhere"])
    bench.serve("image is a directory", bench.path("folder"), says=["directory"])
    bench.serve("image is a fifo", bench.path("fifo"), says=["fifo"])
    bench.serve("image is a character device", "/dev/null", says=["/dev/null"])
    bench.serve("image is empty", bench.path("empty.img"), says=["empty"])
    bench.serve("size is no multiple of 512", bench.path("odd.img"), says=["multiple"])
    bench.serve(
        "size is no multiple of --block-size",
        bench.path("half.img"),
        "--block-size",
        4096,
        says=["multiple"],
    )
    bench.serve("a good image and a bad one", good, bench.path("nothing.img"), says=["nothing.img"])
    bench.serve("the same image twice", good, good)
    bench.serve("two images of one name", good, bench.path("folder/good.img"), says=["good.img"])
    bench.serve("--name for two images", good, bench.path("half.img"), "--name", "x", says=["name"])
    bench.refused("no image", "serve", "--socket", bench.socket)


def numbers(bench, good):
    for size in (
        "0",
        "1",
        "4K",
        "-5",
        "-5M",
        "abc",
        "",
        "12Q",
        "1e99",
        "18446744073709551616",
        "99999999999999999999G",
        "16 M B",
        "M",
    ):
        bench.serve(f"--cache {size!r}", good, f"--cache={size}", says=["cache"])
    with open("/proc/meminfo") as file:
        total = int(next(line for line in file if line.startswith("MemTotal")).split()[1]) * KIB
    bench.serve(
        "cache larger than memory", good, "--cache", f"{total // MIB + 1024}M", says=["memory"]
    )
    bench.serve("cache far larger than memory", good, "--cache", "1024T", says=["memory"])
    for size in ("0", "3", "1000", "-512", "abc", "16M", "131072"):
        bench.serve(f"--block-size {size}", good, f"--block-size={size}", says=["block"])
    for number in ("0", "-1", "abc", "1000000", ""):
        bench.serve(f"--threads {number!r}", good, f"--threads={number}", says=["thread"])


def options(bench, good):
    bench.serve("unknown option", good, "--no-such-option", says=["no-such-option"])
    bench.serve("unknown short option", good, "-Z")
    bench.serve("a NUMA node that is not", good, "--numa-node", "4711", says=["4711", "no such node"])
    bench.serve("pages that are not", good, "--huge-pages", "3M", says=["3M"])
    bench.serve("a policy that is not", good, "--eviction", "magic", says=["magic", "adaptive"])
    bench.serve("option without its value", good, "--cache")
    bench.serve(
        "write-back and write-through", good, "--write-back", "--write-through", says=["write-"]
    )
    bench.serve(
        "--socket with --listen", good, "--listen", f"127.0.0.1:{free_port()}", says=["listen"]
    )
    bench.serve("an export name that is too long", good, "--name", "x" * 5000, says=["name"])
    bench.serve(
        "more descriptions than images",
        *(good, "--description", "one", "--description", "two"),
        says=["description", "images"],
    )
    bench.serve(
        "a description that is too long", good, "--description", "x" * 5000, says=["4096"]
    )
    bench.refused("no subcommand")
    bench.refused("unknown subcommand", "server", good)
    bench.refused("stat without a socket", "stat")
    bench.refused(
        "stat of a socket that is not there",
        "stat",
        bench.path("nobody.sock"),
        says=["nobody.sock"],
    )
    bench.refused("stat of a file", "stat", good)
    bench.refused("stat of a closed port", "stat", f"127.0.0.1:{free_port()}")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        # It accepts, and then says nothing.
        bench.refused("stat of something silent", "stat", f"127.0.0.1:{listener.getsockname()[1]}")


def sockets(bench, good, other):
    for place in (
        "127.0.0.1",
        "127.0.0.1:",
        ":",
        "127.0.0.1:99999",
        "127.0.0.1:-1",
        "127.0.0.1:abc",
        "",
        "256.1.1.1:10809",
    ):
        bench.refused(f"--listen {place!r}", "serve", good, f"--listen={place}")
    bench.refused("an address of another machine", "serve", good, "--listen", "192.0.2.1:10809")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        place = f"127.0.0.1:{listener.getsockname()[1]}"
        bench.refused("port in use", "serve", good, "--listen", place, says=["use"])
    bench.refused(
        "socket path too long", "serve", good, "--socket", bench.path("x" * 200), says=["long"]
    )
    bench.refused("empty socket path", "serve", good, "--socket=", says=["socket"])
    bench.refused(
        "socket in a directory that is not there",
        "serve",
        good,
        "--socket",
        bench.path("nowhere/s"),
    )
    bench.refused(
        "socket path is a regular file", "serve", good, "--socket", other, says=["half.img"]
    )
    bench.refused(
        "socket path is a directory",
        "serve",
        good,
        "--socket",
        bench.path("folder"),
        says=["folder"],
    )
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(bench.path("other.sock"))
        listener.listen()
        bench.refused(
            "socket in use by another program",
            "serve",
            good,
            "--socket",
            bench.path("other.sock"),
            says=["use"],
        )


def in_use(bench, good, other):
    with Server(good, socket=bench.path("live.sock")) as server:
        with server.client() as client:
            client.write(0, b"live" * 1024, 1)
            bench.refused(
                "socket in use by a live server",
                "serve",
                other,
                "--socket",
                bench.path("live.sock"),
                says=["use"],
            )
            bench.serve("image already served", good, says=["use", "already", "serve"])
            link = bench.path("link.img")
            os.symlink(good, link)
            bench.serve(
                "image already served, by another name", link, says=["use", "already", "serve"]
            )
            os.unlink(link)
            with bench.cases.case("the live server has not been disturbed"):
                expect(client.read(0, 4096) == b"live" * 1024, "wrong data")
                with server.client() as second:
                    expect(second.read(0, 4096) == b"live" * 1024, "wrong data on a new connection")
    with bench.cases.case("a dead server's socket and image are taken over silently"):
        dead = Server(good, socket=bench.path("live.sock"))
        dead.kill()
        expect(
            os.path.exists(bench.path("live.sock")), "the killed server should have left its socket"
        )
        with Server(good, socket=bench.path("live.sock")) as server, server.client() as client:
            expect(client.read(0, 4096) == b"live" * 1024, "wrong data")
            expect(not server.stderr(), f"it was not silent: {server.stderr()!r}")


def permissions(bench, good):
    if os.geteuid() != 0:
        os.chmod(good, 0o444)
        bench.serve("read-only image without --read-only", good, says=["read-only", "permission"])
        os.chmod(good, 0o644)
        return
    # Root may write to any file: ask as nobody, with a copy of the program where nobody can reach
    # it.
    with Cleanup() as cleanup:
        public = tempfile.mkdtemp(
            prefix="forebay-public-", dir=os.path.dirname(os.path.dirname(bench.directory))
        )
        os.chmod(public, 0o777)
        cleanup.callback(shutil.rmtree, public, True)
        binary = shutil.copy(program(), os.path.join(public, "forebay"))
        image = sparse_file(os.path.join(public, "disk.img"), MIB)
        os.chmod(image, 0o444)
        probe = subprocess.run(
            [binary, "--help"], user=65534, capture_output=True, stdin=subprocess.DEVNULL
        )
        if probe.returncode:
            say("left out: read-only image for an ordinary user: nobody cannot run the program")
        else:
            sock = os.path.join(public, "s")
            bench.refused(
                "read-only image without --read-only",
                "serve",
                image,
                "--socket",
                sock,
                user=65534,
                binary=binary,
                says=["read-only", "permission"],
            )
            os.chmod(image, 0o000)
            bench.refused(
                "unreadable image",
                "serve",
                image,
                "--socket",
                sock,
                "--read-only",
                user=65534,
                binary=binary,
                says=["permission"],
            )
        device = run("losetup", "--find", "--show", "--read-only", good, check=False)
        if device.returncode:
            say("left out: read-only block device: no loop device")
        else:
            name = device.stdout.strip()
            cleanup.later("losetup", "--detach", name)
            bench.serve(
                "read-only block device without --read-only", name, says=["read-only", "permission"]
            )


def test(directory):
    cases = Cases()
    bench = Bench(os.path.join(directory, "d"), cases)
    os.makedirs(bench.path("folder"))
    good, other = bench.path("good.img"), bench.path("half.img")
    for name, size in (("good.img", 4 * MIB), ("folder/good.img", MIB)):
        with open(bench.path(name), "wb") as file:
            file.write(os.urandom(size))
    with open(other, "wb") as file:
        file.write(os.urandom(MIB + 512))
    sparse_file(bench.path("empty.img"), 0)
    sparse_file(bench.path("odd.img"), MIB + 100)
    os.mkfifo(bench.path("fifo"))
    images(bench, good)
    numbers(bench, good)
    options(bench, good)
    sockets(bench, good, other)
    in_use(bench, good, other)
    permissions(bench, good)
    cases.finish()


main(test)
