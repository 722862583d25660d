"""Lines of the trace log are read as kernels of all ages write them; nothing else is."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerneltrace_core.errors import (
    ClosedError,
    OptionError,
    PrivilegeError,
    RingError,
    UnsupportedError,
)
from kerneltrace_core.session import tracelog
from kerneltrace_core.session.traceline import TraceLine, parse_line, parse_lost
from kerneltrace_core.session.tracelog import TraceLog, trace_log

# As recorded.
NOW = "          python-8222    [001] ....1 14831.082849: bpf_trace_printk: kerneltrace 77: line 0"
LINE = TraceLine("python", 8222, 1, 14_831_082_849_000, "kerneltrace 77: line 0")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (NOW, LINE),
        (NOW + "\n", LINE),
        # 5.10: four letters; before 5.9 an address for the writer, or nothing
        (
            "          python-127     [000] d..1     9.511617: bpf_trace_printk: a: b",
            TraceLine("python", 127, 0, 9_511_617_000, "a: b"),
        ),
        (
            "            cat-1000  [012] d... 12345.000001: 0x00000001: old",
            TraceLine("cat", 1000, 12, 12_345_000_001_000, "old"),
        ),
        ("  cat-1 [000] .... 1.000000: 0: zero", TraceLine("cat", 1, 0, 1_000_000_000, "zero")),
        ("  cat-1 [000] .... 1.000000: : none", TraceLine("cat", 1, 0, 1_000_000_000, "none")),
        # tasks with everything in their names, unknown ones, process numbers, no flags
        (
            "  a [0] b-c-7   [000] .N.1. 1.500000: bpf_trace_printk: x",
            TraceLine("a [0] b-c", 7, 0, 1_500_000_000, "x"),
        ),
        (
            "           <...>-99      [003] dNZff 1.000000: bpf_trace_printk: ",
            TraceLine("<...>", 99, 3, 1_000_000_000, ""),
        ),
        (
            "  sh-12 (  10) [003] d..31 1.000000: bpf_trace_printk: y",
            TraceLine("sh", 12, 3, 1_000_000_000, "y"),
        ),
        (
            "  sh-12 (-----) [003] 1.000000: bpf_trace_printk: y",
            TraceLine("sh", 12, 3, 1_000_000_000, "y"),
        ),
        # a clock that counts and tells no time
        ("  sh-1 [003] ..... 17: bpf_trace_printk: z", TraceLine("sh", 1, 3, None, "z")),
    ],
)
def test_a_line_of_a_program_is_parsed(line: str, expected: TraceLine) -> None:
    assert parse_line(line) == expected


@pytest.mark.parametrize(
    "line",
    [
        "",
        "CPU:0 [LOST 12 EVENTS]",
        "  sh-1 [003] ..... 1.000000: sched_switch: prev_comm=sh",
        "  sh-1 [003] ..... 1.000000: tracing_mark_write: by somebody",
        "the rest of a text with a line break",
    ],
)
def test_other_lines_are_of_no_program(line: str) -> None:
    assert parse_line(line) is None


def test_what_was_overwritten_is_counted() -> None:
    assert parse_lost("CPU:3 [LOST 1234 EVENTS]\n") == 1234
    assert parse_lost("CPU:3 [LOST EVENTS]") == 0
    assert parse_lost(NOW) == 0


@given(st.text())
def test_any_text_is_parsed_or_not(text: str) -> None:
    assert parse_line(text) is None or isinstance(parse_line(text), TraceLine)


@given(
    task=st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=15),
    pid=st.integers(0, 2**22),
    cpu=st.integers(0, 4095),
    micros=st.integers(0, 10**15),
    text=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"])),
)
def test_what_the_kernel_writes_is_what_is_read(
    task: str, pid: int, cpu: int, micros: int, text: str
) -> None:
    written = (
        f"{task:>16}-{pid:<7} [{cpu:03}] d..31 {micros // 10**6:5}.{micros % 10**6:06}: "
        f"bpf_trace_printk: {text}"
    )

    assert parse_line(written) == TraceLine(task, pid, cpu, micros * 1000, text)


# ---- the stream ---------------------------------------------------------------------

needs_descriptors = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the trace log is Linux's"
)


@pytest.fixture
def tracefs(tmp_path: Path) -> Path:
    """Return a folder that looks like tracefs, whose trace_pipe is a FIFO."""
    (tmp_path / "events").mkdir()
    os.mkfifo(tmp_path / "trace_pipe")
    return tmp_path


@pytest.fixture
def kernel(tracefs: Path) -> Iterator[int]:
    """Return the descriptor to which the kernel's part is written."""
    writing = os.open(tracefs / "trace_pipe", os.O_RDWR)
    yield writing
    os.close(writing)


@needs_descriptors
def test_lines_come_in_order_and_it_ends_when_none_came_for_so_long(
    tracefs: Path, kernel: int
) -> None:
    other = "CPU:1 [LOST 5 EVENTS]\nrubbish\n"
    os.write(kernel, f"{NOW}\n{other}{NOW[:40]}".encode())

    with trace_log(timeout=0, places=(str(tracefs),)) as log:
        first = list(log)
        os.write(kernel, f"{NOW[40:]}!\n".encode())
        second = list(log)

        assert first == [LINE]
        assert [line.text for line in second] == [LINE.text + "!"]
        assert (log.lost, log.others) == (5, 1)


@needs_descriptors
def test_a_waiting_reader_is_woken_by_a_line_and_by_close(tracefs: Path, kernel: int) -> None:
    found: list[TraceLine] = []
    log = trace_log(places=(str(tracefs),))
    came = threading.Event()

    def read() -> None:
        for line in log:
            found.append(line)
            came.set()

    reader = threading.Thread(target=read)
    reader.start()
    os.write(kernel, f"{NOW}\n".encode())
    assert came.wait(20)
    log.close()
    reader.join(20)

    assert not reader.is_alive()
    assert found == [LINE]
    assert log.closed


@needs_descriptors
def test_an_event_loop_goes_on_while_it_waits_for_lines(tracefs: Path, kernel: int) -> None:
    async def write_later() -> None:
        await asyncio.sleep(0.01)
        os.write(kernel, f"{NOW}\n".encode())

    async def main() -> list[TraceLine]:
        async with trace_log(timeout=5, places=(str(tracefs),)) as log:
            writing = asyncio.ensure_future(write_later())
            async for line in log:
                await writing
                return [line]
        return []

    assert asyncio.run(main()) == [LINE]


@needs_descriptors
def test_it_cannot_be_read_once_it_is_closed(tracefs: Path, kernel: int) -> None:
    log = trace_log(timeout=0, places=(str(tracefs),))
    log.close()
    log.close()

    with pytest.raises(ClosedError, match="read trace log: it is closed"):
        iter(log)


@needs_descriptors
def test_a_log_that_is_dropped_gives_its_descriptors_back(tracefs: Path, kernel: int) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))

    log = TraceLog(tracefs / "trace_pipe", 0)
    held = len(list(Path("/proc/self/fd").iterdir()))
    del log

    assert held > before
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@needs_descriptors
def test_a_switched_off_trace_is_waited_for(tracefs: Path) -> None:
    # Nobody writes to the FIFO: it is at its end, as a pipe of a trace that is off.
    with trace_log(timeout=0.05, places=(str(tracefs),)) as log:
        begun = time.monotonic()

        assert list(log) == []
        assert time.monotonic() - begun >= 0.05


@needs_descriptors
@pytest.mark.parametrize("left", [0, 1, 2])
def test_where_no_descriptor_is_left_it_says_so_and_keeps_none(
    tracefs: Path, kernel: int, left: int
) -> None:
    import resource  # of Linux

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + left, hard))
    try:
        with pytest.raises(RingError, match=r"Too many open files \(.*ulimit -n") as refused:
            trace_log(places=(str(tracefs),))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    again = os.dup(0)
    os.close(again)

    assert (refused.value.errno, again) == (errno.EMFILE, free)


def test_where_tracefs_is_not_mounted_the_command_is_told(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as caught:
        trace_log(places=(str(tmp_path / "none"),))

    assert str(caught.value) == (
        "read trace log: tracefs is not mounted (mount -t tracefs tracefs /sys/kernel/tracing)"
    )


def test_where_it_may_not_be_read_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(places: tuple[str, ...]) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tracelog, "find_tracefs", closed)

    with pytest.raises(PrivilegeError) as caught:
        trace_log()

    assert caught.value.errno == 13
    assert str(caught.value) == (
        "read trace log: permission denied reading tracefs (run as root, or let a group in: "
        "mount -o remount,gid=GROUP,mode=0750 /sys/kernel/tracing)"
    )


@pytest.mark.parametrize("timeout", [-1, "1", True, float("nan")])
def test_a_timeout_is_seconds(timeout: float) -> None:
    with pytest.raises(OptionError, match=r"trace_log option timeout: .* is not None or seconds"):
        trace_log(timeout=timeout)


@needs_descriptors
def test_a_signal_handler_closes_it_in_the_midst_of_a_read(
    tracefs: Path, kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = os.read
    os.write(kernel, NOW.encode())
    log = TraceLog(tracefs / "trace_pipe")

    def closed_before(*_: int) -> bytes:
        log.close()
        return read(log._fd, 1)

    monkeypatch.setattr(os, "read", closed_before)

    assert list(log) == []
