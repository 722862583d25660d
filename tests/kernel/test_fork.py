"""Children: nothing of theirs is charged to the parent's requests, and they can trace their own."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import pytest

from harness.tiers import Require
from traced import run_python

pytestmark = [pytest.mark.kernel, pytest.mark.needs("thread_registration", "task_storage")]

# Every script prints one JSON object at its end. A child that fails exits with a traceback and 1.
BEGIN = """
import asyncio, contextlib, json, os, signal, subprocess, sys, threading, time, traceback
import resource, warnings
from kerneltrace_core.requests import KernelStats, RequestTracer, TracerOptions
from kerneltrace_core.requests import engine
from traced import calls_of, in_thread, on_loop, serve

# From Python 3.12 on os.fork() reads /proc/self/stat, and warns of threads.
warnings.simplefilter("ignore", DeprecationWarning)

def start(backend="bpf"):
    tracer = RequestTracer.shared(TracerOptions(backend=backend, required=True))
    tracer.start()
    return tracer

def call(times):
    for _ in range(times):
        os.getppid()

def count(stats):
    return calls_of(stats).get("getppid", 0)

@contextlib.contextmanager
def as_child():
    try:
        yield
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

def wait(child):
    status = os.waitpid(child, 0)[1]
    assert status == 0, status

def tell(**found):
    print(json.dumps(found))
"""


def run(script: str) -> dict[str, Any]:
    """Run a script in a process of its own; return what it tells."""
    printed = run_python(BEGIN + textwrap.dedent(script))
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    "doing", [pytest.param("on_loop", marks=pytest.mark.any_kernel), "in_thread"]
)
def test_a_childs_work_is_nobodys_and_the_parent_stays_exact(doing: str) -> None:
    found = run(
        f"""
        tracer = start()

        def work():
            call(7)
            child = os.fork()
            if not child:
                with as_child():
                    assert not tracer.ready and tracer.backend == "off"
                    call(500)
                    threads = [threading.Thread(target=call, args=(500,)) for _ in range(3)]
                    [thread.start() for thread in threads]
                    [thread.join() for thread in threads]
            wait(child)
            call(6)

        stats = {doing}(tracer, work)
        after = on_loop(tracer, lambda: call(11))  # the child's end detached nothing
        tell(
            mine=count(stats), forks=stats.forks, execs=stats.execs, after=count(after),
            nobodys=count(tracer.unattributed()), late=count(tracer.late()),
        )
        """
    )

    assert found == {"mine": 13, "forks": 1, "execs": 0, "after": 11, "nobodys": 0, "late": 0}


def test_a_child_that_goes_on_running_the_request_disturbs_no_cell_of_its_parents() -> None:
    found = run(
        """
        tracer = start()
        reader, writer = os.pipe()

        async def handler():
            call(3)
            await asyncio.sleep(0)
            call(4)
            await asyncio.sleep(0)
            call(5)

        stats = tracer.open()
        record = stats.record
        step = record.step(handler())
        step.send(None)
        cell_between = engine.read_cell()
        previous = engine.push(record)
        cell = engine.read_cell()

        child = os.fork()
        if not child:
            with as_child():
                # Resumes the parent's request in all ways there are, and ends it.
                for _ in range(2):
                    try:
                        step.send(None)
                    except StopIteration:
                        break
                engine.pop(engine.push(None))
                thread = threading.Thread(target=lambda: engine.pop(engine.push(record)))
                thread.start()
                thread.join()
                call(1000)
                tracer.finish(stats)
                engine.pop(None)
                assert stats.wall_ns > 0
        wait(child)
        undisturbed = engine.read_cell() == cell
        engine.pop(previous)
        for _ in range(2):
            try:
                step.send(None)
            except StopIteration:
                pass
        value = record.value
        tracer.finish(stats)
        tell(
            mine=count(stats), undisturbed=undisturbed, published=cell == value,
            cell_between=cell_between, late=count(tracer.late()),
            nobodys=count(tracer.unattributed()), attribution=stats.attribution,
        )
        """
    )

    assert found["mine"] == 12
    assert found["undisturbed"]
    assert found["published"]
    assert found["cell_between"] == 0
    assert (found["late"], found["nobodys"]) == (0, 0)
    assert found["attribution"] == "exact"


@pytest.mark.parametrize("backend", ["bpf", pytest.param("procfs", marks=pytest.mark.any_kernel)])
def test_a_child_that_starts_its_own_tracer_is_exact_and_so_is_its_parent(backend: str) -> None:
    found = run(
        f"""
        tracer = start({backend!r})
        null = os.open("/dev/null", os.O_WRONLY)
        warm = on_loop(tracer, lambda: os.write(null, bytes(1)))
        reader, writer = os.pipe()

        def work():
            os.write(null, bytes(100))
            child = os.fork()
            if not child:
                with as_child():
                    own = start({backend!r})
                    assert own.ready and own.backend == {backend!r}
                    mine = [on_loop(own, lambda: os.write(null, bytes(1000 + i))) for i in range(5)]
                    mine.append(in_thread(own, lambda: os.write(null, bytes(40000))))
                    told = [stats.write_bytes for stats in mine]
                    os.write(writer, json.dumps(told).encode())
                    own.stop()
            wait(child)
            os.write(null, bytes(200))

        stats = on_loop(tracer, work)
        after = on_loop(tracer, lambda: os.write(null, bytes(77)))
        tell(
            child=json.loads(os.read(reader, 1000)), mine=stats.write_bytes, after=after.write_bytes
        )
        """
    )

    assert found["child"] == [1000, 1001, 1002, 1003, 1004, 40_000]
    assert found["mine"] == 300
    assert found["after"] == 77


def test_many_children_one_after_the_other_and_at_once_leave_the_parent_exact() -> None:
    found = run(
        """
        tracer = start()
        counts = []

        def work(number):
            children = []
            for _ in range(3):
                child = os.fork()
                if not child:
                    with as_child():
                        call(50)
                children.append(child)
            call(number)
            for child in children:
                wait(child)

        for number in range(1, 6):
            stats = on_loop(tracer, lambda: work(number))
            counts.append([count(stats), stats.forks])
        tell(counts=counts, threads=tracer.health()["threads_refused"])
        """
    )

    assert found["counts"] == [[number, 3] for number in range(1, 6)]
    assert found["threads"] == 0


@pytest.mark.parametrize(
    "options",
    [
        "",
        pytest.param("preexec_fn=lambda: call(30)", marks=pytest.mark.any_kernel),
        pytest.param("start_new_session=True", marks=pytest.mark.any_kernel),
        pytest.param("close_fds=False", marks=pytest.mark.any_kernel),
    ],
)
def test_a_program_that_is_run_is_one_fork_and_one_exec_and_nothing_else(options: str) -> None:
    found = run(
        f"""
        tracer = start()

        def work():
            call(5)
            # It sleeps, so that it is waited for also where this thread got its CPU late.
            script = "import os, time; [os.getppid() for _ in range(400)]; time.sleep(0.05)"
            subprocess.run([sys.executable, "-S", "-c", script], check=True, {options})
            call(4)

        stats = on_loop(tracer, work)
        after = on_loop(tracer, lambda: call(3))
        tell(
            mine=count(stats), forks=stats.forks, execs=stats.execs, after=count(after),
            late=count(tracer.late()), child_ns=stats.blocked_by["child"],
        )
        """
    )

    assert found.pop("child_ns") > 1_000_000
    assert found == {"mine": 9, "forks": 1, "execs": 1, "after": 3, "late": 0}


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.any_kernel
def test_a_worker_of_multiprocessing_traces_its_own(method: str) -> None:
    found = run(
        f"""
        import multiprocessing
        from traced import count_in_worker

        tracer = start()
        told = []

        def work():
            call(5)
            with multiprocessing.get_context({method!r}).Pool(1) as pool:
                told.extend(pool.map(count_in_worker, [10, 20, 30], chunksize=1))
                pool.close()
                pool.join()
            call(5)

        stats = on_loop(tracer, work)
        tell(child=told, mine=count(stats), after=count(on_loop(tracer, lambda: call(3))))
        """
    )

    assert found == {"child": [10, 20, 30], "mine": 10, "after": 3}


def test_a_traced_process_that_becomes_another_program_is_traced_no_more(
    require: Require,
) -> None:
    require("capability:cap_sys_admin")  # to list programs by id

    found = run(
        """
        from harness.leaks import parse_program_ids
        tracer = start()
        stats = on_loop(tracer, lambda: call(1))

        def held():
            ids = set()
            for name in os.listdir("/proc/self/fdinfo"):
                with contextlib.suppress(OSError), open("/proc/self/fdinfo/" + name) as lines:
                    ids |= parse_program_ids(lines)
            return sorted(ids)

        before = held()
        script = '''
        import json, os, sys, time
        from harness.leaks import parse_program_ids, program_ids
        before, held = set(json.loads(sys.argv[1])), set()
        for name in os.listdir("/proc/self/fdinfo"):
            try:
                with open("/proc/self/fdinfo/" + name) as lines:
                    held |= parse_program_ids(lines)
            except OSError:
                pass
        end = time.monotonic() + 10
        while before & program_ids() and time.monotonic() < end:
            time.sleep(0.02)
        left = len(before & program_ids())
        print(json.dumps({"before": len(before), "held": len(held & before), "left": left}))
        '''
        import textwrap
        engine.push(tracer.open().record)  # in the middle of a request
        sys.stdout.flush()
        program = [sys.executable, "-c", textwrap.dedent(script), json.dumps(before)]
        os.execv(sys.executable, program)
        """
    )

    assert found["before"] >= 10
    assert (found["held"], found["left"]) == (0, 0)


@pytest.mark.any_kernel
def test_a_child_gives_up_its_parents_descriptors_and_keeps_no_patch() -> None:
    found = run(
        """
        def descriptors():
            names = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
            return [os.readlink(name) for name in names if os.path.lexists(name)]

        before = len([name for name in descriptors() if "bpf" in name])
        start_method = threading.Thread.start
        tracer = start()
        patched = threading.Thread.start is not start_method
        traced = len([name for name in descriptors() if "bpf" in name])
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            with as_child():
                left = len([name for name in descriptors() if "bpf" in name])
                same = threading.Thread.start is start_method
                os.write(writer, json.dumps([left, same]).encode())
        wait(child)
        left, same = json.loads(os.read(reader, 100))
        tell(before=before, traced=traced, left=left, patched=patched, restored=same)
        """
    )

    assert found["traced"] > 10
    assert found["left"] == found["before"] == 0
    assert found["patched"]
    assert found["restored"]


@pytest.mark.any_kernel
def test_a_fork_while_other_threads_work_for_requests_is_safe_for_all() -> None:
    found = run(
        """
        tracer = start()
        results = []

        async def handler(number):
            def busy():
                for _ in range(number):
                    os.getppid()
                    time.sleep(0.0002)
            await asyncio.to_thread(busy)

        async def forker():
            for _ in range(5):
                child = os.fork()
                if not child:
                    with as_child():
                        call(100)
                        # Locks that other threads held at the fork are not waited for.
                        own = start()
                        assert count(on_loop_again(own)) == 2
                        own.stop()
                await asyncio.to_thread(wait, child)

        def on_loop_again(own):
            stats = own.open()
            step = stats.record.step(twice())
            try:
                step.send(None)
            except StopIteration:
                pass
            own.finish(stats)
            return stats

        async def twice():
            call(2)

        async def main():
            handlers = [serve(tracer, lambda n=n: handler(n)) for n in range(20, 28)]
            *found, forked = await asyncio.gather(*handlers, serve(tracer, forker))
            return found, forked

        found, forked = asyncio.run(main())
        tell(counts=[count(stats) for stats in found], forks=forked.forks, own=count(forked))
        """
    )

    assert found == {"counts": list(range(20, 28)), "forks": 5, "own": 0}
