"""What a refused attachment is made to say: probe, program, errno, what is missing, the fix."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kerneltrace_core.bpf.program import ProgramFacts, type_name
from kerneltrace_core.errors import AttachError, PrivilegeError, UnsupportedError
from kerneltrace_core.kernel.capabilities import CapabilitySets
from kerneltrace_core.kernel.privileges import Privileges
from kerneltrace_core.session import refusals
from kerneltrace_core.session.probes import Kprobe, Tracepoint
from kerneltrace_core.session.refusals import (
    Cause,
    did_you_mean,
    explained,
    missing_option,
    perf_privilege,
    plain_cause,
    privilege,
    refuse,
)

pytestmark = pytest.mark.unit

SPEC = Tracepoint("sched", "sched_switch")
PROGRAM = ProgramFacts("on_switch", "?tp/sched/sched_switch", 5, 0, True)
BOTH = frozenset({"cap_bpf", "cap_perfmon"})


def hold(monkeypatch: pytest.MonkeyPatch, *held: str, paranoid: int | None = 2) -> None:
    sets = CapabilitySets(effective=frozenset(held), permitted=frozenset(held))
    monkeypatch.setattr(refusals, "read_privileges", lambda: Privileges(sets, True))
    monkeypatch.setattr(refusals, "read_paranoid", lambda: paranoid)


def test_an_error_names_probe_program_errno_cause_and_remedy() -> None:
    error = refuse(SPEC, PROGRAM, errno.ENOENT, Cause("it is not there", "look elsewhere"))
    assert str(error) == (
        "attach tracepoint sched:sched_switch to program on_switch "
        '(SEC("?tp/sched/sched_switch")): ENOENT: it is not there (look elsewhere)'
    )
    assert error.errno == errno.ENOENT
    assert type(error) is AttachError


def test_an_errno_is_told_once_and_a_remedy_only_if_there_is_one() -> None:
    told = str(refuse(SPEC, "p", errno.EPERM, Cause("EPERM: a filter is on")))
    assert told.endswith("to program p: EPERM: a filter is on")
    assert str(refuse(SPEC, "p", None, Cause("why"))).endswith("to program p: why")
    assert ": ENOTSUPP: why" in str(refuse(SPEC, "p", 524, Cause("why")))


def test_the_kind_of_the_cause_is_that_of_the_error() -> None:
    assert isinstance(refuse(SPEC, "p", 1, Cause("x", kind=PrivilegeError)), PermissionError)
    assert isinstance(refuse(SPEC, "p", 2, Cause("x", kind=UnsupportedError)), UnsupportedError)


def test_a_system_calls_errno_is_explained_and_stays_the_cause() -> None:
    native = AttachError("create link: File exists (EEXIST)", errno=errno.EEXIST)
    with pytest.raises(AttachError) as caught, explained(SPEC, PROGRAM, plain_cause):
        raise native
    assert str(caught.value).endswith("EEXIST: the program is attached there already")
    assert caught.value.__cause__ is native


def test_errors_that_say_enough_pass_unchanged() -> None:
    with pytest.raises(UnsupportedError, match=r"^enough$"), explained(SPEC, PROGRAM, plain_cause):
        raise UnsupportedError("enough")


def test_a_missing_capability_is_named_with_what_does_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hold(monkeypatch, "cap_bpf")
    cause = privilege(errno.EPERM, ("cap_bpf", "cap_perfmon"), "take a tracepoint")
    assert cause.text == "CAP_PERFMON missing"
    assert cause.remedy == "give it CAP_PERFMON or take a tracepoint"
    assert cause.kind is PrivilegeError


@pytest.mark.parametrize(
    ("paranoid", "wanted", "text", "remedy"),
    [
        (3, "cap_perfmon", "kernel.perf_event_paranoid is 3, so perf events need CAP_SYS_ADMIN",
         "sysctl kernel.perf_event_paranoid=2, or give it CAP_SYS_ADMIN, or other"),
        (3, "cap_sys_admin", "kernel.perf_event_paranoid is 3, so perf events need CAP_SYS_ADMIN",
         "give it CAP_SYS_ADMIN, or other"),
        (2, "cap_sys_admin", "CAP_SYS_ADMIN missing", "give it CAP_SYS_ADMIN or other"),
        (None, "cap_sys_admin", "CAP_SYS_ADMIN missing", "give it CAP_SYS_ADMIN or other"),
    ],
)  # fmt: skip
def test_a_refused_perf_event_is_explained_by_the_sysctl_if_that_is_why(
    monkeypatch: pytest.MonkeyPatch, paranoid: int | None, wanted: str, text: str, remedy: str
) -> None:
    hold(monkeypatch, *BOTH, paranoid=paranoid)
    cause = perf_privilege(errno.EACCES, wanted, "other")
    assert (cause.text, cause.remedy) == (text, remedy)


def test_the_sysctl_is_read_or_could_not_be_told(tmp_path: Path) -> None:
    (tmp_path / "paranoid").write_text("-1\n")
    assert refusals.read_paranoid(str(tmp_path / "paranoid")) == -1
    assert refusals.read_paranoid(str(tmp_path / "none")) is None


def test_a_kernel_option_is_blamed_only_if_it_is_known_to_be_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config: dict[str, str] | None = {"CONFIG_KPROBES": "y", "CONFIG_OTHER": "n"}
    monkeypatch.setattr(refusals, "read_config", lambda: config)
    assert missing_option("CONFIG_KPROBES") is None
    cause = missing_option("CONFIG_KPROBES", "CONFIG_OTHER", "CONFIG_NEW", otherwise="wait")
    assert cause is not None
    assert cause.text == "this kernel was built without CONFIG_OTHER, CONFIG_NEW"
    assert cause.remedy == "use a kernel with CONFIG_OTHER=y, CONFIG_NEW=y, or wait"
    config = None
    assert missing_option("CONFIG_OTHER") is None


def test_what_was_meant_is_asked() -> None:
    assert did_you_mean([]) == ""
    assert did_you_mean(["a"]) == "did you mean a?"
    assert did_you_mean(["a", "b", "c"]) == "did you mean a, b or c?"


def test_what_an_errno_says_by_itself() -> None:
    assert plain_cause(errno.EMFILE).remedy == "raise LimitNOFILE / ulimit -n"
    assert plain_cause(524).text == "the kernel does not support it"
    assert plain_cause(errno.EINVAL).text == "Invalid argument"


def test_facts_of_a_program_part_its_section() -> None:
    assert (PROGRAM.prefix, PROGRAM.section_target) == ("tp", "sched/sched_switch")
    assert (type_name(5), type_name(999)) == ("tracepoint", "type 999")
    assert str(Kprobe("f", label="mine")) == "kprobe f (mine)"
