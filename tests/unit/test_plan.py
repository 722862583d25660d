"""Which programs are loaded for which groups, on kernels that have this tracepoint or that."""

from __future__ import annotations

from dataclasses import fields

import pytest

from kerneltrace_core.errors import UnsupportedError
from kerneltrace_core.requests.measures import Measures

pytestmark = pytest.mark.unit

plan_module = pytest.importorskip(
    "kerneltrace_core.requests.plan",
    reason="the compiled part is missing",
    exc_type=ImportError,
)

plan_programs = plan_module.plan_programs
ALL_GROUPS = ("sched", "syscalls", "block", "net", "faults")
TODAY = dict(plan_module.EVERY_TRACEPOINT)
SOCKETS = ("sock_send_length", "sock_recv_length")


def lacking(*points: str) -> dict[str, int | None]:
    return {**TODAY, **dict.fromkeys(points)}


def known(measures: Measures) -> set[str]:
    return {each.name for each in fields(Measures) if getattr(measures, each.name) is True} - {
        "loop"
    }


def test_todays_kernel_gets_every_program_of_every_group() -> None:
    plan = plan_programs(ALL_GROUPS, True, TODAY)

    assert plan.groups == ALL_GROUPS
    assert plan.missing == {}
    wanted = {name for group in plan_module.PROGRAMS.values() for name in group}
    assert set(plan.programs) == wanted
    assert len(plan.programs) == len(set(plan.programs))
    assert plan.sockets


def test_where_programs_are_preempted_a_second_copy_stands_behind_each() -> None:
    plan = plan_programs(ALL_GROUPS, True, TODAY, second_copies=True)

    places = {name: place for place, name in enumerate(plan.programs)}
    for name in plan_module.PREEMPTED:
        assert places[name + plan_module.SECOND] == places[name] + 1
    once = plan_programs(ALL_GROUPS, True, TODAY).programs
    assert len(plan.programs) == len(once) + len(plan_module.PREEMPTED)
    assert plan.second_copies


def test_sched_is_always_there_and_comes_first() -> None:
    plan = plan_programs(("net",), True, TODAY)

    assert plan.groups == ("sched", "net")
    assert plan.programs[: len(plan_module.SCHED)] == tuple(plan_module.SCHED)


def test_a_group_that_is_not_wanted_brings_no_program() -> None:
    plan = plan_programs(("sched",), True, TODAY)

    assert plan.programs == tuple(plan_module.SCHED)
    assert known(plan.measures()) == {"ledger", "causes", "processes"}


def test_counting_leaves_out_the_program_that_takes_the_time() -> None:
    plan = plan_programs(("sched", "syscalls"), False, TODAY)

    assert "kt_sys_enter" not in plan.programs
    assert "kt_sys_exit" in plan.programs
    assert plan.measures().calls
    assert not plan.measures().call_times


@pytest.mark.parametrize(
    ("group", "point"),
    [
        ("syscalls", "sys_exit"),
        ("block", "block_bio_queue"),
        ("block", "block_rq_complete"),
        ("net", "tcp_retransmit_skb"),
        ("faults", "page_fault_user"),
    ],
)
def test_a_group_without_its_tracepoint_is_left_out_and_named(group: str, point: str) -> None:
    plan = plan_programs(ALL_GROUPS, True, lacking(point))

    assert group not in plan.groups
    assert plan.missing == {group: f"this kernel has no tracepoint {point}"}
    others = {name for g in plan.groups for name in plan_module.PROGRAMS[g]}
    assert set(plan.programs) == others


def test_without_the_socket_tracepoints_the_groups_that_like_them_stay() -> None:
    plan = plan_programs(ALL_GROUPS, True, lacking(*SOCKETS))

    assert plan.groups == ALL_GROUPS
    assert not plan.sockets
    assert "kt_sock_send" not in plan.programs
    assert plan.measures().net  # by the kind of descriptor, in group syscalls


def test_bytes_on_sockets_need_either_syscalls_or_the_tracepoints() -> None:
    with_points = plan_programs(("sched", "net"), True, TODAY)
    without = plan_programs(("sched", "net"), True, lacking(*SOCKETS))

    assert with_points.measures().net
    assert not without.measures().net
    assert without.measures().retransmits


def test_one_socket_tracepoint_alone_tells_no_socket_from_a_file() -> None:
    plan = plan_programs(ALL_GROUPS, True, lacking("sock_recv_length"))

    assert not plan.sockets


def test_stacked_devices_are_optional() -> None:
    plan = plan_programs(("sched", "block"), True, lacking("block_bio_complete"))

    assert plan.groups == ("sched", "block")
    assert "kt_block_bio_complete" not in plan.programs
    assert "kt_block_rq_complete" in plan.programs


def test_an_older_sched_switch_gets_the_program_for_it() -> None:
    plan = plan_programs(("sched",), True, {**TODAY, "sched_switch": 3})

    assert plan.programs[0] == "kt_sched_switch_5_17"
    assert "kt_sched_switch" not in plan.programs


@pytest.mark.parametrize("point", ["sched_switch", "sched_waking"])
def test_without_sched_nothing_is_loaded(point: str) -> None:
    with pytest.raises(UnsupportedError, match=f"load request probes: .* no tracepoint {point}"):
        plan_programs(ALL_GROUPS, True, lacking(point))
