#!/usr/bin/env python3
"""forebay echo on a veth pair, over a packet socket and over AF_XDP, and on a TAP interface: ping(8), IPv6 pings and UDP
from the kernel's side, and bad input. With FOREBAY_STRESS it is 100,000 pings.
"""

import os
import re
import signal
import subprocess

from lib import PATIENCE, Skip, expect, main, need, need_root, program

SPACE = f"forebay-echo-{os.getpid()}"
PINGS = {"packet": 300, "xdp": 100_000 if os.environ.get("FOREBAY_STRESS") else 3000}


def ip(*words):
    subprocess.run(["ip", "-n", SPACE, *words], check=True)


class Space:
    """A network namespace with the pair near (10.9.0.1, the kernel's) and far (forebay's)."""

    def __enter__(self):
        made = subprocess.run(["ip", "netns", "add", SPACE], capture_output=True, text=True)
        if made.returncode != 0:
            raise Skip(f"no network namespaces: {made.stderr.strip()}")
        try:
            ip("link", "add", "name", "near", "type", "veth", "peer", "name", "far")
            # The kernel's own address on far would answer as well.
            subprocess.run(["ip", "netns", "exec", SPACE, "sysctl", "-qw", "net.ipv6.conf.far.disable_ipv6=1"], check=True)
            ip("addr", "add", "10.9.0.1/24", "dev", "near")
            ip("addr", "add", "fd09::1/64", "dev", "near", "nodad")
            ip("link", "set", "near", "up")
            ip("link", "set", "far", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        subprocess.run(["ip", "netns", "del", SPACE], check=False)


def inside(*words, **more):
    return subprocess.run(["ip", "netns", "exec", SPACE, *words], capture_output=True, text=True, timeout=2 * PATIENCE, **more)


class Echo:
    def __init__(self, interface, *options):
        self.process = subprocess.Popen(["ip", "netns", "exec", SPACE, program(), "echo", interface, *options],
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.said = []
        for line in self.process.stderr:
            self.said.append(line)
            if f"answering on {interface}" in line:
                return
        raise AssertionError(f"forebay echo said: {self.said}")

    def end(self):
        self.process.send_signal(signal.SIGINT)
        out, error = self.process.communicate(timeout=PATIENCE)
        expect(self.process.returncode == 0, f"status {self.process.returncode}: {error}")
        expect("answers not sent 0" in out, out)
        return {name: int(n) for name, n in re.findall(r"^(\w+) (\d+)$", out, re.M)}


def ping(count, *options):
    """Asks until so many have been answered, and returns how many were asked.

    Without -w it waits for the last answer only as long as for the slowest before. With it, it may ask a few more while an
    answer is late; what came of those, the account tells, in which whatever was asked later has its place behind them.
    """
    got = inside("ping", "-q", "-c", str(count), "-w", str(PATIENCE), *options)
    told = re.search(r"(\d+) packets transmitted, (\d+) received", got.stdout)
    expect(told and int(told[2]) >= count, got.stdout + got.stderr)
    return int(told[1])


UDP_CLIENT = """
import socket, sys
s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(60)
s.connect((sys.argv[1], 7777))
for n in (0, 1, 17, 512, 1400):
    for turn in range(20):
        text = bytes((turn + i) % 256 for i in range(n))
        s.send(text)
        got = s.recv(2000)
        assert got == text, (n, len(got))
"""


def answers_the_kernel(port):
    pings = PINGS[port]
    echo = Echo("far", "--ipv4", "10.9.0.2", "--ipv6", "fd09::2", "--port", port)
    try:
        asked = ping(pings, "-f", "10.9.0.2") + ping(3, "-i", "0.05", "-s", "1400", "10.9.0.2")
        asked6 = ping(5, "-6", "-i", "0.05", "fd09::2")
        for address in ("10.9.0.2", "fd09::2"):
            got = inside("python3", "-c", UDP_CLIENT, address)
            expect(got.returncode == 0, got.stderr)
        got = inside("ping", "-q", "-c", "1", "-W", "0.3", "10.9.0.3")
        expect("100% packet loss" in got.stdout, "somebody else's address was answered")
        if port == "xdp":
            expect(any("AF_XDP native, zero copy" in line for line in echo.said[:-1]), echo.said)  # veth has none: said
            got = inside(program(), "echo", "far", "--ipv4", "10.9.0.2", "--port", "xdp")
            expect(got.returncode == 1 and "another XDP program" in got.stderr, got.stderr)
    finally:
        account = echo.end()
    expect(account["icmp"] == asked and account["icmpv6"] == asked6 and account["udp"] == 200, account)
    expect("bad_checksum" not in account and "malformed" not in account, account)


def answers_on_tap():
    ip("tuntap", "add", "name", "tap9", "mode", "tap")
    ip("addr", "add", "10.8.0.1/24", "dev", "tap9")
    ip("link", "set", "tap9", "up")
    echo = Echo("tap9", "--ipv4", "10.8.0.2", "--port", "tap")
    try:
        asked = ping(100, "-f", "10.8.0.2") + ping(1, "10.8.0.2")
    finally:
        account = echo.end()
    expect(account["icmp"] == asked and account["arp"] >= 1, account)


def chooses_by_itself():
    """Takes AF_XDP where it may, and says why where it does not."""
    echo = Echo("far", "--ipv4", "10.9.0.2")
    echo.end()
    if "Address family not supported" in echo.said[0] or "needs CAP_NET_ADMIN" in echo.said[0]:
        raise Skip(f"no AF_XDP here: {echo.said[0]}")
    expect("AF_XDP" in echo.said[-1], echo.said)
    echo = Echo("far", "--macswap")
    echo.end()
    expect("(packet socket)" in echo.said[-1] and "take everything" in echo.said[0], echo.said)


def ends_with_its_interface():
    for port in ("packet", "xdp"):
        ip("link", "add", "name", "here", "type", "veth", "peer", "name", "there")
        ip("link", "set", "there", "up")
        echo = Echo("there", "--ipv4", "10.7.0.2", "--port", port)
        ip("link", "del", "there")
        _, error = echo.process.communicate(timeout=PATIENCE)
        expect(echo.process.returncode == 1 and "there: the interface is gone" in error, error)


def says_what_is_wrong():
    for words, text in ((["nothere", "--ipv4", "10.9.0.2"], "nothere: no such interface"),
                        (["far"], "say for which address"),
                        (["far", "--ipv4", "10.9"], "'10.9' is no IPv4 address"),
                        (["far", "--macswap", "--mac", "01:00:00:00:00:00"], "is no address of one interface")):
        got = inside(program(), "echo", *words)
        expect(got.returncode == 1 and got.stderr.count("\n") == 1 and text in got.stderr, got.stderr)
    for without, port, text in (("-net_raw", "auto", "CAP_NET_RAW"),
                                ("-net_admin,-sys_admin,-bpf", "xdp", "CAP_NET_ADMIN")):
        got = inside("setpriv", f"--bounding-set={without}", program(), "echo", "far", "--ipv4", "10.9.0.2", "--port", port)
        expect(got.returncode == 1 and got.stderr.count("\n") == 1 and text in got.stderr, got.stderr)


def test(_):
    need("ip", "ping", "setpriv", "sysctl")
    need_root()
    with Space():
        says_what_is_wrong()
        answers_the_kernel("packet")
        answers_on_tap()
        chooses_by_itself()
        answers_the_kernel("xdp")
        ends_with_its_interface()


if __name__ == "__main__":
    main(test)
