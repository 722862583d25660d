"""What travels between a broker and those who join, and who is taken for a worker."""

from __future__ import annotations

import hashlib
import sys
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("kerneltrace_core._native.lib", reason="the compiled part is missing")

from kerneltrace_core._native.sharing import REQUESTS_SHA256
from kerneltrace_core.bpf.object import builtin_object
from kerneltrace_core.errors import FormatError, KernelTraceError
from kerneltrace_core.requests import layout
from kerneltrace_core.requests.plan import EVERY_TRACEPOINT, Plan, plan_programs
from kerneltrace_core.requests.sharing import abi
from kerneltrace_core.requests.sharing.offer import (
    Offer,
    PoolFullError,
    address_of,
    read_packet,
    write_packet,
)
from kerneltrace_core.requests.sharing.ways import is_one_of_several

ALL = ("sched", "syscalls", "block", "net", "faults")
PLAN = plan_programs(ALL, True, EVERY_TRACEPOINT)
OFFER = Offer(3, 1 << 63, PLAN)
DESCRIPTORS = 2 + len(PLAN.programs)


def changed(offer: Offer, at: int, data: bytes) -> bytes:
    """Return an answer with other bytes at a place: 8 the index, 12 the key, 20 the plan."""
    answer = offer.encode()
    return answer[:at] + data + answer[at + len(data) :]


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("twice", [True, False])
@pytest.mark.parametrize("arguments", [4, 3])
@pytest.mark.parametrize(
    "lacking", [(), ("sock_send_length",), ("block_bio_queue", "tcp_retransmit_skb")]
)
@pytest.mark.parametrize("wanted", [ALL, ("sched",), ("net", "block"), ("sched", "syscalls")])
def test_an_offer_survives_the_way(
    wanted: tuple[str, ...], lacking: tuple[str, ...], arguments: int, twice: bool, timed: bool
) -> None:
    here = {**EVERY_TRACEPOINT, **dict.fromkeys(lacking), "sched_switch": arguments}
    plan = plan_programs(wanted, timed, here, twice)
    offer = Offer(3, 1 << 63, plan)

    assert Offer.decode(offer.encode(), 2 + len(plan.programs)) == offer


@pytest.mark.parametrize(
    ("at", "data"),
    [
        (0, b"K"),
        (20, b"\xff" * 8),
        (27, b"\x80"),
        (24, b"\x80"),
    ],
)
def test_what_is_no_offer_is_a_format_error(at: int, data: bytes) -> None:
    with pytest.raises(FormatError):
        Offer.decode(changed(OFFER, at, data), DESCRIPTORS)


@pytest.mark.parametrize("length", range(28))
def test_an_offer_that_is_cut_off_is_a_format_error(length: int) -> None:
    with pytest.raises(FormatError):
        Offer.decode(OFFER.encode()[:length], DESCRIPTORS)


@pytest.mark.parametrize("more", [b"x", b"[]", b"1", b'{"net":'])
def test_reasons_that_are_no_object_are_a_format_error(more: bytes) -> None:
    with pytest.raises(FormatError):
        Offer.decode(OFFER.encode() + more, DESCRIPTORS)


@pytest.mark.parametrize("descriptors", [0, 1, DESCRIPTORS - 1, DESCRIPTORS + 1])
def test_another_number_of_descriptors_is_refused(descriptors: int) -> None:
    with pytest.raises(FormatError, match=f"{descriptors} descriptors"):
        Offer.decode(OFFER.encode(), descriptors)


def test_the_brokers_reason_is_passed_on() -> None:
    with pytest.raises(KernelTraceError, match="join by socket: too late"):
        Offer.decode(write_packet({"ok": False, "error": "too late"}), 0)
    with pytest.raises(PoolFullError, match="all taken"):
        Offer.decode(write_packet({"ok": False, "error": "all taken", "again": True}), 0)
    with pytest.raises(KernelTraceError, match="refused"):
        Offer.decode(b"{}", 0)


@pytest.mark.parametrize("packet", [b"", b"\xff", b"[]", b"1", b"[" * 100_000, b'{"a":'])
def test_a_packet_that_is_no_object_is_a_format_error(packet: bytes) -> None:
    with pytest.raises(FormatError):
        read_packet(packet)


def test_an_at_sign_stands_for_the_abstract_namespace() -> None:
    assert address_of("@name") == "\0name"
    assert address_of("/run/x/socket") == "/run/x/socket"


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize(
    "lacking", [(), ("sock_send_length", "sock_recv_length"), ("block_bio_queue",)]
)
@pytest.mark.parametrize("wanted", [ALL, ("sched",), ("sched", "net"), ("sched", "syscalls")])
@pytest.mark.parametrize("arguments", [4, 3])
@pytest.mark.parametrize("twice", [True, False])
def test_a_plan_is_the_same_when_it_is_told_by_its_programs(
    wanted: tuple[str, ...], lacking: tuple[str, ...], timed: bool, arguments: int, twice: bool
) -> None:
    here = {**EVERY_TRACEPOINT, **dict.fromkeys(lacking), "sched_switch": arguments}
    plan = plan_programs(wanted, timed, here, twice)

    again = Plan.of_programs(set(plan.programs), wanted, timed)

    assert set(again.programs) == set(plan.programs)
    assert (again.groups, set(again.missing)) == (plan.groups, set(plan.missing))
    assert again.measures() == plan.measures()


def test_the_hash_tells_apart_what_may_not_share(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {abi.abi_hash(), abi._hash(), abi.abi_hash(ALL, True), abi.abi_hash(ALL, False)}
    found.add(abi.abi_hash(ALL[:1], True))
    with monkeypatch.context() as changed:
        changed.setattr(layout, "ABI", layout.ABI + 1)
        found.add(abi._hash())
    other = ("f" if REQUESTS_SHA256[0] == "0" else "0") + REQUESTS_SHA256[1:]
    monkeypatch.setattr(abi.sharing, "REQUESTS_SHA256", other)
    found.add(abi._hash())

    assert len(found) == 6
    assert {len(each) for each in found} == {24}


def test_the_hash_is_the_same_for_the_same() -> None:
    assert abi.abi_hash(ALL, True) == abi.abi_hash(tuple(ALL), True)


def test_the_digest_that_was_compiled_in_is_that_of_the_programs() -> None:
    assert hashlib.sha256(builtin_object("requests")).hexdigest() == REQUESTS_SHA256


def without_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gunicorn.arbiter", "billiard.process"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_a_process_alone_is_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    without_servers(monkeypatch)

    assert not is_one_of_several()


@pytest.mark.parametrize(
    ("module", "content"),
    [
        ("gunicorn.arbiter", SimpleNamespace()),
        ("multiprocessing.process", SimpleNamespace(parent_process=object)),
        (
            "billiard.process",
            SimpleNamespace(current_process=lambda: SimpleNamespace(name="ForkPoolWorker-1")),
        ),
    ],
)
def test_a_worker_is_known_by_what_started_it(
    module: str, content: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_servers(monkeypatch)
    monkeypatch.setitem(sys.modules, module, content)

    assert is_one_of_several()
