"""Build the command lines of QEMU and of the daemon that shares folders with the guest."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

# Debian's file daemons, newest layout first. The C one went away with QEMU 8, the Rust one is a
# package of its own from trixie on.
VIRTIOFS_DAEMONS = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd")

# On 5.10 a BPF LSM program attaches and never runs unless lsm= names bpf.
DEFAULT_LSM = "landlock,lockdown,yama,bpf"

_KERNEL_PARAMETERS = (
    "console=ttyS0 quiet panic=-1 mitigations=off nowatchdog random.trust_cpu=on tsc=reliable"
)


@dataclass(frozen=True)
class Machine:
    """What the guest is made of."""

    qemu: str
    cpu: str
    cpus: int = 2
    memory: str = "2G"
    kvm: bool = False


@dataclass(frozen=True)
class SharedFolder:
    """One folder of the host under a mount tag; virtiofs has a socket, 9p has none."""

    tag: str
    path: str
    read_only: bool
    socket: str | None


def find_virtiofs_daemon() -> str | None:
    """Return the path of this machine's virtiofsd, or None."""
    return next((path for path in VIRTIOFS_DAEMONS if os.access(path, os.X_OK)), None)


def parse_version(text: str) -> int:
    """Return the major version in what `qemu-system-x86_64 --version` prints."""
    match = re.search(r"version (\d+)", text)
    if match is None:
        raise ValueError(f"read QEMU's version: none in {text!r}")
    return int(match[1])


def emulated_cpu(major: int) -> str:
    """Return the CPU model to emulate with QEMU of this major version.

    The cmpxchg16b of QEMU 7 leaves rubbish in EFLAGS, which kills 6.12 within seconds. Without
    the instruction, task storage of tracing programs fails on 6.18 and newer, so it is left out
    only there.
    """
    return "max" if major >= 8 else "max,cx16=off"


def installed_major(qemu: str) -> int:
    """Return the major version of a QEMU program by asking it."""
    run = subprocess.run([qemu, "--version"], stdout=subprocess.PIPE, text=True, check=True)
    return parse_version(run.stdout)


def kernel_parameters(lsm: str, more: str) -> str:
    """Return the kernel command line; an empty `lsm` keeps the distribution's own list."""
    return " ".join(filter(None, [_KERNEL_PARAMETERS, f"lsm={lsm}" if lsm else "", more]))


def virtiofs_command(daemon: str, folder: SharedFolder) -> list[str]:
    """Return the command that serves `folder` on its socket."""
    # The host's root does not change under the guest as far as the guest has to know.
    cache = "always" if folder.read_only else "auto"
    if daemon.startswith("/usr/lib/qemu"):
        options = [f"source={folder.path}", f"cache={cache}", "sandbox=chroot", "log_level=err"]
        arguments = [argument for option in options for argument in ("-o", option)]
        return [daemon, f"--socket-path={folder.socket}", *arguments]
    return [
        daemon,
        f"--socket-path={folder.socket}",
        f"--shared-dir={folder.path}",
        *("--cache", cache),
        *("--sandbox", "chroot"),
        *("--log-level", "error"),
    ]


def qemu_command(
    machine: Machine,
    *,
    image: Path,
    initramfs: Path,
    disk: Path,
    parameters: str,
    console: Path,
    folders: list[SharedFolder],
    ports: dict[str, int],
) -> list[str]:
    """Return QEMU's command line; `ports` are open sockets by name, to be inherited by it."""
    program = shutil.which(machine.qemu) or machine.qemu
    # An unpacked QEMU does not know where its firmware lies; Debian keeps the BIOS apart.
    firmware = Path(program).resolve().parent.parent / "share" / "qemu"
    memory = f"memory-backend-memfd,id=memory,size={machine.memory},share=on"
    command = [
        program,
        *("-L", str(firmware)),
        *("-L", "/usr/share/seabios"),
        *("-nodefaults", "-no-user-config", "-no-reboot"),
        *("-display", "none"),
        *("-machine", "q35,memory-backend=memory"),
        *("-object", memory),
        *("-m", machine.memory),
        *("-smp", str(machine.cpus)),
        *("-kernel", str(image)),
        *("-initrd", str(initramfs)),
        *("-append", parameters),
        *(("-accel", "kvm") if machine.kvm else ("-accel", "tcg,thread=multi")),
        *("-cpu", "host" if machine.kvm else machine.cpu),
        *("-chardev", f"file,id=console,path={console}"),
        *("-serial", "chardev:console"),
        *("-device", "virtio-serial-pci"),
        # What a guest writes need not survive this machine.
        *("-drive", f"if=none,id=disk,file={disk},format=raw,cache=unsafe"),
        *("-device", "virtio-blk-pci,drive=disk"),
    ]
    for folder in folders:
        command += _folder_arguments(folder)
    for name, descriptor in ports.items():
        command += ["-chardev", f"socket,id={name},fd={descriptor}"]
        command += ["-device", f"virtserialport,chardev={name},name=guest.{name}"]
    return command


def _folder_arguments(folder: SharedFolder) -> list[str]:
    tag = folder.tag
    if folder.socket is not None:
        device = f"vhost-user-fs-pci,chardev={tag},tag={tag}"
        return ["-chardev", f"socket,id={tag},path={folder.socket}", "-device", device]
    read_only = ",readonly=on" if folder.read_only else ""
    backend = f"local,id={tag},path={folder.path},security_model=none,multidevs=remap{read_only}"
    return ["-fsdev", backend, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
