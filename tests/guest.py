#!/usr/bin/env python3
# ctest: timeout=600 labels=integration,slow
"""A Linux guest of QEMU, by software emulation, with images of `forebay serve --vhost-user` as its disks: the virtio_blk driver
of the kernel over a split and a packed ring, two queues each. The guest makes a file system, writes, flushes, discards and reads
back; what it flushed is on the image after the server was killed. A second guest, whose writes are durable when they have ended,
has its server killed up to eight times while it works: the next server takes again what was in flight, and the guest does not notice.

Runs with FOREBAY_STRESS only: it takes some 40 s of CPU. What it needs, guest_machine.py says.
"""

import hashlib
import os
import subprocess
import tempfile
import time
from pathlib import Path

from guest_machine import (
    check_file_system,
    command,
    end_all,
    facts_of,
    initramfs,
    last_word,
    need_machine,
    queues_in_use,
    serve,
    wait_for_doors,
)
from lib import MIB, expect, main

WORK = """for d in vda vdb; do
  echo "FACT $d cache $(cat /sys/block/$d/queue/write_cache)"
  echo "FACT $d queues $(ls /sys/block/$d/mq | wc -l)"
  echo "FACT $d serial $(cat /sys/block/$d/serial)"
  yes | dd of=/dev/$d bs=1M seek=48 count=1 iflag=fullblock conv=fsync 2>/dev/null
  blkdiscard -o 50331648 -l 1048576 /dev/$d && echo "FACT $d discard $(dd if=/dev/$d bs=1M skip=48 count=1 2>/dev/null | tr -d '\\0' | wc -c)"
  mke2fs -F /dev/$d > /dev/null && mkdir -p /mnt/$d && mount -t ext4 /dev/$d /mnt/$d || echo "FACT $d mount failed"
  seq 1 200000 > /mnt/$d/numbers && sync
  for n in 1 2 3 4; do (for k in 1 2 3; do dd if=/dev/zero bs=64k count=16 2>/dev/null | tr '\\0' "$n" > /mnt/$d/f$n; done) & done; wait
  cp /mnt/$d/numbers /mnt/$d/again && rm /mnt/$d/f1
  umount /mnt/$d
  echo 3 > /proc/sys/vm/drop_caches
  mount -t ext4 -o ro /dev/$d /mnt/$d
  echo "FACT $d sum $(md5sum < /mnt/$d/again | cut -d' ' -f1)"
  echo "FACT $d f3 $(tr -d 3 < /mnt/$d/f3 | wc -c) $(wc -c < /mnt/$d/f3)"
  umount /mnt/$d
done
"""


class Killer:
    """Kills the server up to so often while the guest works, and starts another one. Not before the guest has found the last one: a
    QEMU before 8.2 whose first message is not answered does not come back ("vhost-user: fix lost reconnect").
    """

    def __init__(self, servers, start, work, kills):
        self.servers, self.start, self.work, self.kills = servers, start, work, kills
        self.last = 0

    def __call__(self, text):
        if len(self.servers) > self.kills or "FACT vda cache" not in text or time.monotonic() - self.last <= 1:
            return
        if queues_in_use(self.work) != 4:
            return
        self.servers[-1].kill()
        self.servers[-1].wait()
        self.servers.append(self.start())
        self.last = time.monotonic()


def judge(text, disks, cache):
    facts = facts_of(text)
    print("\n".join(facts) if facts else text[-3000:])
    expected = hashlib.md5("".join(f"{n}\n" for n in range(1, 200001)).encode()).hexdigest()
    for d, disk in zip(("vda", "vdb"), disks):
        for fact in (f"cache {cache}", "queues 2", f"serial {disk.name}", f"sum {expected}", f"f3 0 {MIB}", "discard 0"):
            expect(f"{d} {fact}" in facts, f"not so: {d} {fact}")
        check_file_system(disk)
    expect("errors 0" in facts, "errors in the guest")


def run_guest(work, options, cache, kills):
    disks = [work / "split.img", work / "packed.img"]
    for disk in disks:
        disk.touch()
        os.truncate(disk, 64 * MIB)

    def server():
        return serve(work, disks, "--socket", work / "stat.sock", *options)

    servers, guests = [server()], []
    try:
        wait_for_doors(work)
        with open(work / "qemu.log", "wb") as log:  # it tells of each connection that is lost
            guests.append(subprocess.Popen(command(work, "256M"), stdout=log, stderr=log))
        text = last_word(guests[0], work, 400, Killer(servers, server, work, kills))
    finally:
        end_all((*servers, *guests))
    expect(len(servers) > min(kills, 3), f"only {len(servers) - 1} kills")
    judge(text, disks, cache)


def test(directory):
    need_machine()
    for options, cache, kills in (([], "write back", 0), (["--write-through"], "write through", 8)):
        with tempfile.TemporaryDirectory(prefix="guest-", dir=directory) as name:
            work = Path(name)
            (work / "initramfs").write_bytes(initramfs(WORK))
            run_guest(work, options, cache, kills)


main(test, seconds=590)
