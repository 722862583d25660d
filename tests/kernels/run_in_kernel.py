#!/usr/bin/env python3
"""Run a command on this machine's files under another Linux kernel.

usage: run_in_kernel.py [options] KERNEL -- COMMAND [ARGUMENT...]

KERNEL is the beginning of a version that fetch_kernels.sh has fetched (6.1, 6.12), or a folder that
Debian's kernel packages were unpacked into. The guest is QEMU, emulated unless --kvm. It sees this
machine's root file system read-only under a tmpfs, so the same interpreter and virtual environment
at the same paths; what the command writes is gone afterwards, except below each --rw FOLDER. stdout
and stderr are passed through as they come. Exit status: the command's; 124 it took too long; 125
the guest died before it told one. RUN_IN_KERNEL=<release> is set inside. Needs root.
"""

from __future__ import annotations

import argparse
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import qemu
from debian_kernel import DebianKernel, KernelNotFoundError, find_kernel
from guest_init import ROOT_TAG, TMPDIR, command_script, make_initramfs, rw_tag

TIMED_OUT = 124
GUEST_DIED = 125
DISK_BYTES = 1 << 30

_NAMESPACE_MARK = "RUN_IN_KERNEL_NAMESPACE"
_PASSED_ON = {"HOME": "/root", "LANG": "C.UTF-8", "PATH": os.defpath}


class GuestError(RuntimeError):
    """The guest cannot be started on this machine."""


def cache_folder() -> Path:
    """Return the folder that fetch_kernels.sh fills."""
    own = os.environ.get("KERNELTRACE_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kerneltrace"


def parse_arguments(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options and the command; the command is what follows the first "--"."""
    lines = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(
        prog="run_in_kernel.py", usage=lines[1].removeprefix("usage: "), description=lines[2]
    )
    tools = cache_folder() / "tools"
    unpacked_qemu = tools / "usr/bin/qemu-system-x86_64"
    unpacked_busybox = tools / "bin/busybox"
    parser.add_argument("kernel")
    parser.add_argument("--timeout", type=float, default=600, metavar="SECONDS")
    parser.add_argument("--rw", action="append", default=[], metavar="FOLDER")
    parser.add_argument("--env", action="append", default=[], metavar="NAME[=VALUE]")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--memory", default="2G")
    parser.add_argument("--share", choices=["virtiofs", "9p"], help="default: what both sides have")
    parser.add_argument("--parameters", default="", help="more kernel parameters")
    parser.add_argument("--lsm", default=qemu.DEFAULT_LSM, help="'' keeps the kernel's own list")
    parser.add_argument("--kvm", action="store_true")
    parser.add_argument("--console", type=Path, help="file for the kernel's console")
    parser.add_argument(
        "--qemu",
        default=str(unpacked_qemu) if unpacked_qemu.exists() else "qemu-system-x86_64",
        help="default: the fetched one, else the installed one",
    )
    parser.add_argument(
        "--busybox",
        type=Path,
        default=unpacked_busybox if unpacked_busybox.exists() else shutil.which("busybox"),
        help="a static busybox; default: the fetched one, else the installed one",
    )
    if "--" not in arguments or arguments[-1] == "--":
        parser.error("no -- COMMAND")
    split = arguments.index("--")
    return parser.parse_args(arguments[:split]), arguments[split + 1 :]


def guest_environment(wanted: list[str], release: str) -> dict[str, str]:
    """Return the command's environment: the needful, and each NAME=VALUE or NAME wanted."""
    environment = {name: os.environ.get(name, value) for name, value in _PASSED_ON.items()}
    environment["RUN_IN_KERNEL"] = release
    environment["TMPDIR"] = TMPDIR
    for entry in wanted:
        name, equals, value = entry.partition("=")
        environment[name] = value if equals else os.environ.get(name, "")
    return environment


def parse_status(text: bytes) -> int:
    """Return the exit status that the guest sent; GUEST_DIED where it sent none."""
    try:
        return int(text)
    except ValueError:
        return GUEST_DIED


def choose_share(wanted: str | None, daemon: str | None, kernel: DebianKernel) -> str:
    """Return "virtiofs" or "9p", whichever this machine and the kernel both have."""
    share = wanted or ("virtiofs" if daemon and kernel.has_option("VIRTIO_FS") else "9p")
    if share == "virtiofs" and daemon is None:
        raise GuestError("share files by virtiofs: no virtiofsd (install qemu-system-common)")
    if share == "9p" and not kernel.has_option("NET_9P_VIRTIO"):
        raise GuestError(
            f"share files by 9p: {kernel.release} has no 9p "
            "(install virtiofsd, or qemu-system-common before trixie)"
        )
    return share


def refuse_unseen_folder(rw_folders: list[str]) -> None:
    """Raise GuestError if the guest, which sees one file system, would not see this folder."""
    here = Path.cwd()
    shared = [Path(folder).resolve() for folder in rw_folders]
    seen = here.stat().st_dev == Path("/").stat().st_dev
    if not seen and not any(here.is_relative_to(folder) for folder in shared):
        raise GuestError(f"run in {here}: it is not on the file system of / (add --rw {here})")


def enter_private_namespace(arguments: list[str]) -> None:
    """Start this program anew where its mounts are its own; return in the new one."""
    if os.environ.pop(_NAMESPACE_MARK, None):
        return
    if os.geteuid() != 0:
        raise GuestError("make a mount namespace: not root (run it with sudo)")
    os.environ[_NAMESPACE_MARK] = "1"
    unshare = ["unshare", "--mount", "--propagation", "private"]
    os.execvp("unshare", [*unshare, sys.executable, str(Path(__file__).absolute()), *arguments])


@contextmanager
def read_only_root(at: Path) -> Iterator[None]:
    """Show this machine's root file system, read-only, at a folder."""
    at.mkdir()
    subprocess.run(["mount", "--bind", "/", at], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", at], check=True)
        yield
    finally:
        subprocess.run(["umount", at], check=True)


@contextmanager
def running(command: list[str], **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process beside the block; at its end wait a little, then kill it."""
    process: subprocess.Popen[bytes] = subprocess.Popen(  # type: ignore[call-overload]
        command, stdin=subprocess.DEVNULL, **options
    )
    try:
        yield process
        # A normal end: QEMU powers off, and the daemons end with it.
        process.wait(10)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_for_socket(path: str, daemon: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a daemon listens; raise GuestError with its log if it ends or takes too long."""
    deadline = time.monotonic() + 5
    while not Path(path).exists():
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise GuestError(f"start {daemon.args!r}: it does not listen: {log.read_text()}")
        time.sleep(0.02)


def relay(ports: dict[str, socket.socket], deadline: float) -> bytes | None:
    """Pass the guest's output on until its ports close; return its status, None when too late."""
    sinks = {"out": sys.stdout.buffer, "err": sys.stderr.buffer}
    status = b""
    with selectors.DefaultSelector() as selector:
        for name, port in ports.items():
            selector.register(port, selectors.EVENT_READ, name)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            for key, _ in selector.select(left):
                port = ports[key.data]
                try:
                    data = port.recv(65536)
                except ConnectionResetError:
                    data = b""
                if not data:
                    selector.unregister(port)
                elif key.data == "status":
                    status += data
                else:
                    sinks[key.data].write(data)
                    sinks[key.data].flush()
    return status


def run(options: argparse.Namespace, command: list[str]) -> int:
    """Boot the guest, run the command in it and return its exit status."""
    deadline = time.monotonic() + options.timeout
    kernel = find_kernel(options.kernel, cache_folder() / "kernels")
    if options.busybox is None:
        raise GuestError("make the initramfs: no busybox (run fetch_kernels.sh)")
    write_module_index(kernel, options.busybox)
    daemon = qemu.find_virtiofs_daemon()
    share = choose_share(options.share, daemon, kernel)
    refuse_unseen_folder(options.rw)
    rw_folders = [str(Path(folder).resolve()) for folder in options.rw]
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="guest-")))
        stack.enter_context(read_only_root(work / "root"))
        initramfs = work / "initramfs"
        environment = guest_environment(options.env, kernel.release)
        script = command_script(command, str(Path.cwd()), environment)
        initramfs.write_bytes(
            make_initramfs(kernel, share, options.busybox, script, rw_folders),
        )
        folders = [
            qemu.SharedFolder(
                tag, path, tag == ROOT_TAG, f"{work}/{tag}.socket" if share == "virtiofs" else None
            )
            for tag, path in [
                (ROOT_TAG, str(work / "root")),
                *((rw_tag(index), folder) for index, folder in enumerate(rw_folders)),
            ]
        ]
        for folder in folders:
            if folder.socket is not None and daemon is not None:
                log = work / f"{folder.tag}.log"
                with log.open("wb") as stream:
                    server = running(qemu.virtiofs_command(daemon, folder), stderr=stream)
                    wait_for_socket(folder.socket, stack.enter_context(server), log)
        pairs = {name: socket.socketpair() for name in ("out", "err", "status")}
        ports = {name: stack.enter_context(ours) for name, (ours, _) in pairs.items()}
        console = options.console or work / "console"
        boot = qemu.qemu_command(
            qemu.Machine(
                options.qemu,
                qemu.emulated_cpu(qemu.installed_major(options.qemu)),
                options.cpus,
                options.memory,
                options.kvm,
            ),
            image=kernel.image,
            initramfs=initramfs,
            disk=make_disk(work / "disk"),
            parameters=qemu.kernel_parameters(options.lsm, options.parameters),
            console=console,
            folders=folders,
            ports={name: theirs.fileno() for name, (_, theirs) in pairs.items()},
        )
        inherited = [theirs.fileno() for _, theirs in pairs.values()]
        with running(boot, pass_fds=inherited) as guest:
            for _, theirs in pairs.values():
                theirs.close()
            told = relay(ports, deadline)
            if told is None:
                guest.kill()
        status = TIMED_OUT if told is None else parse_status(told)
        if status in (TIMED_OUT, GUEST_DIED):
            cause = "it took too long" if told is None else "the guest died"
            end = console.read_text(errors="replace")[-4000:]
            sys.stderr.write(f"run_in_kernel: {cause}; the end of its console:\n{end}\n")
        return status


def make_disk(file: Path) -> Path:
    """Make a sparse file with an empty ext4, the guest's TMPDIR."""
    with file.open("wb") as stream:
        stream.truncate(DISK_BYTES)
    format_disk = ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1", str(file)]
    search = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    subprocess.run(format_disk, check=True, env={**os.environ, "PATH": search})
    return file


def write_module_index(kernel: DebianKernel, busybox: Path) -> None:
    """Make modules.dep, which Debian's package leaves to its installation; once per kernel."""
    if (kernel.modules_folder / "modules.dep").exists():
        return
    base = kernel.modules_folder.parent.parent.parent
    # busybox complains about every file that it does not know, and does the rest.
    subprocess.run(
        [busybox, "depmod", "-b", base, kernel.release],
        cwd="/",
        stderr=subprocess.DEVNULL,
        check=False,
    )


def main() -> int:
    """Run the program; return its exit status."""
    options, command = parse_arguments(sys.argv[1:])
    # Ended from outside it leaves no guest behind: the exit unwinds what `run` has opened.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        enter_private_namespace(sys.argv[1:])
        return run(options, command)
    except (GuestError, KernelNotFoundError) as error:
        sys.stderr.write(f"run_in_kernel: {error}\n")
        return GUEST_DIED


if __name__ == "__main__":
    sys.exit(main())
