"""The parts of run_in_kernel that need no guest."""

from __future__ import annotations

import lzma
import os
import subprocess
from pathlib import Path

import pytest
import qemu
from cpio import CpioArchive
from debian_kernel import (
    DebianKernel,
    KernelNotFoundError,
    find_kernel,
    option_is_on,
    parse_module_dependencies,
    version_begins,
)
from guest_init import command_script, make_initramfs, mount_command
from run_in_kernel import (
    GUEST_DIED,
    GuestError,
    cache_folder,
    choose_share,
    guest_environment,
    parse_arguments,
    parse_status,
)


def read_archive(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Read a newc archive the way the kernel does: mode and content by name."""
    members: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        start = -(-(at + 110 + name_size) // 4) * 4
        if name == "TRAILER!!!":
            return members
        members[name] = (mode, data[start : start + size])
        at = -(-(start + size) // 4) * 4


@pytest.fixture
def kernel(tmp_path: Path) -> DebianKernel:
    """Return a kernel as Debian 12 packs it, with three modules in a chain."""
    folder = tmp_path / "kernels" / "6.1.0-9-cloud-amd64"
    modules = folder / "lib/modules/6.1.0-9-cloud-amd64/kernel"
    modules.mkdir(parents=True)
    (folder / "boot").mkdir()
    (folder / "boot/vmlinuz-6.1.0-9-cloud-amd64").write_bytes(b"image")
    (folder / "boot/config-6.1.0-9-cloud-amd64").write_text("CONFIG_VIRTIO_FS=m\nCONFIG_BPF=y\n")
    (modules / "virtiofs.ko").write_bytes(b"\0name=virtiofs\0depends=fuse,virtio-ring\0")
    (modules / "fuse.ko.xz").write_bytes(lzma.compress(b"\0depends=\0fuse"))
    (modules / "virtio_ring.ko").write_bytes(b"depends=\0ring")
    return DebianKernel(folder)


def test_an_archive_holds_what_was_added() -> None:
    archive = CpioArchive()
    archive.add_directory("bin")
    archive.add_file("bin/tool", b"12345", 0o755)
    archive.add_link("bin/alias", "tool")
    archive.add_character_device("console", 5, 1)

    data = archive.done()

    assert len(data) % 512 == 0
    assert read_archive(data) == {
        "bin": (0o040755, b""),
        "bin/tool": (0o100755, b"12345"),
        "bin/alias": (0o120777, b"tool"),
        "console": (0o020600, b""),
    }


def test_modules_come_after_what_they_depend_on(kernel: DebianKernel) -> None:
    modules = kernel.modules_in_load_order(["virtiofs", "built_in"])

    assert list(modules) == ["fuse", "virtio_ring", "virtiofs"]
    assert modules["fuse"].endswith(b"fuse")


def test_a_module_without_dependencies_has_none() -> None:
    assert parse_module_dependencies(b"\0depends=\0") == []
    assert parse_module_dependencies(b"no such entry") == []
    assert parse_module_dependencies(b"\0name=a\0depends=b,c\0") == ["b", "c"]


def test_an_option_is_on_when_built_in_or_a_module(kernel: DebianKernel) -> None:
    assert kernel.has_option("VIRTIO_FS")
    assert kernel.has_option("BPF")
    assert not kernel.has_option("NET_9P_VIRTIO")
    assert not option_is_on("# CONFIG_A is not set\nCONFIG_AB=y\n", "A")


def test_a_version_begins_number_by_number() -> None:
    assert version_begins("6.1.0-56-cloud-amd64", "6.1")
    assert not version_begins("6.12.117+deb13-cloud-amd64", "6.1")


def test_the_newest_cloud_kernel_of_a_version_is_found(
    kernel: DebianKernel, tmp_path: Path
) -> None:
    cache = tmp_path / "kernels"
    for release in ("6.1.0-10-cloud-amd64", "6.1.0-11-amd64", "6.12.1-cloud-amd64"):
        modules = cache / release / "usr/lib/modules" / release
        modules.mkdir(parents=True)
        (modules / "vmlinuz").write_bytes(b"image")

    assert find_kernel("6.1", cache).release == "6.1.0-10-cloud-amd64"
    assert find_kernel(str(kernel.folder), cache).release == kernel.release
    with pytest.raises(KernelNotFoundError, match=r"find kernel 5\.10 .*only 6\.1\.0-10-cloud"):
        find_kernel("5.10", cache)


def test_a_folder_without_a_kernel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KernelNotFoundError, match="no lib/modules"):
        DebianKernel(tmp_path)


def test_the_initramfs_loads_modules_mounts_and_brings_the_command(
    kernel: DebianKernel, tmp_path: Path
) -> None:
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"shell")

    data = make_initramfs(kernel, "virtiofs", busybox, "exec true\n", ["/with space"])

    members = read_archive(data)
    assert members["bin/busybox"] == (0o100755, b"shell")
    assert members["init"][1].startswith(b"#!/bin/busybox sh\n")
    assert members["command.sh"][1] == b"exec true\n"
    assert members["load_modules.sh"][1].splitlines() == [
        b"insmod /modules/fuse.ko",
        b"insmod /modules/virtio_ring.ko",
        b"insmod /modules/virtiofs.ko",
    ]
    assert members["mount_root.sh"][1] == b"$B mount -t virtiofs -o ro root /ro\n"
    assert b"$B mount -t virtiofs rw0 '/newroot/with space'\n" in members["mount_rw.sh"][1]


def test_a_9p_mount_of_the_root_is_read_only() -> None:
    assert "-o ro,cache=loose," in mount_command("9p", "root", "/ro", read_only=True)
    assert "-o cache=mmap," in mount_command("9p", "rw0", "/x", read_only=False)


def test_the_command_keeps_its_arguments_folder_and_environment(tmp_path: Path) -> None:
    folder = tmp_path / "it's here"
    folder.mkdir()
    command = ["sh", "-c", 'echo "$PWD|$MARK|$1"', "sh", "a  $b 'c'"]

    script = command_script(command, str(folder), {"MARK": "x y", "PATH": os.environ["PATH"]})

    run = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == f"{folder}|x y|a  $b 'c'\n"


def test_arguments_before_the_dashes_are_options_and_after_them_the_command() -> None:
    options, command = parse_arguments(["--rw", "/a", "--rw", "/b", "6.1", "--", "x", "--", "-y"])

    assert (options.kernel, options.rw) == ("6.1", ["/a", "/b"])
    assert command == ["x", "--", "-y"]


@pytest.mark.parametrize("arguments", [["6.1"], ["6.1", "--"], ["6.1", "ls"]])
def test_a_missing_command_is_an_error_of_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        parse_arguments(arguments)

    assert raised.value.code == 2
    assert "no -- COMMAND" in capsys.readouterr().err


def test_the_guest_gets_only_the_environment_that_it_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OWN", "value=1")
    monkeypatch.setenv("SECRET", "stays")

    environment = guest_environment(["OWN", "NEW=a=b", "UNSET"], "6.1.0")

    assert sorted(environment) == [
        *("HOME", "LANG", "NEW", "OWN", "PATH"),
        *("RUN_IN_KERNEL", "TMPDIR", "UNSET"),
    ]
    assert (environment["OWN"], environment["NEW"]) == ("value=1", "a=b")
    assert (environment["UNSET"], environment["RUN_IN_KERNEL"]) == ("", "6.1.0")


def test_a_guest_that_tells_no_status_has_died() -> None:
    assert parse_status(b"7\n") == 7
    assert parse_status(b"") == GUEST_DIED


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.delenv("KERNELTRACE_CACHE", raising=False)
    assert cache_folder() == Path("/xdg/kerneltrace")
    monkeypatch.setenv("KERNELTRACE_CACHE", "/own")
    assert cache_folder() == Path("/own")


def test_files_are_shared_by_what_both_sides_have(kernel: DebianKernel) -> None:
    assert choose_share(None, "/usr/libexec/virtiofsd", kernel) == "virtiofs"
    with pytest.raises(GuestError, match="has no 9p"):
        choose_share(None, None, kernel)
    with pytest.raises(GuestError, match="no virtiofsd"):
        choose_share("virtiofs", None, kernel)


def test_the_broken_instruction_of_old_qemu_is_left_out() -> None:
    old = qemu.parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\n")
    new = qemu.parse_version("QEMU emulator version 10.0.2\n")

    assert qemu.emulated_cpu(old) == "max,cx16=off"
    assert qemu.emulated_cpu(new) == "max"
    with pytest.raises(ValueError, match="read QEMU's version"):
        qemu.parse_version("qemu\n")


def test_an_empty_list_of_security_modules_keeps_the_kernels_own() -> None:
    assert "lsm=" not in qemu.kernel_parameters("", "")
    assert qemu.kernel_parameters("yama,bpf", "quiet").endswith(" lsm=yama,bpf quiet")


@pytest.mark.parametrize(
    ("daemon", "source", "cache"),
    [
        ("/usr/lib/qemu/virtiofsd", "source=/folder", "cache=always"),
        ("/usr/libexec/virtiofsd", "--shared-dir=/folder", "always"),
    ],
)
def test_each_file_daemon_gets_its_own_options(daemon: str, source: str, cache: str) -> None:
    folder = qemu.SharedFolder("root", "/folder", True, "/run/root.socket")

    command = qemu.virtiofs_command(daemon, folder)

    assert command[:2] == [daemon, "--socket-path=/run/root.socket"]
    assert source in command
    assert cache in command


def test_the_machine_has_its_folders_and_ports() -> None:
    command = qemu.qemu_command(
        qemu.Machine("qemu-system-x86_64", "max", cpus=3, memory="1G"),
        image=Path("/kernel"),
        disk=Path("/work/disk"),
        initramfs=Path("/initramfs"),
        parameters="quiet",
        console=Path("/console"),
        folders=[
            qemu.SharedFolder("root", "/r", True, "/s"),
            qemu.SharedFolder("rw0", "/w", False, None),
        ],
        ports={"out": 5},
    )

    line = " ".join(command)
    assert "-smp 3" in line
    assert "size=1G,share=on" in line
    assert "-kernel /kernel -initrd /initramfs -append quiet -accel tcg,thread=multi" in line
    assert "-chardev socket,id=root,path=/s -device vhost-user-fs-pci,chardev=root,tag=root" in line
    assert "-fsdev local,id=rw0,path=/w,security_model=none,multidevs=remap -device" in line
    assert "file=/work/disk,format=raw,cache=unsafe -device virtio-blk-pci,drive=disk" in line
    assert "-chardev socket,id=out,fd=5 -device virtserialport,chardev=out,name=guest.out" in line
