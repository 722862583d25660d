"""The kernel side opens whole or not at all, says why, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from harness.leaks import parse_program_ids, program_ids
from harness.pace import rounds, stretched
from kerneltrace_core._native import attach, lib
from kerneltrace_core._native.held import LibbpfLink
from kerneltrace_core.bpf.object import BpfObject, builtin_object
from kerneltrace_core.errors import AttachError, ClosedError, KernelTraceError, LoadError
from kerneltrace_core.kernel.btf import preempts_programs
from kerneltrace_core.requests import KernelStats, layout
from kerneltrace_core.requests.kernel_side import KernelSide
from kerneltrace_core.requests.plan import EVERY_TRACEPOINT, plan_programs
from traced import NS_PER_MS, calls_of, on_loop, run_python, tracing

pytestmark = pytest.mark.kernel
NEEDS_REQUESTS = pytest.mark.needs("thread_registration", "task_storage")

OPENINGS = rounds(20, in_guest=3)
GROUPS = ("sched", "syscalls", "block", "net")
CALL_CLOCK = b"\x85\x00\x00\x00\x05\x00\x00\x00"  # call bpf_ktime_get_ns
CALL_NOTHING = b"\x85\x00\x00\x00\xff\xff\x00\x00"
SELF = Path("/proc/self")


def descriptors() -> int:
    return len(list((SELF / "fd").iterdir()))


def held() -> set[int]:
    """Return the ids of the programs that this process holds."""
    ids: set[int] = set()
    for entry in (SELF / "fdinfo").iterdir():
        with suppress(FileNotFoundError):  # the listing's own descriptor
            ids |= parse_program_ids(entry.read_text().splitlines())
    return ids


def wait_until_gone(programs: set[int]) -> None:
    """Wait for programs to be freed: the kernel does so after a grace period."""
    deadline = time.monotonic() + 10
    while (left := programs & (program_ids() or set())) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left


@contextmanager
def nothing_left() -> Iterator[None]:
    """Check that the block leaves no descriptor and no program of this process behind."""
    before, programs = descriptors(), held()
    yield
    assert descriptors() == before
    assert held() == programs


@contextmanager
def spare_descriptors(count: int) -> Iterator[None]:
    """Allow this process so many descriptors more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The folder's own descriptor is listed among them.
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() - 1 + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def no_descriptor() -> Iterator[None]:
    """Allow this process not one more, whichever of those that it had are closed by now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@NEEDS_REQUESTS
def test_opening_and_closing_again_and_again_leaves_no_program_and_no_descriptor() -> None:
    loaded: set[int] = set()

    with nothing_left():
        for _ in range(OPENINGS):
            side = KernelSide.open(GROUPS)
            loaded |= held()
            side.close()

    assert len(loaded) >= 20
    wait_until_gone(loaded)


@NEEDS_REQUESTS
def test_starting_and_stopping_again_and_again_leaves_no_descriptor() -> None:
    with tracing() as tracer:  # what is made once and kept: an event loop's own, for one
        on_loop(tracer, os.getppid)

    with nothing_left():
        for _ in range(OPENINGS):
            with tracing() as tracer:
                stats = on_loop(tracer, os.getppid)
            assert calls_of(stats)["getppid"] == 1


@NEEDS_REQUESTS
@pytest.mark.parametrize("timed", [True, False])
def test_the_calls_that_register_a_thread_are_not_counted(timed: bool) -> None:
    with closing(KernelSide.open(GROUPS, timed=timed)) as side:
        for _ in range(3):
            side.register(1)
        os.getppid()
        side.leave()
        words = side.memory.cast("Q")
        first = layout.SLOTS_OFFSET // 8 + layout.CALL
        calls = words[first : first + layout.CALLS * layout.CALL_WORDS : layout.CALL_WORDS].tolist()
        words.release()

    made = {layout.CALL_NAMES[index]: count for index, count in enumerate(calls) if count}
    assert made == {"getppid": 1}


@NEEDS_REQUESTS
def test_closing_twice_is_closing_once() -> None:
    side = KernelSide.open(("sched",))

    side.close()
    with nothing_left():
        side.close()


def test_a_closed_object_says_so() -> None:
    programs = BpfObject(builtin_object("requests"), "requests")
    programs.close()

    with pytest.raises(ClosedError, match="it is closed"):
        programs.load()


# ---- what cannot be loaded --------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"not an object at all", b"\x7fELF" + bytes(200)])
@pytest.mark.any_kernel
def test_what_is_no_object_is_refused_in_words(data: bytes) -> None:
    with nothing_left(), pytest.raises(LoadError, match="open BPF object wreck: ") as caught:
        BpfObject(data, "wreck")

    assert "Unknown error" not in str(caught.value)


@pytest.mark.any_kernel
def test_half_an_object_is_refused_with_what_libbpf_says() -> None:
    data = builtin_object("requests")

    with nothing_left(), pytest.raises(LoadError) as caught:
        BpfObject(data[: len(data) // 2], "half")

    assert "libbpf: " in str(caught.value)


@NEEDS_REQUESTS
def test_a_program_that_the_verifier_rejects_comes_with_the_verifiers_last_words() -> None:
    data = builtin_object("requests").replace(CALL_CLOCK, CALL_NOTHING)

    with (
        nothing_left(),
        BpfObject(data, "wrong") as programs,
        pytest.raises(LoadError) as caught,
    ):
        programs.load()

    told = str(caught.value)
    assert "load BPF object wrong: Invalid argument (EINVAL)" in told
    assert "invalid func unknown#65535" in told
    assert "other log lines left out; all are in .log" in told
    assert len(told.splitlines()) <= 8
    assert len(caught.value.log) > 20


def test_a_missing_btf_is_named() -> None:
    with nothing_left(), pytest.raises(LoadError, match="read BTF /nowhere/vmlinux: No such file"):
        KernelSide.open(GROUPS, btf_path="/nowhere/vmlinux")


def test_a_file_that_is_no_btf_is_named(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_text("this is no BTF")

    with nothing_left(), pytest.raises(LoadError, match=f"read BTF {path}: not a BPF ELF object"):
        KernelSide.open(GROUPS, btf_path=str(path))


@pytest.mark.any_kernel
def test_a_program_that_the_object_has_not_is_named() -> None:
    with (
        nothing_left(),
        BpfObject(builtin_object("requests"), "requests") as programs,
        pytest.raises(LoadError, match="no program kt_nothing"),
    ):
        programs.select({"kt_nothing"})


@pytest.mark.any_kernel
def test_an_object_that_does_not_ship_is_named() -> None:
    with pytest.raises(LoadError, match=r"nothing.*reinstall kerneltrace"):
        builtin_object("nothing")


# ---- what runs out on the way --------------------------------------------------------------------


@NEEDS_REQUESTS
@pytest.mark.any_kernel
def test_wherever_the_descriptors_run_out_it_is_said_and_all_is_undone() -> None:
    failures: list[KernelTraceError] = []

    for count in range(100):
        with nothing_left():
            try:
                with spare_descriptors(count):
                    side = KernelSide.open(GROUPS)
            except KernelTraceError as error:
                failures.append(error)
            else:
                side.close()
                break
    else:
        pytest.fail("100 descriptors are not enough")

    assert len(failures) > 20
    assert {error.errno for error in failures} == {errno.EMFILE}  # type: ignore[attr-defined]
    assert all("Too many open files" in str(error) for error in failures)
    # On the way it went through every stage.
    assert {type(error) for error in failures} == {LoadError, AttachError}


FIRST_LOADS = """
import errno, os, resource
from kerneltrace_core.errors import LoadError
from kerneltrace_core.requests.programs import LoadedPrograms

limits = resource.getrlimit(resource.RLIMIT_NOFILE)
used = len(os.listdir("/proc/self/fd")) - 1
for spare in range(100):
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + spare, limits[1]))
    try:
        LoadedPrograms.load(("sched", "syscalls"), timed=True).close()
    except LoadError as error:
        assert error.errno == errno.EMFILE, error
        continue
    print(spare > 8)
    break
"""


@NEEDS_REQUESTS
@pytest.mark.any_kernel
def test_a_first_load_that_lacks_descriptors_spoils_no_later_one() -> None:
    assert run_python(FIRST_LOADS) == "True\n"


def test_the_kernels_types_that_cannot_be_opened_are_not_called_missing() -> None:
    lib.free_btf(lib.load_btf())

    with no_descriptor(), pytest.raises(LoadError, match="Too many open files") as caught:
        lib.load_btf()

    assert caught.value.errno == errno.EMFILE
    lib.free_btf(lib.load_btf())


@NEEDS_REQUESTS
def test_a_hook_that_refuses_leaves_no_program_attached(monkeypatch: pytest.MonkeyPatch) -> None:
    attach_by_section = attach.attach_by_section
    steps: list[set[int]] = []

    def fourth_refuses(program: lib.Program, act: str) -> LibbpfLink:
        steps.append(held())
        if len(steps) == 4:
            raise AttachError(f"{act}: no", errno=errno.ENOENT)
        return attach_by_section(program, act)

    monkeypatch.setattr(attach, "attach_by_section", fourth_refuses)

    plan = plan_programs(GROUPS, True, EVERY_TRACEPOINT, preempts_programs())
    with nothing_left(), pytest.raises(AttachError, match=f"{plan.programs[3]}: no"):
        KernelSide.open(GROUPS)

    assert len(steps) == 4
    wait_until_gone(steps[-1])


@pytest.mark.any_kernel
def test_a_compiled_part_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "ABI", lib.ABI + 1)

    with nothing_left(), pytest.raises(KernelTraceError, match="rebuild or reinstall kerneltrace"):
        KernelSide.open(GROUPS)


# ---- stopping under way --------------------------------------------------------------------------


@NEEDS_REQUESTS
def test_a_request_that_is_open_when_tracing_stops_keeps_what_it_counted() -> None:
    async def main() -> KernelStats:
        with tracing() as tracer:
            stats: KernelStats = tracer.open()
            assert stats.record is not None

            async def handler() -> None:
                for _ in range(7):
                    os.getppid()
                time.sleep(stretched(0.005))
                tracer.stop()
                os.getppid()  # nobody counts this
                await asyncio.sleep(0.001)

            await stats.record.step(handler())
            tracer.finish(stats)
            return stats

    stats = asyncio.run(main())

    assert calls_of(stats)["getppid"] == 7
    assert stats.blocked_by is not None
    assert stats.blocked_by["sleep"] >= 5 * NS_PER_MS
    assert stats.wall_ns is not None
    assert stats.wall_ns >= 6 * NS_PER_MS


@NEEDS_REQUESTS
def test_a_request_opened_before_a_restart_does_not_disturb_the_ones_after() -> None:
    async def main() -> tuple[KernelStats, KernelStats]:
        with tracing() as first:
            old: KernelStats = first.open()
        with tracing() as second:
            new: KernelStats = second.open()
            assert old.record is not None
            assert new.record is not None

            async def five() -> None:
                for _ in range(5):
                    os.getppid()
                await asyncio.sleep(0)

            await asyncio.gather(old.record.step(five()), new.record.step(five()))
            first.finish(old)
            second.finish(new)
        return old, new

    old, new = asyncio.run(main())

    assert calls_of(old).get("getppid", 0) == 0
    assert calls_of(new)["getppid"] == 5


@NEEDS_REQUESTS
def test_stopping_gives_the_machine_its_system_calls_back() -> None:
    with tracing():
        loaded = held()
    assert len(loaded) > 10
    wait_until_gone(loaded)
