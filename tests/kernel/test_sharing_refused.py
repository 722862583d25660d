"""Where sharing finds no room, or nobody to ask: one line says so, and nothing waits for it."""

from __future__ import annotations

import pytest

from harness.tiers import Require
from tracer_scripts import HOLDERS, run, run_under

pytestmark = [pytest.mark.kernel, pytest.mark.needs("thread_registration", "task_storage")]


def test_a_full_pool_of_run_degrades_to_procfs_with_one_line_that_names_the_remedy() -> None:
    found = run_under(
        2,
        HOLDERS
        + """
go, held = holds(2)
tracer = start(required=False)
full = [tracer.backend, count(on_loop(tracer, lambda: call(3))), told("WARNING")]
tracer.stop()
os.close(go)
for _ in held:
    os.wait()
again = start()
tell(held=held, full=full, again=count(on_loop(again, lambda: call(9))))
""",
    )

    backend, _, lines = found["full"]
    assert (found["held"], backend, found["again"]) == (["socket"] * 2, "procfs", 9)
    assert len(lines) == 1
    assert "all 2 regions are taken by live processes" in lines[0]
    assert "kerneltrace run --processes N makes room for more" in lines[0]
    assert "counting from /proc instead" in lines[0]


def test_a_full_pool_of_a_parent_with_both_capabilities_grows_and_says_nothing() -> None:
    found = run(
        HOLDERS
        + """
assert preload(1)
go, held = holds(4)
tracer = start()
tell(held=held, mine=tracer.health()["kernel_side"]["joined"], warned=told("WARNING"),
     count=count(on_loop(tracer, lambda: call(9))))
"""
    )

    assert found == {"held": ["inherited"] * 4, "mine": "inherited", "warned": [], "count": 9}


def test_pins_with_every_index_taken_give_a_copy_of_its_own_with_one_line_that_names_the_cost(
    require: Require,
) -> None:
    require("bpffs")

    found = run(
        HOLDERS
        + """
from kerneltrace_core._native import sharing
from kerneltrace_core.requests.sharing import pins
sharing.PROCESSES, pins.SPARES = 2, 1
go, held = holds(2, share="pins")
tracer = start(share="pins")
tell(held=held, mine=tracer.health()["kernel_side"]["joined"], warned=told("WARNING"),
     count=count(on_loop(tracer, lambda: call(9))))
"""
    )

    assert (found["held"], found["mine"], found["count"]) == (["pins"] * 2, "own", 9)
    assert len(found["warned"]) == 1
    assert "all 2 indexes are taken by live processes" in found["warned"][0]
    assert "makes every system call on this machine about 0.1 us slower" in found["warned"][0]


ANOTHER_VERSION = """
from kerneltrace_core.requests.sharing import handed
handed.REQUESTS["join"] = b'{"protocol":1,"abi":"0123456789abcdef","want":"join"}'
"""


@pytest.mark.any_kernel
def test_a_worker_of_another_version_than_runs_degrades_to_procfs_with_one_line_that_says_so() -> (
    None
):
    found = run_under(
        2,
        ANOTHER_VERSION
        + """
tracer = start(required=False)
stats = on_loop(tracer, lambda: call(3))
tell(backend=stats.backend, lines=told("WARNING"), links=links(), served=stats.wall_ns > 0)
""",
    )

    assert (found["backend"], found["links"], found["served"]) == ("procfs", 0, True)
    (line,) = found["lines"]
    assert "the programs that were loaded are another version's (ABI " in line
    assert "asked for 0123456789abcdef): restart what runs kerneltrace run" in line
    assert "counting from /proc instead" in line


def test_a_worker_of_another_version_than_runs_goes_the_next_way_with_one_line_that_says_so() -> (
    None
):
    found = run(
        ANOTHER_VERSION
        + """
TELL = 'echo "$KERNELTRACE_SOCKET"; read line'
server = subprocess.Popen(
    [sys.executable, "-m", "kerneltrace_core.cli", "run", "--required", "--processes", "1", "--",
     "sh", "-c", TELL],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
)
assert preload(1)

def worker():
    tracer = start()
    side = tracer.health()["kernel_side"]["joined"]
    return [side, told("WARNING"), count(on_loop(tracer, lambda: call(9)))]

with server:
    os.environ["KERNELTRACE_SOCKET"] = server.stdout.readline().strip()
    side, lines, counted = in_child(worker)
tell(side=side, lines=lines, counted=counted)
"""
    )

    assert (found["side"], found["counted"]) == ("inherited", 9)
    (line,) = found["lines"]
    assert "the programs that were loaded are another version's (ABI " in line
    assert line.endswith("; joined by inherited instead")


@pytest.mark.parametrize("moment", ["before it is asked", "while it is asked"])
def test_a_helper_that_is_killed_while_it_hands_over_is_told_of_in_one_line(moment: str) -> None:
    found = run_under(
        2,
        f"""
        from kerneltrace_core.requests.sharing.handed import status
        helper = status(os.environ["KERNELTRACE_SOCKET"])["pid"]
        os.kill(helper, signal.SIGSTOP)
        delay = 0 if {moment!r} == "before it is asked" else 0.3
        killer = threading.Timer(delay, os.kill, (helper, signal.SIGKILL))
        if delay:
            killer.start()
        else:
            killer.function(*killer.args)
        before = len(os.listdir("/proc/self/fd"))
        begin = time.monotonic()
        tracer = start(required=False)
        took = time.monotonic() - begin
        tell(backend=tracer.backend, warned=told("WARNING"), soon=took < 10,
             kept=len(os.listdir("/proc/self/fd")) - before)
        """,
    )

    assert (found["backend"], found["soon"]) == ("procfs", True)
    assert len(found["warned"]) == 1
    assert found["kept"] < 5


# Join by WAY, which waits until go_on(), while a loop turns; say which threads did the waiting.
JOINS_WHILE_A_LOOP_TURNS = """
import fcntl
from kerneltrace_core.requests import members
from kerneltrace_core.requests.sharing import ways
waited = {}

def noted(owner, name):
    real = getattr(owner, name)
    def notes(*arguments, **more):
        waited.setdefault(name, set()).add(threading.get_ident())
        return real(*arguments, **more)
    setattr(owner, name, notes)

options = TracerOptions(backend="bpf", required=True)
if WAY == "inherited":
    # It waits for RCU where it makes a region, and here for as long as the others.
    assert preload(1)
    from kerneltrace_core.requests.sharing import inherited
    gate = threading.Event()
    def join(side, real=inherited.Inheritance.join):
        gate.wait()
        return real(side)
    inherited.Inheritance.join = join
    noted(inherited.Inheritance, "join")
    go_on = gate.set
elif WAY == "pins":
    # Somebody loads, and has the lock.
    from kerneltrace_core.requests.sharing import folders, pins
    from kerneltrace_core.requests.sharing.abi import abi_hash
    options = TracerOptions(backend="bpf", required=True, share="pins")
    name = abi_hash(options.probes, options.syscalls == "time")
    path = folders.BPFFS / f"kerneltrace-{os.geteuid()}-{name}"
    path.mkdir(0o700, exist_ok=True)
    loads = os.open(path, os.O_RDONLY)
    fcntl.flock(loads, fcntl.LOCK_EX)
    noted(pins, "wait_for_lock")
    go_on = lambda: os.close(loads)
else:
    from kerneltrace_core.requests.sharing import handed
    helper = handed.status(os.environ["KERNELTRACE_SOCKET"])["pid"]
    os.kill(helper, signal.SIGSTOP)
    noted(handed, "ask")
    go_on = lambda: os.kill(helper, signal.SIGCONT)
noted(ways, "open_side")
noted(members, "take_index")

async def main():
    tracer = RequestTracer.shared(options)
    tracer.start_soon()
    turns = 0
    for _ in range(200):
        await asyncio.sleep(0.001)
        turns += not tracer.ready
    go_on()
    while not tracer.ready:
        await asyncio.sleep(0.001)
    return turns

turns = asyncio.run(main())
tracer = RequestTracer._shared
side = tracer.health()["kernel_side"]["joined"]
mine = threading.get_ident()
tell(turns=turns, side=side, count=count(on_loop(tracer, lambda: call(9))),
     steps=sorted(waited), on_loop=[name for name in waited if mine in waited[name]],
     threads=len(set.union(*waited.values())))
"""


@pytest.mark.parametrize("way", ["inherited", "pins", "socket"])
def test_an_event_loop_runs_on_while_a_join_waits_for_another_process(
    way: str, require: Require
) -> None:
    require("bpffs")
    script = f"WAY = {way!r}\n" + JOINS_WHILE_A_LOOP_TURNS

    found = run_under(2, script) if way == "socket" else run(script)

    # How long a turn takes says nothing on a busy machine: who waited does.
    waits = {"inherited": "join", "pins": "wait_for_lock", "socket": "ask"}[way]
    assert found.pop("steps") == sorted(["open_side", "take_index", waits])
    assert found == {"turns": 200, "side": way, "count": 9, "on_loop": [], "threads": 1}


LOOK = """
import os
paths = ["/proc/self/fd/" + name for name in os.listdir("/proc/self/fd")]
print(sorted({os.readlink(path) for path in paths if os.path.exists(path)}))
"""


@pytest.mark.parametrize("way", ["inherited", "socket"])
def test_a_program_that_a_member_runs_inherits_no_descriptor_of_bpf(way: str) -> None:
    script = f"""
        LOOK = {LOOK!r}
        if {way!r} == "inherited":
            preload(2)

        def member():
            tracer = start()
            done = subprocess.run([sys.executable, "-S", "-c", LOOK], close_fds=False,
                                  capture_output=True, text=True)
            return [tracer.health()["kernel_side"]["joined"], done.stdout, done.stderr]

        side, said, errors = in_child(member)
        tell(side=side, said=said, errors=errors)
    """

    found = run_under(2, script) if way == "socket" else run(script)

    assert (found["side"], found["errors"]) == (way, "")
    assert found["said"].startswith("['")
    assert "bpf" not in found["said"]
