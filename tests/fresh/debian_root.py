"""A bare Debian root in a folder, with what a container would have, to run commands in.

Nothing of this machine's programs is in it: debootstrap unpacks Debian's smallest system, and the
kernel, the network and pip's settings are all that is shared. The mounts are made in a mount
namespace of this process (`unshare --mount`), so they end with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

# As in a container: the devices that every program may expect, and no others.
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
DEVICE_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
PASSED_ON = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "TERM": "dumb",
}
# Services stay off in images of containers too.
POLICY = "#!/bin/sh\nexit 101\n"


def parse_pip_settings(listing: str) -> dict[str, str]:
    """Return what `pip config list` prints as pip's environment variables."""
    settings: dict[str, str] = {}
    for line in listing.splitlines():
        name, _, quoted = line.partition("=")
        value = quoted.strip("'\"").replace("\\n", " ")
        option = name.rpartition(".")[2].upper().replace("-", "_")
        settings[f"PIP_{option}"] = value.strip()
    return settings


def local_paths(settings: Mapping[str, str]) -> list[Path]:
    """Return the files and folders of this machine that pip's settings name, outermost once.

    An index in a folder has its pages in `simple` and what they link to beside it.
    """
    words = [word.removeprefix("file://") for value in settings.values() for word in value.split()]
    named = [Path(word) for word in words if word.startswith("/")]
    paths = sorted({path.parent if path.name == "simple" else path for path in named})
    return [
        path
        for path in paths
        if path.exists() and not any(outer in path.parents for outer in paths)
    ]


def acquire_settings(dump: str) -> str:
    """Return the lines of `apt-config dump Acquire` that say how packages are fetched."""
    wanted = ("Acquire::Check-Valid-Until ", "Acquire::http", "Acquire::Retries ")
    return "".join(line + "\n" for line in dump.splitlines() if line.startswith(wanted))


def parse_mirror(targets: str) -> str:
    """Return the mirror of Debian among the URIs of apt's package lists."""
    uris = sorted(line.rstrip("/") for line in targets.split())
    found = next((uri for uri in uris if uri.endswith("/debian")), None)
    if found is None:
        raise LookupError("find a Debian mirror in apt's sources: none (run apt-get update once)")
    return found


def ask(*command: str) -> str:
    """Return what a command prints."""
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def mount(*arguments: str | Path) -> None:
    """Mount something in this process's mount namespace."""
    subprocess.run(["mount", *arguments], check=True)


# As a container's does, the root becomes the root of a mount namespace: in a mere chroot the kernel
# shows a file that was mapped before a further unshare(2) by a path that leads out of it.
PIVOT = (
    *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
    'cd "$0" && pivot_root . . && umount --lazy . && exec chroot . /bin/sh -c "$1"',
)


class Machine:
    """The root, ready for `run`."""

    def __init__(self, root: Path, environment: Mapping[str, str]) -> None:
        self.root = root
        self.environment = {**ENVIRONMENT, **environment}

    def run(self, command: str, folder: str = "/root") -> subprocess.CompletedProcess[str]:
        """Run a shell command in the root, its output passed on and returned; never raises."""
        script = f"cd {folder} && {command}"
        with subprocess.Popen(
            [*PIVOT, self.root, script],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line)
        return subprocess.CompletedProcess(command, process.returncode, "".join(lines))


def debootstrap(suite: str, root: Path, cache: Path, packages: tuple[str, ...]) -> None:
    """Unpack Debian's smallest system and a few packages into a folder; downloads are kept."""
    cache.mkdir(parents=True, exist_ok=True)
    targets = ask("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages")
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}"]
    command += [f"--cache-dir={cache.resolve()}", suite, str(root), parse_mirror(targets)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"debootstrap {suite}: {''.join(done.stdout.splitlines(True)[-5:])}")


def give_devices(dev: Path) -> None:
    """Make /dev as a container has it."""
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", dev)
    for name in DEVICES:
        (dev / name).touch()
        mount("--bind", Path("/dev") / name, dev / name)
    for folder in ("pts", "shm"):
        (dev / folder).mkdir()
    mount("-t", "devpts", "-o", "newinstance,ptmxmode=0666", "devpts", dev / "pts")
    mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", dev / "shm")
    (dev / "ptmx").symlink_to("pts/ptmx")
    for name, target in DEVICE_LINKS.items():
        (dev / name).symlink_to(target)


@contextmanager
def debian_root(
    suite: str, work: Path, cache: Path, packages: tuple[str, ...]
) -> Iterator[Machine]:
    """Make the root under `work`; delete it when the block ends. Needs root.

    The caller runs in a mount namespace of its own.
    """
    root = work / "root"
    with ExitStack() as stack:
        debootstrap(suite, root, cache, packages)
        stack.callback(shutil.rmtree, root)
        stack.callback(unmount_below, root)
        # A root that is a mount, as a container's: unshare(1) changes the propagation of "/".
        mount("--bind", root, root)
        mount("-t", "proc", "proc", root / "proc")
        # With tracefs, cgroups and bpffs if they are mounted here.
        mount("--rbind", "/sys", root / "sys")
        mount("--make-rslave", root / "sys")
        give_devices(root / "dev")
        shutil.copy("/etc/resolv.conf", root / "etc" / "resolv.conf")
        policy = root / "usr" / "sbin" / "policy-rc.d"
        policy.write_text(POLICY)
        policy.chmod(0o755)
        # How this machine's apt reaches its mirrors, and whether it minds their age.
        acquire = root / "etc" / "apt" / "apt.conf.d" / "90acquire"
        acquire.write_text(acquire_settings(ask("apt-config", "dump", "Acquire")))
        settings = parse_pip_settings(ask("python3", "-m", "pip", "config", "list"))
        for path in local_paths(settings):
            target = root / path.relative_to("/")
            if path.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.touch()
            mount("--bind", "-o", "ro", path, target)
        proxies = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        yield Machine(root, {**settings, **proxies})


def unmount_below(root: Path) -> None:
    """Unmount what is mounted under a folder, the last mounted first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4] for line in lines]
    for point in reversed([point for point in points if Path(point).is_relative_to(root)]):
        subprocess.run(["umount", "--lazy", point], check=True)
