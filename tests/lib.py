"""What the tests of the whole program share: scratch space, the server as a context, checks, and
skipping.

The environment gives FOREBAY, the program under test. Scratch space is made in FOREBAY_SCRATCH or
/var/tmp, because /tmp is often a tmpfs, and is removed at the end. A test ends with status 0
(passed), 1 (failed) or 77 (skipped).
"""

import contextlib
import ctypes
import hashlib
import itertools
import json
import os
import pty
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

import nbd
from nbd import PATIENCE

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PAGE = 4096


class Failure(Exception):
    """What was expected did not happen."""


class Skip(Exception):
    """This machine lacks something that the test needs."""


def program():
    path = os.environ.get("FOREBAY")
    if not path:
        raise Failure("set FOREBAY to the program under test")
    return os.path.abspath(path)


def say(text):
    print(text, flush=True)


def expect(condition, message):
    if not condition:
        raise Failure(message)


def need(*commands):
    """Skips the test unless every command is installed."""
    for command in commands:
        if not shutil.which(command, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin"):
            raise Skip(f"{command} is not installed")


def need_root():
    if os.geteuid() != 0:
        raise Skip("only root can do this")


def need_device(path):
    if not os.path.exists(path):
        raise Skip(f"there is no {path}")


def run(*command, check=True, timeout=2 * PATIENCE, **options):
    """Runs a command to its end, with its output captured as text; fails with that output unless it
    returns 0."""
    environment = dict(os.environ, LC_ALL="C", PATH=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    command = [os.fspath(part) for part in command]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment,
            errors="replace",
            **options,
        )
    except subprocess.TimeoutExpired as late:
        raise Failure(
            f"{' '.join(command)} took longer than {timeout} s\n{late.stdout}\n{late.stderr}"
        )
    if check and done.returncode != 0:
        raise Failure(f"{' '.join(command)} returned {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(MIB):
            digest.update(part)
    return digest.hexdigest()


def allocated(path):
    """Bytes of storage that a file takes."""
    return os.stat(path).st_blocks * 512


def sparse_file(path, size):
    with open(path, "wb") as file:
        file.truncate(size)
    return path


_PORTS_ASKED = itertools.count()


def free_port():
    """A port nobody listens at. It is below those that the kernel gives to connections, and where
    to look first is the process's own, so that a test beside this one does not take it meanwhile."""
    first, count = 10_000, 20_000
    for turn in range(count):
        port = first + (os.getpid() * 16 + next(_PORTS_ASKED) + turn) % count
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise Failure("no port is free")


def wait_for(condition, seconds, what):
    """Polls until the condition holds and returns its value; fails with `what` after that many
    seconds."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Failure(f"{what} did not happen within {seconds} s")
        time.sleep(0.01)


def die_with_parent():
    """Runs in a child before exec: a test that is killed leaves no server behind."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


class Server:
    """`forebay serve`, from ready to stopped. As a context it must end well: exit status 0 after
    SIGTERM.

    `images` are the paths; `options` go on the command line as they are. `tcp` asks for a TCP port
    instead of the unix socket `socket`, which is `server.sock` beside the first image if not given.
    `enter` is called in the new process before it becomes the server.
    """

    def __init__(
        self, *images, cache="32M", options=(), tcp=False, socket=None, prefix=(), enter=None
    ):
        self.images = [os.fspath(image) for image in images]
        self.directory = os.environ["FOREBAY_TEST_DIRECTORY"]
        self.socket = self.port = None
        command = [*prefix, program(), "serve", *self.images]
        if cache is not None:
            command += ["--cache", str(cache)]
        if tcp:
            self.port = free_port()
            command += ["--listen", f"127.0.0.1:{self.port}"]
        else:
            self.socket = socket or os.path.join(self.directory, "server.sock")
            command += ["--socket", self.socket]
        self.command = command + [str(option) for option in options]
        self.out = tempfile.TemporaryFile("w+", dir=self.directory)
        self.err = tempfile.TemporaryFile("w+", dir=self.directory)

        def prepare():
            die_with_parent()
            if enter is not None:
                enter()

        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=self.out,
            stderr=self.err,
            preexec_fn=prepare,
        )
        self.status = None
        try:
            wait_for(self._ready, PATIENCE, f"{' '.join(self.command)}: the line that it serves")
        except Failure as failure:
            self.kill()
            raise Failure(f"{failure}\nstdout: {self.stdout()}\nstderr: {self.stderr()}")

    def _ready(self):
        if self.process.poll() is not None:
            raise Failure(f"{' '.join(self.command)} ended with {self.process.returncode}")
        lines = [
            line
            for line in self.stdout().splitlines(keepends=True)
            if line.startswith("forebay: serving ")
        ]
        return any(line.endswith("\n") for line in lines)

    @staticmethod
    def _text(file):
        # pread leaves the offset alone, which the server shares.
        return os.pread(file.fileno(), 16 * MIB, 0).decode(errors="replace")

    def stdout(self):
        return self._text(self.out)

    def stderr(self):
        return self._text(self.err)

    @property
    def pid(self):
        return self.process.pid

    @property
    def address(self):
        """For nbd.Client."""
        return self.socket if self.socket else ("127.0.0.1", self.port)

    @property
    def stat_address(self):
        """For `forebay stat`."""
        return self.socket if self.socket else f"127.0.0.1:{self.port}"

    def statistics(self):
        """What `forebay stat --json` says of it."""
        done = run(program(), "stat", self.stat_address, "--json")
        expect(not done.stderr, f"something on stderr: {done.stderr}")
        return json.loads(done.stdout)

    def uri(self, export=""):
        if self.socket:
            return f"nbd+unix:///{export}?socket={self.socket}"
        return f"nbd://127.0.0.1:{self.port}/{export}"

    def client(self, export="", structured=True, timeout=PATIENCE):
        """A connected client in the transmission phase."""
        return nbd.Client(self.address, timeout).start(export, structured)

    def memory(self):
        """The largest resident size so far in bytes, huge pages included."""
        total = 0
        with open(f"/proc/{self.pid}/status") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key in ("VmHWM", "HugetlbPages"):
                    total += int(value.split()[0]) * KIB
        return total

    def alive(self):
        return self.process.poll() is None

    def kill(self):
        """kill -9."""
        if self.process.poll() is None:
            self.process.kill()
        self.status = self.process.wait()

    def stop(self, number=signal.SIGTERM, seconds=PATIENCE):
        """Asks it to leave, and returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.left(seconds)

    def left(self, seconds=PATIENCE):
        """Waits until it has left by itself, and returns the exit status."""
        try:
            self.status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failure(f"the server did not leave within {seconds} s\n{self.stderr()}")
        return self.status

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None:
            if not self.alive():
                say(f"the server has ended with status {self.process.returncode}")
            self.kill()
            say(f"the server's stderr: {self.stderr()[-4000:]}")
        elif self.status is None:
            status = self.stop()
            expect(status == 0, f"the server ended with status {status}\n{self.stderr()[-4000:]}")


class Cleanup(contextlib.ExitStack):
    """Undoes mounts and the like in reverse order, whatever happened; a step that fails does not
    stop the others."""

    def later(self, *command):
        def step():
            done = run(*command, check=False)
            if done.returncode:
                say(f"cleaning up: {' '.join(map(str, command))}: {done.stderr.strip()}")

        self.callback(step)

    def unmount_later(self, place):
        """The kernel may hold a file for a moment longer than the process that had it open."""

        def step():
            for _ in range(100):
                if run("umount", place, check=False).returncode == 0:
                    return
                time.sleep(0.05)
            say(f"cleaning up: {place} is still busy")
            run("umount", "--lazy", place, check=False)

        self.callback(step)


def loop_device(cleanup, path, *options):
    """Attaches a loop device to a file until the end of the test, and returns its path."""
    device = run("losetup", "--find", "--show", *options, path, check=False)
    if device.returncode:
        raise Skip(f"no loop device: {device.stderr.strip()}")
    name = device.stdout.strip()
    cleanup.later("losetup", "--detach", name)
    return name


def on_a_terminal(*command, pictures):
    """What a command that draws again and again has drawn by then, at least so many pictures; SIGINT ends it."""
    ours, its = pty.openpty()
    process = subprocess.Popen(command, stdout=its)
    os.close(its)
    seen = b""
    end = time.monotonic() + PATIENCE
    while seen.count(b"\x1b[H") < pictures and time.monotonic() < end:
        part = os.read(ours, 65536)
        expect(part, f"ended by itself: {seen!r}")
        seen += part
    process.send_signal(signal.SIGINT)
    try:
        while os.read(ours, 65536):
            pass
    except OSError:  # the other end has gone
        pass
    expect(process.wait(PATIENCE) == -signal.SIGINT, f"ended with {process.returncode}")
    expect(seen.count(b"\x1b[H") >= pictures, f"not refreshed: {seen!r}")
    return seen


class Cases:
    """Many small checks in one test: every one runs, every failure is told, one failure fails the
    test."""

    def __init__(self):
        self.count = 0
        self.failed = []

    @contextlib.contextmanager
    def case(self, name):
        self.count += 1
        try:
            yield
        except (Skip, TestTimeout):
            raise
        except Exception as error:
            text = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
            if not isinstance(error, (Failure, nbd.Breach, nbd.NbdError, OSError)):
                text += "\n" + traceback.format_exc()
            self.failed.append(name)
            say(f"FAILED  {name}: {text}")
        else:
            say(f"ok      {name}")

    def finish(self):
        expect(
            not self.failed,
            f"{len(self.failed)} of {self.count} cases failed: " + "; ".join(self.failed),
        )


class TestTimeout(BaseException):
    """The test as a whole took too long; no case may catch it."""


def main(test, seconds=280):
    """Runs `test(directory)` in a scratch directory of its own and exits with the status that CTest
    expects."""
    name = os.path.splitext(os.path.basename(sys.argv[0]))[0]

    def late(*_):
        raise TestTimeout(f"took longer than {seconds} s")

    signal.signal(signal.SIGALRM, late)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    signal.alarm(seconds)
    started = time.monotonic()
    seed = int(os.environ.get("FOREBAY_SEED", random.SystemRandom().randrange(1 << 32)))
    random.seed(seed)
    say(f"{name}: FOREBAY_SEED={seed}")
    directory = tempfile.mkdtemp(
        prefix=f"forebay-{name}-", dir=os.environ.get("FOREBAY_SCRATCH", "/var/tmp")
    )
    os.environ["FOREBAY_TEST_DIRECTORY"] = directory
    status = 1
    try:
        test(directory)
        status = 0
        say(f"{name}: passed in {time.monotonic() - started:.1f} s")
    except Skip as why:
        status = 77
        say(f"{name}: skipped: {why}")
    except Failure as why:
        say(f"{name}: FAILED: {why}")
    except TestTimeout as why:
        traceback.print_exc()
        say(f"{name}: FAILED: {why}")
    except Exception:
        traceback.print_exc()
        say(f"{name}: FAILED")
    finally:
        signal.alarm(0)
        if status == 1 and os.environ.get("FOREBAY_KEEP"):
            say(f"{name}: kept {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    sys.exit(status)
