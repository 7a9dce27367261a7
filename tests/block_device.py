#!/usr/bin/env python3
"""A block device as the image: loop devices with 512-byte and 4096-byte sectors, read and written
under random load."""

import asyncio
import os

import nbd
from journal import Journal, Load
from lib import (
    MIB,
    PAGE,
    Cases,
    Cleanup,
    Server,
    expect,
    loop_device,
    main,
    need,
    need_device,
    need_root,
    run,
    sparse_file,
)

SIZE = 48 * MIB


def serve(directory, sector):
    backing = sparse_file(os.path.join(directory, f"backing-{sector}.img"), SIZE)
    with Cleanup() as cleanup:
        device = loop_device(cleanup, backing, "--sector-size", str(sector))
        name = os.path.basename(device)
        with Server(device, cache="16M") as server:
            with nbd.Client(server.address) as client:
                expect(client.list() == [name], f"LIST says {client.list()}, not {name}")
            with server.client() as client:
                expect(client.size == SIZE, f"size {client.size}")
                smallest = client.block_sizes[0]
                # Nothing under a page may harm its neighbours, whatever the sectors are.
                client.write(0, b"\1" * PAGE)
                step = max(512, smallest)
                client.write(PAGE - step, b"\2" * step)
                client.flush()
                expect(
                    client.read(0, PAGE) == b"\1" * (PAGE - step) + b"\2" * step, "a part of a page"
                )
                client.zero(0, PAGE)
                client.disconnect()
            journal = Journal(SIZE, max(512, smallest))
            load = Load(journal, connections=2, depth=8)
            enough = lambda: load.done["write"] > 100
            asyncio.run(load.run_until(server.address, load.stop, 2.5, enough))
            expect(load.done["write"] > 100, f"the load was too thin: {load.done}")
            status = server.stop()
            expect(status == 0, f"exit status {status}")
        # Through the device, as the kernel sees it.
        run("blockdev", "--flushbufs", device)
        count, wrong = journal.judge_image(device, journal.acked, everything=True)
        expect(not wrong, f"{len(wrong)} of {count} units are wrong:\n" + "\n".join(wrong[:8]))


def two_servers(directory):
    """A device that is served cannot be served again."""
    backing = sparse_file(os.path.join(directory, "backing.img"), MIB)
    with Cleanup() as cleanup:
        device = loop_device(cleanup, backing)
        with Server(device, cache="16M") as server:
            command = server.command[:]
            command[command.index(server.socket)] = os.path.join(directory, "second.sock")
            done = run(*command, check=False)
            expect(done.returncode > 0, "a second server took the same device")
            expect(
                done.stderr.startswith("forebay: ") and done.stderr.count("\n") == 1,
                f"stderr {done.stderr!r}",
            )


def test(directory):
    need_root()
    need("losetup", "blockdev")
    need_device("/dev/loop-control")
    with Cleanup() as probe:
        loop_device(probe, sparse_file(os.path.join(directory, "probe.img"), MIB))
    cases = Cases()
    for sector in (512, 4096):
        with cases.case(f"sectors of {sector} bytes"):
            serve(directory, sector)
    with cases.case("already served"):
        two_servers(directory)
    cases.finish()


main(test)
