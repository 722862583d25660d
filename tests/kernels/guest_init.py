"""Make the initramfs that turns this machine's files into a guest's root and runs one command.

The root is the shared file system, read-only, under a tmpfs overlay: what the command writes is
gone afterwards, except below the folders shared read-write. TMPDIR is on a disk of the guest's own.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from cpio import CpioArchive
from debian_kernel import DebianKernel

BASE_MODULES = ["virtio_pci", "virtio_console", "overlay"]
# ext4 asks the crypto layer for its checksum by name, which no dependency of the module's says.
DISK_MODULES = ["virtio_blk", "crc32c_generic", "ext4"]
SHARE_MODULES = {"virtiofs": ["virtiofs"], "9p": ["9pnet_virtio", "9p"]}

# Where the guest's own disk is. Not /tmp: the work tree may be under it.
TMPDIR = "/run/disk"

# What every mount of the host's files is called inside.
ROOT_TAG = "root"


def rw_tag(index: int) -> str:
    """Return the mount tag of the read-write folder number `index`."""
    return f"rw{index}"


# The kernel's own module requests run in the initramfs, not in the chroot, so kernel.modprobe has
# to name a path of the initramfs. The three ports are found by name: their numbers vary.
_INIT = r"""#!/bin/busybox sh
B=/bin/busybox
N=/newroot
give_up() { echo "run_in_kernel: $*"; $B poweroff -f; }
$B mkdir -p /proc /sys /dev /ro /rw $N
$B mount -t proc proc /proc; $B mount -t sysfs sysfs /sys; $B mount -t devtmpfs dev /dev
. /load_modules.sh
. /mount_root.sh || give_up "cannot mount the host's root"
$B mount -t tmpfs -o size=75% tmpfs /rw
$B mkdir /rw/up /rw/wk
$B mount -t overlay -o lowerdir=/ro,upperdir=/rw/up,workdir=/rw/wk overlay $N ||
	give_up "cannot mount the overlay"
for d in proc sys dev run tmp var/tmp; do $B mkdir -p $N/$d; done
$B mount --move /proc $N/proc; $B mount --move /sys $N/sys; $B mount --move /dev $N/dev
$B mkdir -p $N/dev/pts $N/dev/shm
$B mount -t devpts devpts $N/dev/pts; $B mount -t tmpfs tmpfs $N/dev/shm
$B mount -t tmpfs tmpfs $N/run
# TMPDIR, a file system on a disk: tmpfs has neither direct nor block I/O.
# The device comes some time after its driver.
for n in 1 2 3 4 5 6 7 8 9 10; do [ -b $N/dev/vda ] && break; $B sleep 1; done
$B mkdir $N@TMPDIR@
$B mount -t ext4 $N/dev/vda $N@TMPDIR@ && $B chmod 1777 $N@TMPDIR@ ||
	give_up "cannot mount the disk"
$B ln -sf /proc/self/fd $N/dev/fd; $B ln -sf /proc/self/fd/0 $N/dev/stdin
$B ln -sf /proc/self/fd/1 $N/dev/stdout; $B ln -sf /proc/self/fd/2 $N/dev/stderr
$B mount -t cgroup2 cgroup2 $N/sys/fs/cgroup
$B mount -t bpf bpf $N/sys/fs/bpf
$B mount -t tracefs tracefs $N/sys/kernel/tracing
$B mount -t debugfs debugfs $N/sys/kernel/debug
$B mount -t securityfs securityfs $N/sys/kernel/security
$B mkdir -p $N/lib/modules /lib/modules
. /link_modules.sh
echo /bin/modprobe > $N/proc/sys/kernel/modprobe
. /mount_rw.sh
$B cp /command.sh $N/run/command.sh
$B ip link set lo up
echo 1 > $N/proc/sys/kernel/printk
OUT= ERR= STATUS=
for p in $N/sys/class/virtio-ports/*; do
	case $($B cat $p/name 2>/dev/null) in
	guest.out) OUT=$N/dev/${p##*/} ;;
	guest.err) ERR=$N/dev/${p##*/} ;;
	guest.status) STATUS=$N/dev/${p##*/} ;;
	esac
done
[ -n "$STATUS" ] || give_up "no virtio ports"
$B chroot $N /bin/sh /run/command.sh </dev/null >$OUT 2>$ERR
echo $? >$STATUS
$B sync
$B poweroff -f
"""


def mount_command(share: str, tag: str, at: str, *, read_only: bool) -> str:
    """Return the shell command that mounts the shared folder `tag` at a path of the initramfs."""
    if share == "virtiofs":
        options = "-o ro " if read_only else ""
        return f"$B mount -t virtiofs {options}{tag} {shlex.quote(at)}"
    cache = "ro,cache=loose" if read_only else "cache=mmap"
    options = f"{cache},trans=virtio,version=9p2000.L,msize=512000,access=client"
    return f"$B mount -t 9p -o {options} {tag} {shlex.quote(at)}"


def command_script(command: list[str], folder: str, environment: dict[str, str]) -> str:
    """Return the shell script that runs `command` in `folder` with `environment`."""
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    return "\n".join(
        [
            *exports,
            f"cd {shlex.quote(folder)} || exit 126",
            "ulimit -n 1048576 2>/dev/null",
            f"exec {shlex.join(command)}",
            "",
        ]
    )


def make_initramfs(
    kernel: DebianKernel, share: str, busybox: Path, script: str, rw_folders: list[str]
) -> bytes:
    """Return the archive: busybox, the modules that the share needs, init and the command."""
    archive = CpioArchive()
    for folder in ("bin", "dev", "modules"):
        archive.add_directory(folder)
    archive.add_character_device("dev/console", 5, 1)
    archive.add_character_device("dev/null", 1, 3)
    archive.add_file("bin/busybox", busybox.read_bytes(), 0o755)
    for applet in ("sh", "insmod", "modprobe"):
        archive.add_link(f"bin/{applet}", "busybox")
    archive.add_file("init", _INIT.replace("@TMPDIR@", TMPDIR).encode(), 0o755)
    modules = kernel.modules_in_load_order(BASE_MODULES + DISK_MODULES + SHARE_MODULES[share])
    for name, content in modules.items():
        archive.add_file(f"modules/{name}.ko", content)
    mounts = []
    for index, folder in enumerate(rw_folders):
        inside = "/newroot" + folder
        mounts.append(f"$B mkdir -p {shlex.quote(inside)}")
        mounts.append(mount_command(share, rw_tag(index), inside, read_only=False))
    source = shlex.quote(str(kernel.modules_folder))
    scripts = {
        "load_modules.sh": [f"insmod /modules/{name}.ko" for name in modules],
        "mount_root.sh": [mount_command(share, ROOT_TAG, "/ro", read_only=True)],
        # A host that runs the same release has this path already.
        "link_modules.sh": [
            f"[ -e $N/lib/modules/{kernel.release} ] || "
            f"$B ln -s {source} $N/lib/modules/{kernel.release}",
            f"$B ln -s $N{source} /lib/modules/{kernel.release}",
        ],
        "mount_rw.sh": mounts,
    }
    for name, lines in scripts.items():
        archive.add_file(name, "".join(line + "\n" for line in lines).encode())
    archive.add_file("command.sh", script.encode())
    return archive.done()
