"""XDP, tc and cgroup programs: exact counts of frames, refused connections, and nothing left."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from harness.forked import CLONE_NEWNET, in_child, in_network_namespace
from harness.nobody import CAP_BPF, as_nobody
from harness.objects import compile_object
from harness.pace import time_factor
from harness.probing import PATIENCE_SECONDS, open_descriptors, probing
from harness.tiers import Require
from kerneltrace_core import Session
from kerneltrace_core._native import attach as native
from kerneltrace_core.errors import AttachError, PrivilegeError
from kerneltrace_core.kernel.support import Support
from kerneltrace_core.session.filters_left import filters_left
from kerneltrace_core.session.links import Link
from kerneltrace_core.session.probes import Cgroup, Probe, Tc, Xdp

pytestmark = pytest.mark.kernel

T = TypeVar("T")
CAP_NET_ADMIN, CAP_NET_RAW = 12, 13
FRAME_TYPE = 0x88B5
FRAME = bytes(6 * [0xFF]) + bytes(6) + FRAME_TYPE.to_bytes(2, "big") + bytes(46)


def has_veth() -> Support:
    """Make a pair of interfaces in a namespace of its own."""
    if shutil.which("ip") is None:
        return Support.no("ip is not installed", "make deps")

    def make() -> str:
        try:
            make_pair()
        except (OSError, subprocess.CalledProcessError) as error:
            return str(getattr(error, "stderr", "") or error)
        return ""

    refused = in_child(lambda: try_in_namespace(make))
    return Support.no(refused) if refused else Support.yes()


def try_in_namespace(act: object) -> str:
    try:
        return in_network_namespace(act)  # type: ignore[arg-type]
    except AssertionError as error:
        return str(error).splitlines()[-1]


def make_pair() -> None:
    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    ip("link", "add", "kt-left", "type", "veth", "peer", "name", "kt-right")
    for name in ("kt-left", "kt-right"):
        ip("link", "set", name, "up")


@pytest.fixture(autouse=True)
def _veth(require: Require) -> None:
    require("capability:cap_net_admin")
    require("veth interfaces", probe=has_veth)


def pass_frames(times: int) -> None:
    """Send frames on one end; return when the other end's stack has got them all."""
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(FRAME_TYPE)) as into,
    ):
        out.bind(("kt-left", 0))
        into.bind(("kt-right", FRAME_TYPE))
        into.settimeout(PATIENCE_SECONDS * time_factor())
        for _ in range(times):
            out.send(FRAME)
            assert into.recv(len(FRAME)) == FRAME


def count_frames(spec: Probe, counter: str) -> list[int]:
    """Return the frames counted: while attached, then detached, then attached again."""
    make_pair()
    counts = []
    with probing("network", spec) as probes:
        (link,) = probes.links
        for change in (link.attach, link.detach, link.attach):
            change()
            pass_frames(23)
            counts.append(probes[counter])
    return counts


@pytest.mark.parametrize("mode", ["auto", "native", "generic"])
def test_xdp_sees_23_frames(mode: str) -> None:
    spec = Xdp("kt-right", mode)
    assert in_network_namespace(lambda: count_frames(spec, "xdp_frames")) == [23, 23, 46]


TC = [Tc("kt-right", "ingress"), Tc("kt-left", "egress")]


@pytest.mark.parametrize("spec", TC, ids=str)
def test_tc_sees_23_frames(spec: Probe) -> None:
    assert in_network_namespace(lambda: count_frames(spec, "tc_frames")) == [23, 23, 46]


NETWORK = {"xdp": Xdp("kt-right", "generic"), "tc": Tc("kt-right", "ingress")}


def in_a_pair_as_nobody(act: Callable[[], T], capabilities: Sequence[int]) -> T:
    def inside() -> T:
        make_pair()
        return as_nobody(act, capabilities)

    compile_object("network")  # where that may write
    return in_network_namespace(inside)


@pytest.mark.parametrize("kind", NETWORK)
def test_nobody_with_bpf_and_net_admin_sees_23_frames(kind: str) -> None:
    def count() -> int:
        with probing("network", NETWORK[kind]) as probes:
            pass_frames(23)
            return probes[f"{kind}_frames"]

    assert in_a_pair_as_nobody(count, (CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW)) == 23


@pytest.mark.parametrize("kind", NETWORK)
def test_nobody_without_net_admin_is_told_so(kind: str) -> None:
    def refused() -> str:
        with pytest.raises(PrivilegeError) as caught:
            Session(compile_object("network"), [NETWORK[kind]]).open()
        return str(caught.value)

    assert "CAP_NET_ADMIN" in in_a_pair_as_nobody(refused, (CAP_BPF, CAP_NET_RAW))


@pytest.mark.parametrize("spec", TC, ids=str)
def test_tc_sees_them_without_tcx_links_and_takes_its_qdisc_away(
    spec: Tc, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_tcx(*_: object, **__: object) -> int:
        raise AttachError("create link: Invalid argument (EINVAL)", errno=errno.EINVAL)

    monkeypatch.setattr(native, "create_link", no_tcx)

    def count() -> tuple[list[int], str]:
        counts = count_frames(spec, "tc_frames")
        return counts, qdiscs(spec.interface)

    counts, left = in_network_namespace(count)
    assert counts == [23, 23, 46]
    assert "clsact" not in left


def qdiscs(interface: str) -> str:
    shown = ["tc", "qdisc", "show", "dev", interface]
    return subprocess.run(shown, check=True, capture_output=True, text=True).stdout


def test_the_qdisc_stays_while_anybody_has_a_filter_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_tcx(*_: object, **__: object) -> int:
        raise AttachError("create link: Invalid argument (EINVAL)", errno=errno.EINVAL)

    monkeypatch.setattr(native, "create_link", no_tcx)

    def scenario() -> list[bool]:
        make_pair()
        index = socket.if_nametoindex("kt-right")
        with probing("network", Tc("kt-right"), Tc("kt-right", "egress")) as probes:
            first, second = probes.links
            seen = ["clsact" in qdiscs("kt-right"), filters_left(index)]
            first.detach()
            seen += ["clsact" in qdiscs("kt-right"), filters_left(index)]
            second.detach()
            seen += ["clsact" in qdiscs("kt-right")]
        # What somebody else made stays.
        subprocess.run(["tc", "qdisc", "add", "dev", "kt-right", "clsact"], check=True)
        with probing("network", Tc("kt-right")):
            pass
        return [*seen, "clsact" in qdiscs("kt-right"), filters_left(index)]

    assert in_network_namespace(scenario) == [True, True, True, True, False, True, False]


def test_a_session_that_is_closed_in_another_namespace_can_be_closed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_tcx(*_: object, **__: object) -> int:
        raise AttachError("create link: Invalid argument (EINVAL)", errno=errno.EINVAL)

    monkeypatch.setattr(native, "create_link", no_tcx)

    def scenario() -> tuple[str, int | None, list[bool]]:
        libc = ctypes.CDLL(None, use_errno=True)
        make_pair()
        index = socket.if_nametoindex("kt-right")
        session = Session(compile_object("network"), [Tc("kt-right")]).open()
        with open("/proc/thread-self/ns/net") as home:
            assert libc.unshare(CLONE_NEWNET) == 0
            with pytest.raises(AttachError) as caught:
                session.close()
            seen = [session.closed]
            with pytest.raises(AttachError, match="another network namespace"):
                session.close()
            assert libc.setns(home.fileno(), CLONE_NEWNET) == 0
        seen += [filters_left(index)]
        session.close()
        session.close()
        seen += [filters_left(index), "clsact" in qdiscs("kt-right")]
        return str(caught.value), caught.value.errno, seen

    told, code, seen = in_network_namespace(scenario)
    assert told == (
        'detach tc kt-right ingress from program on_tc (SEC("tc")): ENODEV: this thread is in '
        "another network namespace than the interface, and the filter stays (detach again, or "
        "close the session again, on a thread of that namespace: setns(2))"
    )
    assert code == errno.ENODEV
    assert seen == [True, True, False, False]


def test_what_cannot_be_attached_to_an_interface_is_said() -> None:
    def scenario() -> list[str]:
        make_pair()
        told = []
        with probing("network", Xdp("kt-right"), Tc("kt-right")) as probes:
            for program, spec in (
                ("on_xdp", Xdp("kt-rigth")),
                ("on_xdp", Xdp("kt-right", "native")),
                ("on_tc", Tc("kt-rigth")),
                ("on_tc", Xdp("kt-left")),
            ):
                with pytest.raises(AttachError) as caught:
                    Link(probes.object, program, spec).attach()
                told.append(str(caught.value))
        return told

    unknown, taken, unknown_tc, wrong = in_network_namespace(scenario)
    assert "ENODEV: this network namespace has no interface kt-rigth" in unknown
    assert "did you mean kt-right" in unknown
    assert "another XDP program is attached there" in taken
    assert "ENODEV: this network namespace has no interface kt-rigth" in unknown_tc
    assert "EINVAL: it is a tc classifier program" in wrong


# ---- cgroups --------------------------------------------------------------------


def cgroup2() -> Path | None:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        words = line.split()
        if words[2] == "cgroup2":
            return Path(words[1])
    return None


@pytest.fixture
def cgroup(require: Require) -> Iterator[Path]:
    mount = cgroup2()

    def writable() -> Support:
        if mount is None:
            return Support.no("cgroup2 is not mounted")
        return Support.yes() if os.access(mount, os.W_OK) else Support.no(f"{mount} is read-only")

    require("a cgroup2 mount to write to", probe=writable)
    assert mount is not None
    folder = mount / f"kt-test-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    yield folder
    folder.rmdir()


def test_a_cgroups_processes_may_not_connect_while_the_program_is_attached(cgroup: Path) -> None:
    with socket.socket() as listening, probing("network", Cgroup(cgroup)) as probes:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        address = listening.getsockname()
        probes["refused_port"] = address[1]

        def connect(times: int) -> int:
            refused = 0
            for _ in range(times):
                with socket.socket() as trying:
                    try:
                        trying.connect(address)
                    except PermissionError:
                        refused += 1
            return refused

        def connect_inside() -> int:
            (cgroup / "cgroup.procs").write_text(str(os.getpid()))
            return connect(7)

        assert connect(3) == 0
        assert in_child(connect_inside) == 7
        assert probes["connects"] == 7
        probes.links[0].detach()
        assert in_child(connect_inside) == 0
        probes.links[0].attach()
        assert in_child(connect_inside) == 7
        assert probes["connects"] == 14


def test_a_cgroup_link_leaves_no_descriptor(cgroup: Path) -> None:
    with probing("network", Cgroup(cgroup), attach=False) as probes:
        before = open_descriptors()
        for _ in range(3):
            probes.links[0].attach()
            assert len(open_descriptors()) == len(before) + 1
            probes.links[0].detach()
        assert open_descriptors() == before


def test_what_is_no_cgroup_is_said(tmp_path: Path) -> None:
    for path, told in (
        (tmp_path, f"{tmp_path} is not a cgroup of version 2"),
        (tmp_path / "none", "ENOENT: open the cgroup: No such file"),
    ):
        spec = Cgroup(path)
        with pytest.raises(AttachError) as caught, probing("network", spec):
            pass
        assert f"attach cgroup {path} to program on_connect" in str(caught.value)
        assert told in str(caught.value)
