"""How a tracer comes by the programs: seen in its health and in the log, and exact in each way."""

from __future__ import annotations

import json
import os
import textwrap
from pathlib import Path
from typing import Any

import pytest

from broker_scripts import BEGIN
from harness.interpreters import AS_NOBODY, an_open_interpreter, open_interpreter, shared_path
from harness.tiers import Require
from tracer_scripts import HOLDERS, TRACER, run, run_under

pytestmark = [pytest.mark.kernel, pytest.mark.needs("thread_registration", "task_storage")]

# What a script needs to be a member by the way of its name: prepare() in the parent, and OPTIONS.
BY_WAY = """
OPTIONS = {"share": "pins"} if WAY == "pins" else {}
def prepare(children):
    if WAY == "inherited":
        assert preload(children)
"""


def run_by(way: str, script: str) -> dict[str, Any]:
    """Run a script where its processes join by this way; there is room for four."""
    whole = f"WAY = {way!r}\n" + BY_WAY + textwrap.dedent(script)
    return run_under(4, whole) if way == "socket" else run(whole)


def test_a_process_alone_has_its_own_copy_and_says_what_that_costs() -> None:
    found = run(
        """
        tracer = start()
        side = tracer.health()["kernel_side"]
        tell(side=side, count=count(on_loop(tracer, lambda: call(9))), warned=told("WARNING"),
             cost=[line for line in told("INFO") if "its own copy" in line])
        """
    )

    assert (found["side"], found["count"]) == ({"joined": "own", "index": 0}, 9)
    assert found["warned"] == []
    assert len(found["cost"]) == 1
    assert "slower" in found["cost"][0]


@pytest.mark.any_kernel
def test_pins_on_demand_are_shared_by_unrelated_processes(require: Require) -> None:
    require("bpffs")

    found = run(
        """
        tracer = start(share="pins")
        other = "\\n".join((
            "from kerneltrace_core.requests import RequestTracer, TracerOptions",
            "tracer = RequestTracer(TracerOptions(required=True, share='pins'))",
            "tracer.start()",
            "print(tracer.health()['kernel_side']['index'])",
            "tracer.stop()",
        ))
        mine = tracer.health()["kernel_side"]
        done = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True)
        stats = on_loop(tracer, lambda: call(9))
        tracer.stop()
        left = [name for name in os.listdir("/sys/fs/bpf") if name.startswith("kerneltrace-")]
        tell(mine=mine, theirs=done.stdout + done.stderr, count=count(stats))
        """
    )

    assert found == {"mine": {"joined": "pins", "index": 0}, "theirs": "1\n", "count": 9}


@pytest.mark.any_kernel
@pytest.mark.parametrize("way", ["inherited", "pins", "socket"])
def test_a_member_says_in_one_line_how_it_joined(way: str, require: Require) -> None:
    require("bpffs")

    found = run_by(
        way,
        """
        prepare(2)

        def member():
            tracer = start(**OPTIONS)
            counted = [count(on_loop(tracer, lambda: call(3))) for _ in range(2)]
            side = tracer.health()["kernel_side"]
            tracer.stop()
            return [side, counted, [line for _, line in LINES.lines if "joined" in line]]

        side, counted, lines = in_child(member)
        tell(joined=side["joined"], index=side["index"], counted=counted, lines=lines)
        """,
    )

    assert (found["joined"], found["counted"]) == (way, [3, 3])
    assert found["lines"] == [
        f"kernel tracing: joined shared programs by {way}, index {found['index']}"
    ]


DOCTOR = """
from kerneltrace_core.doctor.sharing import joins_by_socket, kernel_side_fact
def examined():
    fact = kernel_side_fact()
    return [fact.verdict.value, fact.reason, fact.remedy, joins_by_socket()]
"""


@pytest.mark.any_kernel
def test_the_doctor_says_under_run_how_many_regions_are_taken() -> None:
    found = run_under(
        3,
        DOCTOR
        + """
address = os.environ["KERNELTRACE_SOCKET"]
before = examined()
tracer = start()
def joins_too():
    start()
    return examined()
tell(address=address, before=before, one=examined(), two=in_child(joins_too))
""",
    )

    address = found["address"]
    for moment, taken in (("before", 0), ("one", 1), ("two", 2)):
        reason = f"by socket {address}: {taken} of 3 regions taken"
        assert found[moment] == ["yes", reason, "", True]


@pytest.mark.any_kernel
def test_the_doctor_names_a_socket_that_does_not_answer_and_the_remedy() -> None:
    found = run(
        DOCTOR
        + """
os.environ["KERNELTRACE_SOCKET"] = "/nowhere/socket"
tell(examined=examined(), unset=joins_by_socket({}))
"""
    )

    verdict, reason, remedy, joins = found["examined"]
    assert (verdict, remedy) == ("no", "restart what runs kerneltrace run")
    assert reason.startswith("/nowhere/socket: ")
    assert "No such file" in reason
    assert (joins, found["unset"]) == (False, False)


@pytest.mark.any_kernel
def test_the_doctor_says_what_a_child_of_a_master_that_preloaded_inherits() -> None:
    found = run(
        DOCTOR
        + """
before = examined()
assert preload(3)
def joins():
    start()
    return examined()
tell(before=before, child=in_child(examined), member=in_child(joins))
"""
    )

    assert found["child"] == ["yes", "inherited, from a pool of 3 regions", "", False]
    # A member has given the rest up: what it forks inherits nothing.
    assert found["member"] == found["before"]
    assert found["before"][1].startswith("own copy")


def test_forked_children_join_what_was_preloaded_and_hold_one_region_each() -> None:
    found = run(
        """
        assert preload(2)
        loaded = links()
        children = [in_child(traced_child) for _ in range(3)]

        def descriptors():
            tracer = start()
            return len(os.listdir("/proc/self/fd"))

        tell(loaded=loaded, children=children, held=in_child(descriptors), mine=links())
        """
    )

    assert found["loaded"] == found["mine"] > 5
    assert found["children"] == [[7, 8, "inherited"]] * 3
    assert found["held"] < 40


def test_who_loaded_may_be_killed_and_the_others_are_counted_on() -> None:
    found = run(
        """
        from harness.bpf_objects import held_objects, wait_until_gone

        def member(said, go, end):
            tracer = start()
            os.write(said, b"%d\\n" % os.getpid())
            os.read(go, 1)
            counted = count(on_loop(tracer, lambda: call(9)))
            os.write(said, b"%d\\n" % counted)
            os.read(end, 1)

        # Who waits for a pipe that nobody writes to goes on when this process closes it.
        said, go, end = (os.pipe() for _ in range(3))
        master = os.fork()
        if not master:
            os.close(go[1])
            os.close(end[1])
            assert preload(2)
            for _ in range(2):
                if not os.fork():
                    member(said[1], go[0], end[0])
                    os._exit(0)
            signal.pause()
        os.close(said[1])
        lines = open(said[0])
        pids = [int(lines.readline()) for _ in range(2)]
        objects = held_objects([master, *pids])
        os.kill(master, signal.SIGKILL)
        os.waitpid(master, 0)
        os.close(go[1])
        counts = [int(lines.readline()) for _ in range(2)]
        held = held_objects(pids)
        os.close(end[1])
        wait_until_gone(objects)
        tell(counts=counts, kinds=sorted({kind for kind, _ in held}), more=len(held - objects))
        """
    )

    assert found == {"counts": [9, 9], "kinds": ["link_id", "map_id", "prog_id"], "more": 0}


@pytest.mark.any_kernel
def test_more_children_at_once_than_were_expected_make_room_for_themselves() -> None:
    found = run(
        """
        assert preload(1)

        def stays(start_next):
            tracer = start()
            first = count(on_loop(tracer, lambda: call(5)))
            return [first, tracer.health()["kernel_side"]["index"], start_next()]

        nested = in_child(lambda: stays(lambda: None))
        pipes = [os.pipe() for _ in range(4)]
        go = os.pipe()
        children = []
        for reader, writer in pipes:
            child = os.fork()
            if not child:
                os.close(go[1])
                os.write(writer, json.dumps(stays(lambda: None)[:2]).encode())
                os.read(go[0], 1)
                os._exit(0)
            children.append(child)
        told_by = [json.loads(os.read(reader, 100)) for reader, _ in pipes]
        os.close(go[1])
        for child in children:
            os.waitpid(child, 0)
        tell(nested=nested, counts=[each[0] for each in told_by],
             indexes=len({each[1] for each in told_by}))
        """
    )

    assert found == {"nested": [5, 0, None], "counts": [5] * 4, "indexes": 4}


@pytest.mark.any_kernel
def test_a_child_without_privilege_beyond_the_pool_says_so_and_goes_on(require: Require) -> None:
    require("capability:cap_setuid")

    found = run(
        """
        # While the library can be read.
        import gzip, platform
        import kerneltrace_core.kernel.privileges, kerneltrace_core.requests.procfs
        import kerneltrace_core.requests.shadow, kerneltrace_core.requests.sharing.pins
        assert preload(1)

        def unprivileged():
            os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
            tracer = start(required=False)
            return [tracer.backend, told("WARNING")]

        def holds():
            tracer = start()
            return [count(on_loop(tracer, lambda: call(3))), in_child(unprivileged)]

        joined = in_child(unprivileged)
        tell(joined=joined, full=in_child(holds))
        """
    )

    assert found["joined"] == ["bpf", []]
    assert isinstance(found["full"][1], list), found
    count, (backend, lines) = found["full"]
    # What it forked after it had joined inherits nothing more, and is told what it lacks.
    assert (count, backend, len(lines)) == (3, "procfs", 1)
    assert "CAP_BPF" in lines[0]


@pytest.mark.any_kernel
def test_a_sibling_without_privilege_that_finds_the_pool_full_is_told_to_have_more_prepared(
    require: Require,
) -> None:
    require("capability:cap_setuid")

    found = run(
        HOLDERS
        + """
# While the library can be read.
import gzip, platform
import kerneltrace_core.kernel.privileges, kerneltrace_core.requests.procfs
import kerneltrace_core.requests.shadow
assert preload(1)

def unprivileged():
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
    with open("/proc/self/status") as status:
        caps = [int(line.split()[1], 16) for line in status if line[:6] in ("CapPrm", "CapEff")]
    tracer = start(required=False)
    side = tracer.health()["kernel_side"]
    return [caps, tracer.backend, side, [line for level, line in LINES.lines if level != "INFO"]]

go, held = holds(1)
full = in_child(unprivileged)
os.close(go)
os.wait()
tell(held=held, full=full, later=in_child(unprivileged))
""",
    )

    caps, backend, side, lines = found["full"]
    assert (found["held"], caps, backend, side) == (["inherited"], [0, 0], "procfs", {})
    assert len(lines) == 1
    assert "all 1 regions of its pool are taken" in lines[0]
    assert "let the master prepare more" in lines[0]
    assert "counting from /proc instead" in lines[0]
    # The next one takes the seat that has become free.
    assert found["later"] == [[0, 0], "bpf", {"joined": "inherited", "index": 0}, []]


@pytest.mark.any_kernel
def test_room_is_made_ahead_for_children_that_have_no_privilege(require: Require) -> None:
    require("capability:cap_setuid")

    found = run(
        """
        assert preload(1)
        go = os.pipe()

        def unprivileged():
            os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
            return start().health()["kernel_side"]

        sides = []
        children = []
        for _ in range(3):
            reserve(1)
            reader, writer = os.pipe()
            child = os.fork()
            if not child:
                os.close(go[1])
                os.write(writer, json.dumps(unprivileged()).encode())
                os.read(go[0], 1)
                os._exit(0)
            children.append(child)
            sides.append(json.loads(os.read(reader, 200)))
        os.close(go[1])
        for child in children:
            os.waitpid(child, 0)
        tell(joined={side["joined"] for side in sides}.pop(), indexes=[s["index"] for s in sides])
        """
    )

    assert found == {"joined": "inherited", "indexes": [0, 1, 2]}


# Whether this kernel updates a map of maps at several indexes at once, asked without the library:
# BPF_MAP_UPDATE_BATCH with its keys, values, their count and the map.
TAKES_BATCH = """
import ctypes, platform, struct
from harness.bpf_objects import BPF_NUMBER
from kerneltrace_core._native import lib, maps, sharing

def takes_batch(outer, fds):
    numbers = ctypes.c_uint32 * len(fds)
    keys, values = numbers(*range(len(fds))), numbers(*fds)
    addresses = ctypes.addressof(keys), ctypes.addressof(values)
    attr = struct.pack("=QQQQIIQQ", 0, 0, *addresses, len(fds), outer, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(BPF_NUMBER[platform.machine()], 26, attr, len(attr)) == 0
"""


def test_a_pool_is_filled_by_one_call_where_the_kernel_has_one_for_it() -> None:
    found = run(
        TAKES_BATCH
        + """
tracer = start()
fds = [lib.create_region_map(4096) for _ in range(8)]
batch = takes_batch(lib.create_outer_map(8, fds[0]), fds)

def unnamed(stats):
    # bpf(2) is none of the calls that are counted by name.
    return calls_of(stats).get("other", 0)

def calls_to_place(count):
    outer = lib.create_outer_map(8, fds[0])
    stats = on_loop(tracer, lambda: sharing.place_maps(outer, 0, fds[:count]))
    placed = [sharing.read_element(outer, index, 4) for index in range(count)]
    assert placed == [struct.pack("=I", maps.info(fd).id) for fd in fds[:count]]
    return unnamed(stats)

on_loop(tracer, lambda: None)
tell(batch=batch, none=unnamed(on_loop(tracer, lambda: None)),
     one=calls_to_place(1), all=calls_to_place(8))
"""
    )

    # Each call waits for RCU. Where it is refused, one follows for each region.
    assert (found["none"], found["one"]) == (0, 1)
    assert found["all"] == (1 if found["batch"] else 1 + 8)


@pytest.mark.any_kernel
def test_what_is_preloaded_or_reserved_is_placed_at_once() -> None:
    found = run(
        """
        from kerneltrace_core._native import sharing
        real, placed = sharing.place_maps, []

        def noted(outer_fd, first, inner_fds):
            placed.append([first, len(inner_fds)])
            real(outer_fd, first, inner_fds)

        sharing.place_maps = noted
        assert preload(4)
        reserve(4)
        reserve(7)
        tell(placed=placed)
        """
    )

    assert found == {"placed": [[0, 4], [4, 3]]}


@pytest.mark.parametrize(
    "way",
    [
        "inherited",
        pytest.param("pins", marks=pytest.mark.any_kernel),
        pytest.param("socket", marks=pytest.mark.any_kernel),
    ],
)
def test_what_a_member_forks_in_the_middle_of_a_request_changes_nothing_of_it(
    way: str, require: Require
) -> None:
    require("bpffs")

    found = run_by(
        way,
        """
        prepare(3)

        def member():
            tracer = start(**OPTIONS)

            def work():
                call(5)
                child = os.fork()
                if not child:
                    call(300)
                    threads = [threading.Thread(target=call, args=(300,)) for _ in range(3)]
                    [thread.start() for thread in threads]
                    [thread.join() for thread in threads]
                    os._exit(0)
                os.waitpid(child, 0)
                subprocess.run([sys.executable, "-S", "-c", "import os; os.getppid()"], check=True)
                with multiprocessing.get_context("fork").Pool(1) as pool:
                    told = pool.map(count_in_worker, [10, 20], chunksize=1)
                    pool.close()
                    pool.join()
                assert told == [10, 20], told
                call(6)

            stats = on_loop(tracer, work)
            after = on_loop(tracer, lambda: call(3))
            late = count(tracer.late())
            joined = tracer.health()["kernel_side"]["joined"]
            tracer.stop()
            return [count(stats), stats.forks, stats.execs, count(after), late, joined]

        tell(member=in_child(member))
        """,
    )

    assert found["member"] == [11, 3, 1, 3, 0, way]


@pytest.mark.parametrize("way", ["inherited", "pins", "socket"])
@pytest.mark.any_kernel
def test_a_member_can_detach_nothing_neither_by_request_nor_by_closing_all_that_it_holds(
    way: str, require: Require
) -> None:
    require("bpffs")

    found = run_by(
        way,
        """
        import ctypes, errno, struct
        prepare(2)
        BPF_LINK_DETACH, BPF = 34, {"x86_64": 321}.get(os.uname().machine, 280)
        libc = ctypes.CDLL(None, use_errno=True)

        def held(kind):
            found = []
            for name in os.listdir("/proc/self/fd"):
                try:
                    # The kernel writes bpf-link for what was opened by a pin, else bpf_link.
                    what = os.readlink("/proc/self/fd/" + name).replace("-", "_")
                except OSError:
                    continue
                if what.startswith("anon_inode:" + kind):
                    found.append(int(name))
            return found

        def detach(fd):
            done = libc.syscall(BPF, BPF_LINK_DETACH, struct.pack("II", fd, 0), 8)
            return done == 0 or ctypes.get_errno() == errno.EOPNOTSUPP and "not supported"

        def member():
            side = start(**OPTIONS).health()["kernel_side"]["joined"]
            tried = [detach(fd) for fd in held("bpf_link")]
            for fd in held("bpf"):
                os.close(fd)
            return [side, len(tried), list(set(tried)), held("bpf")]

        tracer = start(**OPTIONS)
        before = count(on_loop(tracer, lambda: call(9)))
        side, tried, said, left = in_child(member)
        mine = tracer.health()["kernel_side"]["joined"]
        after = count(on_loop(tracer, lambda: call(7)))
        later = in_child(lambda: count(on_loop(start(**OPTIONS), lambda: call(8))))
        tell(side=side, tried=tried, said=said, left=left, mine=mine,
             counts=[before, after, later])
        """,
    )

    assert found["tried"] > 10
    # The kernel knows the request, and links of these kinds have none such.
    assert (found["said"], found["left"]) == (["not supported"], [])
    assert (found["side"], found["mine"], found["counts"]) == (way, way, [9, 7, 8])


@pytest.mark.parametrize(
    ("method", "way"),
    [
        *(("fork", "pins"), ("forkserver", "pins"), ("spawn", "pins")),
        ("fork", "inherited"),
        *(("forkserver", "socket"), ("spawn", "socket")),
    ],
)
@pytest.mark.any_kernel
def test_workers_of_multiprocessing_share_one_side(method: str, way: str, require: Require) -> None:
    require("bpffs")

    found = run_by(
        way,
        f"""
        prepare(3)
        context = multiprocessing.get_context({method!r})
        with context.Pool(3, AtOnce.begin, (context.Barrier(3),)) as pool:
            workers = pool.map(joined_in_worker, [10, 15, 20], chunksize=1)
            pool.close()
            pool.join()
        tell(workers=workers)
        """,
    )

    counts, ways, indexes, links = zip(*found["workers"], strict=True)
    assert counts == (10, 15, 20)
    assert ways == (way,) * 3
    assert len(set(indexes)) == 3
    # Each holds the same: nobody has loaded more.
    assert links[0] == links[1] == links[2] != []


@pytest.mark.any_kernel
def test_a_process_whose_socket_does_not_answer_takes_the_next_way_with_one_warning() -> None:
    found = run(
        """
        os.environ["KERNELTRACE_SOCKET"] = "/nowhere/socket"
        tracer = start()
        tell(side=tracer.health()["kernel_side"], warned=told("WARNING"))
        """
    )

    assert found["side"]["joined"] == "own"
    assert len(found["warned"]) == 1
    assert "No such file" in found["warned"][0]
    assert "its own copy" in found["warned"][0]


@pytest.mark.any_kernel
def test_a_tracer_that_stops_and_starts_under_run_stays_exact() -> None:
    found = run_under(
        1,
        """
        found = []
        for number in range(5):
            tracer = start()
            found.append(count(on_loop(tracer, lambda: call(10 + number))))
            side = tracer.health()["kernel_side"]
            tracer.stop()
        tell(found=found, side=side)
        """,
    )

    assert found == {"found": [10, 11, 12, 13, 14], "side": {"joined": "socket", "index": 0}}


# ---- capabilities given up -----------------------------------------------------------------------


@pytest.mark.any_kernel
@pytest.mark.needs("capability:cap_setpcap")
def test_capabilities_are_given_up_in_every_thread_once_tracing_runs() -> None:
    found = run(
        """
        def held(thread):
            with open(f"/proc/self/task/{thread}/status") as status:
                lines = [line.split() for line in status]
            return sum(int(line[1], 16) for line in lines if line and line[0][:3] == "Cap")

        stop = threading.Event()
        threads = [threading.Thread(target=stop.wait) for _ in range(8)]
        [thread.start() for thread in threads]
        sleeper = threading.Thread(target=time.sleep, args=(1.0,))
        sleeper.start()
        tracer = start(drop_capabilities=True)
        left = [held(thread) for thread in os.listdir("/proc/self/task")]
        counts = [count(serve(tracer, lambda: call(9))) for serve in (on_loop, in_thread)]
        stop.set()
        tracer.stop()
        sleeper.join()
        again = start(required=False)
        tell(left=left, counts=counts, again=again.backend, warned=len(told("WARNING")))
        """
    )

    assert len(found["left"]) >= 10
    assert set(found["left"]) == {0}
    assert found["counts"] == [9, 9]
    # What was given up is gone: it says so, and does what is possible without.
    assert (found["again"], found["warned"]) == ("procfs", 1)


@pytest.mark.any_kernel
def test_a_thread_that_blocks_all_signals_is_told_of_and_not_waited_for() -> None:
    found = run(
        """
        stop = threading.Event()

        def deaf():
            signal.pthread_sigmask(signal.SIG_SETMASK, range(1, signal.NSIG))
            stop.wait()

        thread = threading.Thread(target=deaf)
        thread.start()
        time.sleep(0.1)
        begin = time.monotonic()
        tracer = start(required=False, drop_capabilities=True)
        took = time.monotonic() - begin
        counted = count(on_loop(tracer, lambda: call(9)))
        stop.set()
        thread.join()
        tell(soon=took < 20, counted=counted, warned=told("WARNING"))
        """
    )

    assert (found["soon"], found["counted"]) == (True, 9)
    assert len(found["warned"]) == 1
    assert "does it block all signals?" in found["warned"][0]


def test_two_capabilities_are_enough_and_are_given_up(require: Require) -> None:
    require("an interpreter for uid 65534", probe=an_open_interpreter)
    two = "+bpf,+perfmon"
    script = TRACER + textwrap.dedent(
        """
        # The bounding set stays: to take from it is another capability.
        SETS = ("CapInh:", "CapPrm:", "CapEff:", "CapAmb:")

        def held():
            with open("/proc/self/status") as status:
                lines = [line.split() for line in status]
            return {int(line[1], 16) for line in lines if line[0] in SETS}

        before = held()
        tracer = start(drop_capabilities=True)
        left = held()
        tell(count=count(on_loop(tracer, lambda: call(9))), uid=os.getuid(),
             status=tracer.health()["status"], before=list(before), left=list(left))
        """
    )
    import subprocess

    done = subprocess.run(
        [
            *AS_NOBODY,
            f"--inh-caps={two}",
            f"--ambient-caps={two}",
            f"--bounding-set=-all,{two}",
            str(open_interpreter()),
            "-c",
            script,
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={"PYTHONPATH": f"{shared_path()}{os.pathsep}{Path(__file__).parents[1]}"},
    )

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # The bits of CAP_PERFMON, 38, and of CAP_BPF, 39.
    assert (found.pop("before"), found.pop("left")) == ([3 << 38], [0])
    assert found == {"count": 9, "uid": 65534, "status": "ok"}


@pytest.mark.any_kernel
def test_the_scripts_of_the_broker_are_whole() -> None:
    compile(BEGIN, "BEGIN", "exec")
