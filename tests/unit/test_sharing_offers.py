"""What travels between a broker and those who join, and who is taken for a worker."""

from __future__ import annotations

import hashlib
import sys
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("kerneltrace_core._native.lib", reason="the compiled part is missing")

from kerneltrace_core.bpf.object import builtin_digest, builtin_object
from kerneltrace_core.errors import FormatError, KernelTraceError, LoadError
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


def test_an_offer_survives_the_way() -> None:
    packet = write_packet(OFFER.as_dict())

    assert Offer.of_answer(read_packet(packet), DESCRIPTORS) == OFFER


@pytest.mark.parametrize(
    "changes",
    [
        {"process": -1},
        {"process": "3"},
        {"key": -1},
        {"key": 1 << 64},
        {"key": None},
        {"plan": None},
        {"plan": {}},
        {"plan": {**PLAN.as_dict(), "programs": 5}},
        {"plan": {**PLAN.as_dict(), "missing": []}},
        {"plan": {**PLAN.as_dict(), "groups": ["sched", "everything"]}},
    ],
)
def test_what_is_no_offer_is_a_format_error(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        Offer.of_answer({**OFFER.as_dict(), **changes}, DESCRIPTORS)


@pytest.mark.parametrize("descriptors", [0, 1, DESCRIPTORS - 1, DESCRIPTORS + 1])
def test_another_number_of_descriptors_is_refused(descriptors: int) -> None:
    with pytest.raises(FormatError, match=f"{descriptors} descriptors"):
        Offer.of_answer(OFFER.as_dict(), descriptors)


def test_the_brokers_reason_is_passed_on() -> None:
    with pytest.raises(KernelTraceError, match="join by socket: too late"):
        Offer.of_answer({"ok": False, "error": "too late"}, 0)
    with pytest.raises(PoolFullError, match="all taken"):
        Offer.of_answer({"ok": False, "error": "all taken", "again": True}, 0)
    with pytest.raises(KernelTraceError, match="refused"):
        Offer.of_answer({}, 0)


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
    monkeypatch.setattr(abi, "builtin_digest", lambda name: b"0123456789abcdef" * 4)
    plain = abi.abi_hash()

    found = {plain, abi.abi_hash(ALL, True), abi.abi_hash(ALL, False), abi.abi_hash(ALL[:1], True)}
    with monkeypatch.context() as changed:
        changed.setattr(layout, "ABI", layout.ABI + 1)
        found.add(abi.abi_hash())
    monkeypatch.setattr(abi, "builtin_digest", lambda name: b"0123456789abcde0" * 4)
    found.add(abi.abi_hash())

    assert len(found) == 6
    assert {len(each) for each in found} == {24}


def test_the_hash_is_the_same_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abi, "builtin_digest", lambda name: b"0123456789abcdef" * 4)

    assert abi.abi_hash(ALL, True) == abi.abi_hash(tuple(ALL), True)


def test_the_digest_that_the_build_noted_is_that_of_the_programs() -> None:
    expected = hashlib.sha256(builtin_object("requests")).hexdigest()

    assert builtin_digest("requests").decode() == expected


def test_a_digest_that_is_missing_is_told_like_missing_programs() -> None:
    with pytest.raises(LoadError, match="read built-in BPF object nothing: "):
        builtin_digest("nothing")


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
