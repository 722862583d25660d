from __future__ import annotations

import contextlib
import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerneltrace_core.kernel.config import parse_config, read_config
from kerneltrace_core.kernel.limits import format_bytes, memlock_raised, read_memlock
from kerneltrace_core.kernel.lockdown import (
    Lockdown,
    parse_command_line,
    parse_lockdown,
    read_lockdown,
)
from kerneltrace_core.kernel.seccomp import Seccomp, parse_seccomp, read_seccomp
from kerneltrace_core.kernel.support import Support, Verdict, worst

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).parent / "golden"
MISSING = "/nonexistent/file"


def lines(name: str) -> list[str]:
    return (GOLDEN / name).read_text().splitlines()


# --- the kernel's options


def test_options_are_yes_no_and_strings() -> None:
    options = parse_config(lines("config-6.1-debian.txt"))
    assert options["CONFIG_DEBUG_INFO_BTF"] == "y"
    assert options["CONFIG_BPF_PRELOAD"] == "n"
    assert options["CONFIG_LSM"].startswith("landlock,lockdown,")
    assert parse_config(lines("config-no-btf.txt"))["CONFIG_DEBUG_INFO_BTF"] == "n"


def test_options_come_from_proc_else_from_boot_else_nobody_knows(tmp_path: Path) -> None:
    packed = tmp_path / "config.gz"
    packed.write_bytes(gzip.compress(b"CONFIG_BPF=y\n"))
    (tmp_path / "config-9.9").write_text("CONFIG_BPF=m\n")
    boot = str(tmp_path)
    assert read_config("9.9", proc=str(packed), boot=boot) == {"CONFIG_BPF": "y"}
    assert read_config("9.9", proc=MISSING, boot=boot) == {"CONFIG_BPF": "m"}
    assert read_config("9.8", proc=MISSING, boot=boot) is None


@pytest.mark.parametrize("damage", [b"no gzip at all", gzip.compress(b"CONFIG_BPF=y\n" * 99)[:-12]])
def test_damaged_options_are_could_not_tell(tmp_path: Path, damage: bytes) -> None:
    packed = tmp_path / "config.gz"
    packed.write_bytes(damage)
    assert read_config("9.9", proc=str(packed), boot=MISSING) is None


@given(
    st.dictionaries(
        st.from_regex(r"CONFIG_[A-Z0-9_]{1,20}", fullmatch=True),
        st.from_regex(r"[ymn]|[0-9]{1,6}|0x[0-9a-f]{1,8}", fullmatch=True),
    )
)
def test_printed_options_are_read_back(options: dict[str, str]) -> None:
    printed = [
        f"# {name} is not set" if value == "n" else f"{name}={value}"
        for name, value in options.items()
    ]
    assert parse_config(printed) == options


@given(st.lists(st.text(max_size=60)))
def test_any_options_parse(text: list[str]) -> None:
    assert all(name.startswith("CONFIG_") for name in parse_config(text))


# --- lockdown


def test_the_mode_in_brackets_is_the_one_in_force() -> None:
    assert parse_lockdown((GOLDEN / "lockdown-6.18.txt").read_text()) == "integrity"
    assert parse_lockdown("[none] integrity confidentiality\n") == "none"


@pytest.mark.parametrize("text", ["", "none integrity", "[other] none", "[]"])
def test_no_known_mode_in_brackets_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="parse lockdown"):
        parse_lockdown(text)


def test_the_last_lockdown_on_the_command_line_counts() -> None:
    assert parse_command_line(*lines("cmdline-confidentiality.txt")) == "confidentiality"
    assert parse_command_line("lockdown=integrity lockdown=confidentiality") == "confidentiality"
    assert parse_command_line("quiet lockdown= lockdown xlockdown=integrity") is None


def test_securityfs_is_the_first_source() -> None:
    path = str(GOLDEN / "lockdown-6.18.txt")
    assert read_lockdown(securityfs=path) == Lockdown("integrity", path)


def test_without_securityfs_options_and_command_line_may_tell() -> None:
    forced = parse_config(lines("config-6.18.txt"))
    absent = parse_config(lines("config-no-btf.txt"))
    asked = str(GOLDEN / "cmdline-confidentiality.txt")

    def mode(config: dict[str, str] | None, command_line: str = MISSING) -> str | None:
        return read_lockdown(config, securityfs=MISSING, command_line=command_line).mode

    assert mode(forced) == "integrity"
    assert mode(absent) == "none"
    assert mode(None, asked) == "confidentiality"


def test_silence_about_lockdown_is_not_none_because_secure_boot_is_silent_too() -> None:
    debian = parse_config(lines("config-6.1-debian.txt"))
    assert read_lockdown(debian, securityfs=MISSING, command_line=MISSING).mode is None
    assert read_lockdown(None, securityfs=MISSING, command_line=MISSING).mode is None


@given(st.text(max_size=80))
def test_any_lockdown_text_parses_or_raises_value_error(text: str) -> None:
    parse_command_line(text)
    with contextlib.suppress(ValueError):
        assert f"[{parse_lockdown(text)}]" in text


# --- seccomp


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("status-6.18-root.txt", Seccomp("none", 0, False)),
        ("status-6.18-no-new-privs.txt", Seccomp("none", 0, True)),
        ("status-docker-default.txt", Seccomp("filter", 1, False)),
        ("status-3.10.txt", Seccomp(None, None, None)),
        ("status-permitted-only.txt", Seccomp("none", None, True)),
        ("status-future.txt", Seccomp(None, None, False)),
    ],
)
def test_seccomp_of_a_status(name: str, expected: Seccomp) -> None:
    assert parse_seccomp(lines(name)) == expected


def test_an_unreadable_status_tells_nothing_about_seccomp() -> None:
    assert read_seccomp(MISSING) == Seccomp()


@given(st.lists(st.text(max_size=40)))
def test_any_status_gives_a_seccomp(text: list[str]) -> None:
    parse_seccomp(text)


# --- limits


def test_bytes_are_printed_for_people() -> None:
    printed = [format_bytes(count) for count in (None, 0, 65536, 2785280, 8388608, 1 << 60)]
    assert printed == ["unlimited", "0 B", "64 KiB", "2.7 MiB", "8 MiB", "1048576 TiB"]


def test_a_raised_memlock_is_put_back_also_after_an_error() -> None:
    before = read_memlock()
    with pytest.raises(KeyError), memlock_raised():
        raise KeyError
    assert read_memlock() == before


# --- yes, no, could not tell

YES, NO, UNKNOWN = Support.yes("y"), Support.no("n", "do this", 22), Support.unknown("u")


def test_support_is_not_a_bool() -> None:
    with pytest.raises(TypeError, match="three values"):
        bool(YES)
    assert [answer.works for answer in (YES, NO, UNKNOWN)] == [True, False, False]


def test_a_no_decides_even_beside_an_unknown() -> None:
    assert worst([YES, UNKNOWN, NO]) is NO
    assert worst([YES, UNKNOWN]) is UNKNOWN
    assert worst([YES, YES]).verdict is Verdict.YES
    assert worst([]).works


@given(st.lists(st.sampled_from([YES, NO, UNKNOWN])), st.randoms(use_true_random=False))
def test_the_worst_does_not_depend_on_the_order(answers: list[Support], random: object) -> None:
    shuffled = sorted(answers, key=lambda _: random.random())  # type: ignore[attr-defined]
    assert worst(answers).verdict is worst(shuffled).verdict
