#!/usr/bin/env python3
"""systemd socket activation: the server takes the listening sockets it is handed, and leaves them
as they are."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys

import nbd
from lib import (
    MIB,
    PAGE,
    PATIENCE,
    Cases,
    die_with_parent,
    expect,
    free_port,
    main,
    program,
    say,
    sparse_file,
    wait_for,
)


# Puts the listening sockets where systemd puts them, and becomes the program under the pid that it
# announces.
LAUNCH = """
import os, sys
pid, count = sys.argv[1], int(sys.argv[2])
numbers = [int(number) for number in sys.argv[3 : 3 + count]]
for index, number in enumerate(numbers):
    os.dup2(number, 3 + index, inheritable=True)
    os.close(number)
os.environ.update(LISTEN_PID=pid or str(os.getpid()), LISTEN_FDS=str(count))
os.execv(sys.argv[3 + count], sys.argv[3 + count :])
"""


def hand_over(listeners, *arguments, pid=""):
    """Starts the program with the listening sockets as descriptors 3 and up."""
    numbers = [listener.fileno() for listener in listeners]
    command = [sys.executable, "-c", LAUNCH, pid, len(numbers), *numbers, program(), *arguments]
    return subprocess.Popen(
        list(map(str, command)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=numbers,
        preexec_fn=die_with_parent,
    )


def high(listener):
    """The same socket under a descriptor that is surely not 3 or 4."""
    number = fcntl.fcntl(listener.fileno(), fcntl.F_DUPFD, 50)
    listener.close()
    return socket.socket(fileno=number)


def listen_unix(path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(16)
    return high(listener)


def listen_tcp():
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(16)
    return high(listener)


def use(address, data):
    with nbd.Client(address).start() as client:
        client.write(0, data)
        client.flush()
        expect(client.read(0, len(data)) == data, "data")
        client.disconnect()


def end(process):
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    expect(process.returncode == 0, f"exit status {process.returncode}: {err}")
    return out, err


def by_hand(directory, image):
    """A unix and a TCP socket at once. The connection may come before the server is up."""
    path = os.path.join(directory, "handed.sock")
    listeners = [listen_unix(path), listen_tcp()]
    place = listeners[1].getsockname()
    process = hand_over(listeners, "serve", image, "--cache", "16M")
    try:
        use(path, b"unix" * 1024)
        use(place, b"tcp!" * 1024)
        # systemd owns the socket: the file stays, and a second activation works on the same socket.
        out, _ = end(process)
        expect(os.path.exists(path), "the server has removed a socket that is not its own")
        expect("forebay: serving" in out, f"no line that it serves: {out!r}")
        process = hand_over(listeners, "serve", image, "--cache", "16M")
        use(path, b"more" * 1024)
        end(process)
    finally:
        process.kill()
        for listener in listeners:
            listener.close()
    with open(image, "rb") as file:
        expect(file.read(PAGE) == b"more" * 1024, "what was written is not in the image")


def for_somebody_else(directory, image):
    """LISTEN_PID of another process: the descriptors are not for us, and --socket counts."""
    path = os.path.join(directory, "foreign.sock")
    own = os.path.join(directory, "own.sock")
    listener = listen_unix(path)
    process = hand_over([listener], "serve", image, "--cache", "16M", "--socket", own, pid="1")
    try:
        wait_for(
            lambda: os.path.exists(own) or process.poll() is not None, PATIENCE, "the server's own socket"
        )
        wait_for(lambda: connects(own), PATIENCE, "a connection to the server's own socket")
        use(own, b"own " * 1024)
        end(process)
        expect(not os.path.exists(own), "its own socket is still there")
    finally:
        process.kill()
        listener.close()


def connects(path):
    try:
        nbd.connect(path).close()
        return True
    except OSError:
        return False


def by_systemd(directory, image, listen, address):
    """systemd-socket-activate starts the program at the first connection."""
    tool = shutil.which("systemd-socket-activate")
    if not tool:
        say("left out: systemd-socket-activate is not installed")
        return
    with open(os.path.join(directory, "activate.log"), "w+") as log:
        process = subprocess.Popen(
            [tool, "-l", listen, program(), "serve", image, "--cache", "16M"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent,
        )
        try:
            wait_for(lambda: can_be_reached(address), PATIENCE, "systemd-socket-activate's socket")
            use(address, b"sysd" * 1024)
            use(address, b"SYSD" * 1024)
            process.send_signal(signal.SIGTERM)
            status = process.wait(PATIENCE)
            log.seek(0)
            expect(status == 0, f"exit status {status}: {log.read()}")
        finally:
            process.kill()
            process.wait()
    with open(image, "rb") as file:
        expect(file.read(PAGE) == b"SYSD" * 1024, "what was written is not in the image")


def can_be_reached(address):
    if isinstance(address, str):
        # Its file is there before it listens; what listens has this flag (__SO_ACCEPTCON).
        with open("/proc/net/unix") as file:
            lines = [line.split() for line in file if line.rstrip().endswith(f" {address}")]
        return any(int(line[3], 16) & 0x10000 for line in lines)
    with open("/proc/net/tcp") as file:
        return f":{address[1]:04X} 00000000:0000 0A" in file.read()


def test(directory):
    image = sparse_file(os.path.join(directory, "disk.img"), 16 * MIB)
    cases = Cases()
    with cases.case("two sockets handed over"):
        by_hand(directory, image)
    with cases.case("sockets that are meant for another process"):
        for_somebody_else(directory, image)
    with cases.case("systemd-socket-activate, unix socket"):
        path = os.path.join(directory, "systemd.sock")
        by_systemd(directory, image, path, path)
    with cases.case("systemd-socket-activate, TCP"):
        port = free_port()
        by_systemd(directory, image, f"127.0.0.1:{port}", ("127.0.0.1", port))
    cases.finish()


main(test)
