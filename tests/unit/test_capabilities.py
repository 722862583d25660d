from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerneltrace_core.kernel.capabilities import (
    NAMES,
    NEEDED,
    CapabilitySets,
    capability_names,
    parse_capabilities,
    parse_user_namespace,
    read_user_namespace_is_initial,
)

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> CapabilitySets:
    return parse_capabilities((GOLDEN / name).read_text().splitlines())


def test_root_holds_everything_that_its_machine_left_it() -> None:
    sets = golden("status-6.18-root.txt")
    assert set(NAMES) - sets.effective == {"cap_sys_resource"}
    assert sets.missing(NEEDED) == ()
    assert sets.ambient == frozenset()


def test_ambient_capabilities_are_effective_permitted_and_inheritable() -> None:
    sets = golden("status-6.18-two-capabilities.txt")
    both = frozenset(NEEDED)
    assert (sets.effective, sets.permitted, sets.ambient) == (both, both, both)
    assert sets.inheritable == both
    assert sets.missing(NEEDED) == ()


def test_an_unprivileged_process_misses_both_in_the_order_asked() -> None:
    assert golden("status-6.18-none.txt").missing(NEEDED) == ("cap_bpf", "cap_perfmon")


def test_permitted_is_not_effective() -> None:
    sets = golden("status-permitted-only.txt")
    assert sets.permitted == frozenset(NEEDED)
    assert sets.missing(NEEDED) == NEEDED


def test_sys_admin_stands_for_bpf_and_perfmon_on_a_kernel_without_them() -> None:
    sets = golden("status-3.10.txt")
    assert "cap_bpf" not in sets.effective
    assert sets.missing(NEEDED) == ()
    assert sets.ambient == frozenset()


def test_sys_admin_does_not_stand_for_other_capabilities() -> None:
    sets = CapabilitySets(effective=frozenset({"cap_sys_admin"}))
    assert sets.missing(("cap_bpf", "cap_net_admin")) == ("cap_net_admin",)


def test_a_capability_that_does_not_exist_yet_gets_its_number() -> None:
    assert golden("status-future.txt").effective == {*NEEDED, "cap_41"}


def test_a_status_without_effective_capabilities_is_refused() -> None:
    with pytest.raises(ValueError, match="no CapEff"):
        parse_capabilities(["Name:\tpython"])


def test_a_mask_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="base 16"):
        parse_capabilities(["CapEff:\tnonsense"])


@given(st.integers(min_value=0, max_value=2**64 - 1))
def test_every_mask_gives_one_name_for_each_bit(mask: int) -> None:
    assert len(capability_names(mask)) == bin(mask).count("1")


@given(st.sets(st.sampled_from(NAMES)))
def test_a_printed_mask_is_read_back(names: set[str]) -> None:
    mask = sum(1 << NAMES.index(name) for name in names)
    assert parse_capabilities([f"CapEff:\t{mask:016x}\n"]).effective == names


@given(st.lists(st.text(max_size=40)))
def test_any_lines_parse_or_raise_value_error(lines: list[str]) -> None:
    with contextlib.suppress(ValueError):
        parse_capabilities(lines)


def test_the_user_namespace_is_the_number_in_brackets() -> None:
    assert parse_user_namespace("user:[4026531837]") == 0xEFFFFFFD
    for wrong in ("", "user:", "net:[4026531837]", "user:[x]"):
        with pytest.raises(ValueError, match=r"user|invalid literal"):
            parse_user_namespace(wrong)


def test_another_user_namespace_is_not_the_initial_one(tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to("user:[4026532000]")
    (tmp_path / "first").symlink_to("user:[4026531837]")
    assert read_user_namespace_is_initial(str(tmp_path / "other")) is False
    assert read_user_namespace_is_initial(str(tmp_path / "first")) is True
    assert read_user_namespace_is_initial(str(tmp_path / "missing")) is None
