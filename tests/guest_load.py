#!/usr/bin/env python3
# ctest: timeout=1500 labels=integration,slow
"""A Linux guest of QEMU with three disks of one `forebay serve`: over vhost-user with split and with packed rings, by the kernel's
virtio_blk, and over NBD by the kernel's nbd driver. On each of them fio writes and verifies, at all sizes and alignments, on the
disk itself; then there is an ext4 on which several fsx (tests/fsx.cc) work at a time, beside a fio that verifies too, and which
e2fsck finds clean, in the guest and here, where the files are what they were there.

Runs with FOREBAY_STRESS only. Needs fio, nbd-client and e2fsprogs beside what guest_machine.py says.
"""

import os
import shutil
import subprocess
from pathlib import Path

from guest_machine import (
    check_file_system,
    command,
    end_all,
    facts_of,
    initramfs,
    last_word,
    need_machine,
    serve,
    wait_for_doors,
)
from lib import MIB, Skip, expect, free_port, main

SIZE = 96 * MIB
DISKS = ("vda", "vdb", "nbd0")
FSX_FILES = 3

WORK = """ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0
{nbd_client} 10.0.2.2 {port} /dev/nbd0 -N nbd.img -b 512 -connections 2 > /dev/null 2>&1
echo "FACT nbd0 sectors $(cat /sys/block/nbd0/size)"
for d in vda vdb nbd0; do
  v="--filename=/dev/$d --direct=1 --ioengine=libaio --iodepth=16 --verify=crc32c --verify_fatal=1 --verify_backlog=256"
  {fio} --name=raw $v --rw=randrw --bsrange=512-64k --blockalign=512 --size=48M --io_size=64M --randseed=7 > /tmp/fio 2>&1 \
    && echo "FACT $d raw good" || {{ cat /tmp/fio; echo "FACT $d raw bad"; }}
  {mke2fs} -q -F -t ext4 -b 1024 /dev/$d && mkdir -p /mnt/$d && mount -t ext4 -o discard /dev/$d /mnt/$d && echo "FACT $d mounted"
  for n in {files}; do ({fsx} /mnt/$d/fsx$n {steps} $n > /tmp/fsx.$d.$n 2>&1 && touch /tmp/good.$d.$n) & done
  {fio} --name=file --filename=/mnt/$d/fio --size=12M --io_size=16M --rw=randwrite --bsrange=4k-64k --ioengine=libaio --direct=1 \
    --iodepth=8 --verify=sha256 --verify_fatal=1 > /tmp/fio 2>&1 && echo "FACT $d file good" || {{ cat /tmp/fio; echo "FACT $d file bad"; }}
  wait
  for n in {files}; do [ -f /tmp/good.$d.$n ] && echo "FACT $d fsx$n good" || cat /tmp/fsx.$d.$n; done
  umount /mnt/$d
  echo 3 > /proc/sys/vm/drop_caches
  {e2fsck} -fn /dev/$d > /tmp/fsck 2>&1 && echo "FACT $d clean" || cat /tmp/fsck
  mount -t ext4 -o ro /dev/$d /mnt/$d
  for n in {files}; do echo "FACT $d sum$n $(md5sum < /mnt/$d/fsx$n | cut -d' ' -f1)"; done
  umount /mnt/$d
done
{nbd_client} -d /dev/nbd0 > /dev/null 2>&1
"""


def judge(text, images):
    facts = facts_of(text)
    print("\n".join(facts))
    numbers = range(1, FSX_FILES + 1)
    for disk, image in zip(DISKS, images):
        for fact in ("raw good", "mounted", "file good", "clean", *(f"fsx{n} good" for n in numbers)):
            expect(f"{disk} {fact}" in facts, f"not so: {disk} {fact}\n" + text[-3000:])
        check_file_system(image)
        for n in numbers:
            done = subprocess.run([shutil.which("debugfs") or "/sbin/debugfs", "-R", f"cat fsx{n}", image], capture_output=True, check=True)
            here = subprocess.run(["md5sum"], input=done.stdout, capture_output=True, check=True).stdout.decode().split()[0]
            expect(f"{disk} sum{n} {here}" in facts, f"{disk}: fsx{n} is not what it was in the guest")
    expect(f"nbd0 sectors {SIZE // 512}" in facts, "the size of nbd0")
    expect("errors 0" in facts, "errors in the guest")


def program(name):
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not found:
        raise Skip(f"{name} is not installed")
    return found


def test(directory):
    need_machine()
    fsx = os.path.join(os.environ["FOREBAY_BUILD"], "forebay_fsx")
    tools = {name.replace("-", "_"): program(name) for name in ("fio", "nbd-client", "mke2fs", "e2fsck")}
    work = Path(directory)
    port = free_port()
    script = WORK.format(**tools, fsx=fsx, port=port, steps=4000, files=" ".join(str(n + 1) for n in range(FSX_FILES)))
    (work / "initramfs").write_bytes(initramfs(script, [*tools.values(), fsx]))
    images = [work / f"{n}.img" for n in ("split", "packed", "nbd")]
    for image in images:
        image.touch()
        os.truncate(image, SIZE)
    server = serve(work, images, "--listen", f"127.0.0.1:{port}")
    running = [server]
    try:
        wait_for_doors(work)
        net = ("-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile=")
        running.append(subprocess.Popen(command(work, "1G", *net)))
        text = last_word(running[1], work, 1400, lambda _: expect(server.poll() is None, "the server has ended"))
    finally:
        end_all(reversed(running))
    judge(text, images)


main(test, seconds=1450)
