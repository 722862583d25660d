"""What the running kernel's verifier objects to is shown with its instruction and line of C."""

from __future__ import annotations

import errno
import re

import pytest

from harness.objects import compile_object
from kerneltrace_core.bpf.object import BpfObject
from kerneltrace_core.errors import LoadError
from kerneltrace_core.session.load_refusals import blamed_program, explain_load

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize(
    ("program", "code", "verdict", "instruction", "line_of_c"),
    [
        ("null_pointer", errno.EACCES, r"R\d invalid mem access 'map_value_or_null'",
         r"\d+: \(79\) r\d = \*\(u64 \*\)\(r\d \+0\)", "*count += 1;"),
        ("out_of_bounds", errno.EACCES, r"invalid access to map value, value_size=8 off=24 size=8",
         r"\d+: \(7b\) \*\(u64 \*\)\(r\d \+24\) = r\d", "count[3] = 1;"),
        ("unknown_helper", errno.EINVAL, r"invalid func unknown#65535",
         r"\d+: \(85\) call unknown#65535", "return helper();"),
    ],
)  # fmt: skip
def test_a_rejected_program_says_where_and_why(
    program: str, code: int, verdict: str, instruction: str, line_of_c: str
) -> None:
    data = compile_object("rejected").read_bytes()
    with BpfObject(data, "rejected") as opened:
        opened.select({program})
        with pytest.raises(LoadError) as caught:
            opened.load()
        error = explain_load(opened, caught.value)

    assert isinstance(error, LoadError)
    assert blamed_program(error) == program
    assert error.errno == code
    first, left_out, *lines = str(error).splitlines()
    assert first.startswith(
        f'load program {program} (SEC("raw_tp/sys_enter")) of object rejected: '
    )
    assert re.fullmatch(r"  \(\d+ other log lines left out; all are in .log\)", left_out)
    assert any(re.match(f"  {verdict}", line) for line in lines)
    assert any(re.fullmatch(f"  {instruction}", line) for line in lines)
    assert any(line.startswith(f"  ; {line_of_c}") for line in lines)
    assert len(lines) <= 8
    # Registers are how the verifier thinks; they are in .log alone.
    assert not any("R10=fp" in line for line in lines)


def test_a_missing_license_is_named_with_the_line_that_gives_it() -> None:
    data = compile_object("unlicensed").read_bytes()
    with BpfObject(data, "unlicensed") as opened:
        with pytest.raises(LoadError) as caught:
            opened.load()
        error = explain_load(opened, caught.value)

    first = str(error).splitlines()[0]
    assert first.endswith('(say what it may call: char LICENSE[] SEC("license") = "Dual MIT/GPL")')
