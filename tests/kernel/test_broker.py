"""What is served to processes without privilege: to them alone, whatever the others do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from broker_scripts import BEGIN
from harness.forked import in_child
from harness.nobody import NOBODY, as_nobody
from harness.tiers import Require
from kerneltrace_core.errors import KernelTraceError
from kerneltrace_core.requests.sharing import handed
from kerneltrace_core.requests.sharing.abi import abi_hash
from kerneltrace_core.requests.sharing.offer import MARK, PROTOCOL, address_of, write_packet
from traced import run_python

pytestmark = [pytest.mark.kernel, pytest.mark.needs("thread_registration", "task_storage")]


def run(script: str, processes: int = 4) -> dict[str, Any]:
    """Run a script under ``kerneltrace run``; return what it tells."""
    outer = """
        import sys
        from kerneltrace_core.cli.__main__ import main
        sys.exit(main(["run", "--required", "--processes", sys.argv[2], "--",
                       sys.executable, "-c", sys.argv[1]]))
    """
    inner = BEGIN + textwrap.dedent(script)
    found: dict[str, Any] = json.loads(run_python(outer, inner, str(processes)).splitlines()[-1])
    return found


@pytest.mark.needs("capability:cap_setpcap")
def test_a_process_without_any_capability_joins_and_is_counted_exactly() -> None:
    found = run(
        """
        status = open("/proc/self/status").read()
        capabilities = [int(line.split()[1], 16) for line in status.splitlines() if "Cap" in line]
        tell(charged=joins(), again=joins(), capabilities=sum(capabilities))
        """
    )

    assert found == {"charged": 100, "again": 100, "capabilities": 0}


@pytest.mark.parametrize(
    "packet",
    [
        'b""',
        'b"garbage"',
        'b"\\xff" * 8000',
        'b"[" * 8000',
        'b"[]"',
        'b"null"',
        "request(abi='another')",
        "request(abi=['x'] * 100)",
        "request(protocol=2)",
        "request(want='everything')",
        "request(want={})",
    ],
)
@pytest.mark.any_kernel
def test_whoever_sends_what_makes_no_sense_is_told_so_or_cut_off(packet: str) -> None:
    found = run(
        f"""
        hostile = connect()
        hostile.send({packet})
        answer, fds, _, _ = socket.recv_fds(hostile, 8192, 64)
        tell(answer=json.loads(answer or b"null"), fds=len(fds), joined=joins())
        """
    )

    assert found["answer"] is None or found["answer"]["ok"] is False
    assert found["fds"] == 0
    assert found["joined"] == 100


@pytest.mark.any_kernel
def test_thousands_of_connections_that_say_nothing_keep_nobody_out() -> None:
    found = run(
        """
        import resource
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        wanted = min(3000, hard - 100)

        def flood(stack, count):
            made = 0
            while made < count:
                connection = stack.enter_context(
                    socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                )
                connection.setblocking(False)
                try:
                    connection.connect(address_of(ADDRESS))
                except BlockingIOError:  # it cannot accept them so fast
                    time.sleep(0.001)
                else:
                    made += 1
            return made

        with ExitStack() as stack:
            made = flood(stack, wanted)
            begin = time.monotonic()
            joined = in_another_process(joins)
            took = time.monotonic() - begin
        tell(wanted=wanted, made=made, joined=joined, slow=took > 8, after=joins())
        """
    )

    assert found["wanted"] >= 2000
    assert found["made"] == found["wanted"]
    assert (found["joined"], found["slow"], found["after"]) == (100, False, 100)


@pytest.mark.any_kernel
def test_who_joins_while_others_never_stop_connecting_is_served_each_time() -> None:
    found = run(
        """
        import mmap
        made = memoryview(mmap.mmap(-1, 8)).cast("Q")  # what the child tells while it goes on

        def flood():
            parent, kept = os.getppid(), []
            while os.getppid() == parent:
                connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                connection.setblocking(False)
                try:
                    connection.connect(address_of(ADDRESS))
                except BlockingIOError:  # the backlog is full
                    time.sleep(0.0005)
                else:
                    made[0] += 1
                kept = [*kept[-300:], connection]

        def more_than(count):
            while made[0] < count:
                time.sleep(0.001)

        child = os.fork()
        if not child:
            flood()
            os._exit(0)
        try:
            joined, between = [], []
            for turn in range(10):
                before = made[0]
                more_than(before + 200)
                joined.append(in_another_process(joins))
                between.append(made[0])
            lives = os.waitpid(child, os.WNOHANG) == (0, 0)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        tell(joined=joined, made=made[0], grew=between == sorted(set(between)), lives=lives)
        """
    )

    assert found["made"] >= 2000
    assert (found["joined"], found["grew"], found["lives"]) == ([100] * 10, True, True)


@pytest.mark.any_kernel
def test_who_takes_no_answer_keeps_the_others_not_out_for_long() -> None:
    found = run(
        """
        def never_reads():
            kept = []
            for _ in range(200):
                connection = connect()
                connection.send(request())
                kept.append(connection)
            time.sleep(3)  # longer than it is waited for
            last = connect()
            last.send(request())
            return json.loads(last.recv(8192))["ok"]

        sulking = in_another_process(never_reads)
        tell(sulking=sulking, joined=joins(), other=in_another_process(joins))
        """
    )

    assert found == {"sulking": False, "joined": 100, "other": 100}


@pytest.mark.any_kernel
def test_a_member_can_neither_become_another_one_nor_be_charged_as_one() -> None:
    found = run(
        """
        mine = handed.join_handed(ADDRESS)

        def steal():
            theirs = handed.join_handed(ADDRESS)
            register = theirs._register_fd
            tried = [members.take_index(register, mine.process, key) for key in (0, 1)]
            taken = [members.take_index(register, i) for i in range(4) if i != theirs.process]
            try:
                members.register(register, mine.process, 0)
                registered = True
            except KernelTraceError:
                registered = False
            quit = members.quit_index(register, mine.process)
            return [theirs.process != mine.process, tried, taken, registered, quit]

        stolen = in_another_process(steal)
        tell(stolen=stolen, mine=charged(mine))
        """
    )

    assert found == {"stolen": [True, [None, None], [None] * 3, False, False], "mine": 100}


@pytest.mark.any_kernel
def test_a_member_holds_one_map_its_own_region_and_none_of_the_pool() -> None:
    found = run(
        """
        from kerneltrace_core.requests.programs import REGION_BYTES

        def maps_held():
            held = []
            for name in os.listdir("/proc/self/fdinfo"):
                try:
                    lines = open("/proc/self/fdinfo/" + name).read().splitlines()
                except OSError:  # what listed them
                    continue
                told = dict(line.split(":", 1) for line in lines if ":" in line)
                if "map_type" in told:
                    held.append([int(told[n]) for n in ("map_type", "value_size", "max_entries")])
            return held

        before = maps_held()
        mine = handed.join_handed(ADDRESS)
        held = maps_held()
        mine.close()
        tell(before=before, held=held, after=maps_held(), region_bytes=REGION_BYTES)
        """
    )

    array = 2  # BPF_MAP_TYPE_ARRAY; the map of all regions is of another type
    assert found["held"] == [[array, found["region_bytes"], 1]]
    assert (found["before"], found["after"]) == ([], [])


@pytest.mark.any_kernel
def test_an_index_behind_the_last_one_is_refused_and_harms_nobody() -> None:
    found = run(
        """
        mine = handed.join_handed(ADDRESS)
        register_fd = mine._register_fd
        answer, fds = handed.ask(ADDRESS, "join")  # what this process has already, with its key
        real = Offer.decode(answer, len(fds))
        for fd in fds:
            os.close(fd)

        def can_register(index):
            try:
                members.register(register_fd, index, 0)
            except KernelTraceError:
                return False
            return True

        # The second one is its own, to who looks at eight bits of it.
        wrong = [256, 256 + mine.process, 1 << 16, 1 << 31, 2**32 - 1]
        taken = [members.take_index(register_fd, i, k) for i in wrong for k in (0, real.key)]
        registered = [can_register(index) for index in wrong]
        left = [members.quit_index(register_fd, index) for index in wrong]
        tell(
            same=real.process == mine.process, taken=taken, registered=registered, left=left,
            mine=charged(mine), others=in_another_process(joins),
        )
        """
    )

    assert found == {
        "same": True,
        "taken": [None] * 10,
        "registered": [False] * 5,
        "left": [False] * 5,
        "mine": 100,
        "others": 100,
    }


def test_a_member_cannot_detach_the_programs_of_the_others() -> None:
    found = run(
        """
        mine = handed.join_handed(ADDRESS)
        BPF_LINK_DETACH, BPF = 34, {"x86_64": 321}.get(os.uname().machine, 280)
        libc = ctypes.CDLL(None, use_errno=True)

        def detach():
            theirs = handed.join_handed(ADDRESS)
            done = 0
            for fd in list(theirs._hold._fds):
                done += libc.syscall(BPF, BPF_LINK_DETACH, struct.pack("II", fd, 0), 8) == 0
            theirs.close()
            return done

        detached = in_another_process(detach)
        tell(detached=detached, mine=charged(mine))
        """
    )

    assert found == {"detached": 0, "mine": 100}


@pytest.mark.any_kernel
def test_a_full_pool_is_said_and_room_is_made_by_death_however_sudden() -> None:
    found = run(
        """
        def hold():
            reader, writer = os.pipe()
            child = os.fork()
            if not child:
                side = handed.join_handed(ADDRESS)
                side.register(0)
                os.write(writer, bytes([side.process]))
                signal.pause()
            return child, os.read(reader, 1)[0]

        held = [hold() for _ in range(2)]
        full = in_another_process(joins)
        child, index = held[0]
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        again = hold()
        for child in (held[1][0], again[0]):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        tell(indexes=sorted(i for _, i in held), full=full, reused=again[1] == index, end=joins())
        """,
        processes=2,
    )

    assert found["indexes"] == [0, 1]
    assert "all 2 regions are taken by live processes" in found["full"]
    assert (found["reused"], found["end"]) == (True, 100)


@pytest.mark.any_kernel
def test_who_has_an_index_after_another_sees_nothing_of_it() -> None:
    found = run(
        """
        def leave_traces():
            side = handed.join_handed(ADDRESS)
            side.register(3)
            side.memory[:] = b"\\x5a" * len(side.memory)
            return side.process

        first = in_another_process(leave_traces)
        side = handed.join_handed(ADDRESS)
        tell(same=first == side.process, epoch=side.epoch, clean=not any(bytes(side.memory)[64:]))
        """,
        processes=1,
    )

    assert found == {"same": True, "epoch": 2, "clean": True}


def test_threads_of_a_member_that_left_are_charged_to_nobody_who_comes_after() -> None:
    found = run(
        """
        import threading
        go, done, ready = threading.Event(), threading.Event(), threading.Event()
        side = handed.join_handed(ADDRESS)

        def stays():
            side.register(0)
            ready.set()
            go.wait()
            for _ in range(500):
                os.getppid()
            done.set()

        thread = threading.Thread(target=stays)
        thread.start()
        ready.wait()
        members.quit_index(side._register_fd, side.process)
        next_side = handed.join_handed(ADDRESS)
        go.set()
        done.wait()
        tell(
            same=next_side.process == side.process, stray=count(next_side), epoch=next_side.epoch,
            mine=charged(next_side),
        )
        """
    )

    assert found == {"same": True, "stray": 0, "epoch": 3, "mine": 100}


def test_what_becomes_another_program_gives_its_index_back() -> None:
    found = run(
        """
        def becomes():
            handed.join_handed(ADDRESS)
            os.write(writer, b"x")
            time.sleep(0.2)
            os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(30)"])

        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            becomes()
        os.read(reader, 1)
        lived = members_now()
        deadline = time.monotonic() + 10
        while members_now() and time.monotonic() < deadline:
            time.sleep(0.01)
        joined = joins()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        tell(lived=lived, joined=joined)
        """,
        processes=1,
    )

    assert found == {"lived": 1, "joined": 100}


# ---- another user --------------------------------------------------------------------------

ADDRESSES = pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
SERVES = """
import sys
from kerneltrace_core.cli import helper
from kerneltrace_core.cli.__main__ import main
if sys.argv[1] == "abstract":
    helper._places = lambda identity: iter(())
tell = 'echo "$KERNELTRACE_SOCKET"; read line'
sys.exit(main(["run", "--required", "--processes", "1", "--", "sh", "-c", tell]))
"""
FOLDERS = ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR")


@contextmanager
def served(*, abstract: bool) -> Iterator[str]:
    """Serve one region to root while the block runs, at a socket that anybody can reach."""
    command = subprocess.Popen(
        [sys.executable, "-c", SERVES, "abstract" if abstract else "path"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={name: text for name, text in os.environ.items() if name not in FOLDERS},
    )
    with command:  # which closes its input, and that ends it
        assert command.stdout is not None
        address = command.stdout.readline().strip()
        assert address.startswith("@") == abstract
        if not abstract:
            Path(address).chmod(0o666)
            Path(address).parent.chmod(0o711)
        yield address


def ask_for_a_region(address: str) -> tuple[bytes, int]:
    """Return the answer to a valid request, and how many descriptors came with it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(50)
        connection.connect(address_of(address))
        try:
            connection.send(write_packet({"protocol": PROTOCOL, "abi": abi_hash(), "want": "join"}))
            answer, fds, _, _ = socket.recv_fds(connection, 8192, 64)
        except (BrokenPipeError, ConnectionResetError):  # closed before it was read
            return b"", 0
    return answer, len(fds)


@ADDRESSES
@pytest.mark.any_kernel
def test_a_peer_of_another_user_gets_nothing_and_takes_nothing_from_the_pool(
    abstract: bool, require: Require
) -> None:
    require("capability:cap_setuid")

    def ask_as_both() -> tuple[tuple[bytes, int], tuple[bytes, int]]:
        os.seteuid(NOBODY)
        stranger = ask_for_a_region(address)
        os.seteuid(0)
        # What was offered to the stranger would be kept for it: it is still alive.
        return stranger, in_child(lambda: ask_for_a_region(address))

    with served(abstract=abstract) as address:
        stranger, (answer, descriptors) = in_child(ask_as_both)

    assert stranger == (b"", 0)
    assert answer.startswith(MARK)
    assert descriptors > 2


@ADDRESSES
@pytest.mark.any_kernel
def test_a_server_of_another_user_is_refused_and_told_nothing(
    abstract: bool, open_tmp_path: Path, require: Require
) -> None:
    require("capability:cap_setuid")
    address = f"@kerneltrace-test-{os.getpid()}" if abstract else f"{open_tmp_path}/socket"

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as impostor:
        impostor.bind(address_of(address))
        as_nobody(impostor.listen, ())  # the kernel notes who listens, not who has made it
        with pytest.raises(KernelTraceError, match=f"it is served by uid {NOBODY}, not by this"):
            handed.join_handed(address)
        connection, _ = impostor.accept()
        with connection:
            heard = connection.recv(8192)

    assert heard == b""


# ---- a hostile server ----------------------------------------------------------------------

SERVER = """
import threading
folder = __import__("tempfile").mkdtemp()
path = folder + "/socket"
listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listening.bind(path)
listening.listen()
real, fds = handed.ask(ADDRESS, "join")

def changed(at, data):
    return real[:at] + data + real[at + len(data):]

def serve(answer, descriptors):
    def once():
        connection, _ = listening.accept()
        connection.recv(8192)
        if answer is None:
            time.sleep(4)
        else:
            socket.send_fds(connection, [answer], descriptors)
        connection.close()
    threading.Thread(target=once, daemon=True).start()

def refused():
    before = len(os.listdir("/proc/self/fd"))
    begin = time.monotonic()
    try:
        handed.join_handed(path)
    except (KernelTraceError, OSError) as error:
        said = type(error).__name__ + ": " + str(error)
    else:
        said = "joined"
    return said, time.monotonic() - begin < 3.5, len(os.listdir("/proc/self/fd")) - before <= 1
"""


@pytest.mark.parametrize(
    "answer",
    [
        "None, []",
        "b'', []",
        "b'garbage', fds",
        "b'{}', fds",
        "real, []",
        "real, fds[:3]",
        "real, fds + fds",
        "real[:20], fds",
        "real + b'[]', fds",
        "changed(8, b'\\xff' * 4), fds",
        "changed(12, b'\\xff' * 8), fds",
        "changed(20, b'\\xff' * 8), fds",
        "real, [fds[0], os.open('/etc/passwd', os.O_RDONLY), *fds[2:]]",
        "real, [os.open('/etc/passwd', os.O_RDONLY), *fds[1:]]",
        "changed(8, struct.pack('=I', 3)), fds",
    ],
)
@pytest.mark.any_kernel
def test_what_is_no_offer_is_refused_soon_and_leaves_no_descriptor(answer: str) -> None:
    script = textwrap.dedent(SERVER) + textwrap.dedent(
        f"""
        serve({answer})
        said, soon, clean = refused()
        import shutil
        shutil.rmtree(folder)
        tell(said=said, soon=soon, clean=clean, joined=in_another_process(joins))
        """
    )

    found = run(script)

    assert found["said"] != "joined"
    assert (found["soon"], found["clean"], found["joined"]) == (True, True, 100)
