"""A Linux guest of QEMU, by software emulation: its kernel, its initramfs and its command line. What it has to say it prints
to its console as lines of `FACT …`, the last of them `FACT end`.

Needs qemu-system-x86_64, busybox (static), and a kernel with its modules: of this machine, or of the directory
FOREBAY_GUEST_KERNEL, into which a linux-image package was unpacked.
"""

import gzip
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from lib import Skip, expect, need, wait_for

MODULES = ["virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_blk", "crc16",
           "mbcache", "jbd2", "crc32c_generic", "libcrc32c", "ext4", "failover", "net_failover", "virtio_net", "nbd"]

# Mounts what a guest has and loads the modules. What follows has the disks /dev/vda and /dev/vdb.
BOOT = """#!/bin/sh
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
for m in {modules}; do [ -f /mod/$m.ko ] && insmod /mod/$m.ko 2>/dev/null; done
i=0
while [ ! -b /dev/vdb ] && [ $i -lt 50 ]; do sleep 0.1; i=$((i+1)); done
"""

END = """echo "FACT errors $(dmesg | grep -ciE 'i/o error|ext4-fs error')"
echo "FACT end"
sync
while true; do sleep 10; done
"""


def kernel():
    """The newest kernel that has its modules beside it, and the modules' directory."""
    root = Path(os.environ.get("FOREBAY_GUEST_KERNEL", "/"))
    for image in sorted((root / "boot").glob("vmlinuz-*"), reverse=True):
        modules = root / "lib/modules" / image.name.removeprefix("vmlinuz-")
        if modules.is_dir():
            return image, modules
    raise Skip("no kernel: FOREBAY_GUEST_KERNEL names a directory with one")


def cpio(entries):
    """An initramfs in the newc format; entries are (name, mode, data)."""
    out = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        raw = name.encode() + b"\0"
        out += b"070701" + b"".join(b"%08x" % n for n in (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)) + raw
        out += b"\0" * (-len(out) % 4) + data
        out += b"\0" * (-len(out) % 4)
    return bytes(out)


def with_libraries(program):
    """A program and what it is linked to."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    return [program, *re.findall(r"(/\S+) \(0x", listed)]


def initramfs(script, programs=()):
    """Packed as the kernel wants it: `script` is what init does after booting, with `programs` under the paths they have here."""
    busybox = Path(shutil.which("busybox"))
    modules = kernel()[1]
    entries = [(d, 0o040755, b"") for d in ("bin", "mod", "proc", "sys", "dev", "mnt", "tmp", "run")]
    init = BOOT.format(modules=" ".join(MODULES)) + script + END
    entries += [("bin/busybox", 0o100755, busybox.read_bytes()), ("bin/sh", 0o120777, b"busybox"), ("init", 0o100755, init.encode())]
    for name in MODULES:
        for found in modules.rglob(name + ".ko"):
            entries.append((f"mod/{name}.ko", 0o100644, found.read_bytes()))
    files = {str(Path(file).absolute()): None for program in programs for file in with_libraries(program)}
    directories = sorted({str(d) for f in files for d in Path(f).parents if str(d) != "/"}, key=len)
    entries += [(d[1:], 0o040755, b"") for d in directories if d != "/bin"]
    entries += [(f[1:], 0o100755, Path(f).read_bytes()) for f in files]
    return gzip.compress(cpio(entries), 1)


def facts_of(text):
    return re.findall(r"FACT (.*?)\r?\n", text)


def need_machine():
    """Skips the test where no guest can run, or is not asked for."""
    if not os.environ.get("FOREBAY_STRESS"):
        raise Skip("only with FOREBAY_STRESS")
    need("qemu-system-x86_64", "busybox")


def command(work, memory, *more):
    """The guest whose disks are the vhost-user sockets 0.sock (split rings) and 1.sock (packed ones) in `work`."""
    return ["qemu-system-x86_64", "-accel", "tcg", "-machine", "q35,memory-backend=mem", "-m", memory, "-smp", "2",
            "-nodefaults", "-display", "none", "-no-reboot",
            "-object", f"memory-backend-memfd,id=mem,size={memory},share=on",
            "-kernel", kernel()[0], "-initrd", work / "initramfs",
            "-append", "console=ttyS0 quiet panic=-1", "-serial", f"file:{work / 'console'}",
            *(part for n, packed in ((0, "off"), (1, "on")) for part in
              ("-chardev", f"socket,id=c{n},path={work}/{n}.sock,reconnect=1",
               "-device", f"vhost-user-blk-pci,chardev=c{n},num-queues=2,packed={packed}")), *more]


def serve(work, disks, *options):
    return subprocess.Popen([os.environ["FOREBAY"], "serve", *disks, "--cache", "64M", "--vhost-user", work / "0.sock",
                             "--vhost-user", work / "1.sock", *options], stdout=subprocess.DEVNULL)


def queues_in_use(work):
    """How many queues of all disks the server works on at present, which has been started with `--socket WORK/stat.sock`."""
    done = subprocess.run([os.environ["FOREBAY"], "stat", "--json", work / "stat.sock"], capture_output=True, check=False)
    if done.returncode != 0:
        return 0
    return sum(e["vhost_user"]["queues"] for e in json.loads(done.stdout)["exports"])


def check_file_system(disk):
    fsck = shutil.which("e2fsck") or "/sbin/e2fsck"
    done = subprocess.run([fsck, "-fn", disk], capture_output=True, text=True, check=False)
    expect(done.returncode == 0, done.stdout + done.stderr)


def wait_for_doors(work):
    wait_for(lambda: (work / "1.sock").exists(), 20, "the server's start")


def last_word(guest, work, seconds, meanwhile):
    """What the guest has said when it has come to its end. Until then `meanwhile` is called with what it has said so far."""
    console = work / "console"
    end = time.monotonic() + seconds
    while True:
        text = console.read_text(errors="replace") if console.exists() else ""
        if "FACT end" in text or guest.poll() is not None:
            return text
        expect(time.monotonic() < end, "the guest does not get to the end\n" + text[-3000:])
        meanwhile(text)
        time.sleep(0.05)


def end_all(processes):
    """What the guest flushed needs nobody any more."""
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()
