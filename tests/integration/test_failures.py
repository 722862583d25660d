"""Whatever keeps tracing from starting: the application serves, and one warning names the fix."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.tiers import Require
from kerneltrace_asgi import KernelTraceMiddleware
from kerneltrace_core.errors import OptionError

pytestmark = pytest.mark.integration

TESTS = Path(__file__).parents[1]
NO_CAPABILITIES = ("setpriv", "--reuid=65534", "--clear-groups", "--bounding-set=-all")
NO_BTF = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs none /sys/kernel/btf && exec "$@"', "sh")
PROCFS = {"backends": ["procfs"] * 3, "statuses": [200] * 3, "read_bytes": [1234] * 3}

# Serves an application under uvicorn and asks it three times, once its tracing has started or
# given up. argv: the middleware's options. PREPARE is what each test breaks.
SERVER = """
import asyncio, contextlib, json, logging, os, resource, sys, time

records = []

class Keep(logging.Handler):
    def emit(self, record):
        records.append([record.levelname, record.getMessage()])

logging.getLogger("kerneltrace").addHandler(Keep())
logging.getLogger("kerneltrace").setLevel(logging.INFO)

import uvicorn
from kerneltrace_asgi import KernelTraceMiddleware
from kerneltrace_core.requests import RequestTracer, programs

options = eval(sys.argv[1])
zero = os.open("/dev/zero", os.O_RDONLY)
seen = []

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    seen.append(scope["state"]["kerneltrace"])
    os.read(zero, 1234)
    await asyncio.sleep(0)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"served"})

def spare_descriptors(count):
    # The folder's own descriptor is listed among them.
    limit = len(os.listdir("/proc/self/fd")) - 1 + count
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

async def ask(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\\r\\nhost: here\\r\\nconnection: close\\r\\n\\r\\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return int(answer.split()[1]), b"served" in answer

async def settled(server):
    end = time.monotonic() + 20
    while time.monotonic() < end:
        tracer = RequestTracer._shared
        if server.started and (not traced or (tracer is not None and tracer._started)):
            return
        await asyncio.sleep(0.005)
    raise TimeoutError("tracing neither started nor gave up")

async def main():
    config = uvicorn.Config(
        KernelTraceMiddleware(app, **options), port=0, log_level="error", lifespan=lifespan
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await settled(server)
    port = server.servers[0].sockets[0].getsockname()[1]
    answers = [await ask(port) for _ in range(3)]
    health = RequestTracer._shared.health() if RequestTracer._shared else None
    server.should_exit = True
    await serving
    print(json.dumps({
        "statuses": [status for status, _ in answers],
        "whole": all(whole for _, whole in answers),
        "backends": [stats.backend for stats in seen],
        "read_bytes": [
            None if stats.read_bytes is None
            else stats.read_bytes + (stats.background.read_bytes if stats.background else 0)
            for stats in seen
        ],
        "health": health,
        "warnings": [text for level, text in records if level == "WARNING"],
        "errors": [text for level, text in records if level in ("ERROR", "CRITICAL")],
    }))

lifespan, traced = "on", True
PREPARE
asyncio.run(main())
"""


def server(
    options: str, prepare: str, before: tuple[str, ...], environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    clean = {name: text for name, text in os.environ.items() if "KERNELTRACE_" not in name}
    return subprocess.run(
        [*before, sys.executable, "-c", SERVER.replace("PREPARE", prepare), f"dict({options})"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=TESTS,
        env={**clean, **kept(os.environ), **environment},
    )


def kept(environment: Any) -> dict[str, str]:
    """Return the mark by which the leak check knows this session's processes."""
    return {name: text for name, text in environment.items() if name == "KERNELTRACE_TEST_SESSION"}


def serve(
    options: str = "", prepare: str = "", before: tuple[str, ...] = (), **environment: str
) -> dict[str, Any]:
    """Serve three requests; return what the application and its operator saw."""
    done = server(options, prepare, before, environment)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["errors"] == []
    assert found.pop("whole")
    return found


def assert_served_by_procfs(found: dict[str, Any], *telling: str) -> None:
    assert {name: found[name] for name in PROCFS} == PROCFS
    assert found["health"]["status"] == "degraded"
    (warning,) = found["warnings"]
    assert warning.startswith("kernel tracing by BPF is not possible: ")
    assert "counting from /proc instead" in warning
    assert "python -m kerneltrace_core.doctor" in warning
    assert "\n" not in warning
    assert "Unknown error" not in warning
    for word in telling:
        assert word in warning


def test_with_everything_there_it_is_bpf_and_no_warning(require: Require) -> None:
    require("thread_registration")

    found = serve()

    assert found["backends"] == ["bpf"] * 3
    assert found["read_bytes"] == [1234] * 3
    assert found["warnings"] == []
    assert found["health"]["status"] == "ok"


def test_without_capabilities_the_warning_names_them() -> None:
    found = serve(before=NO_CAPABILITIES)

    assert_served_by_procfs(found, "CAP_BPF, CAP_PERFMON missing", "(give it CAP_BPF, CAP_PERFMON)")


def test_without_btf_the_warning_names_the_kernel_option(require: Require) -> None:
    require("capability:cap_sys_admin")

    found = serve(before=NO_BTF)

    assert_served_by_procfs(found, "BTF", "/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF=y")


# Among them: before the first map, between maps, in the middle of the programs, of the links.
@pytest.mark.parametrize("spare", [16, 20, 27, 34])
def test_with_descriptors_exhausted_at_boot_the_warning_names_the_limit(
    require: Require, spare: int
) -> None:
    require("thread_registration")

    found = serve(prepare=f"spare_descriptors({spare})")

    assert_served_by_procfs(found, "Too many open files", "(raise the limit of open files")


def test_a_limit_of_locked_memory_does_not_matter(require: Require) -> None:
    require("thread_registration")  # as it is since 5.11, which has it

    found = serve(prepare="resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))")

    assert found["backends"] == ["bpf"] * 3
    assert found["warnings"] == []


@pytest.mark.parametrize(
    ("data", "telling"),
    [
        ("b'garbage'", "not a BPF ELF object (reinstall kerneltrace)"),
        ("whole[:len(whole) // 2]", "(reinstall kerneltrace)"),
        (
            r"whole.replace(b'\x85\0\0\0\5\0\0\0', b'\x85\0\0\0\xff\xff\0\0')",
            "invalid func unknown#65535",
        ),
    ],
)
def test_with_a_corrupt_object_the_warning_says_what_is_wrong(
    require: Require, data: str, telling: str
) -> None:
    require("thread_registration")
    prepare = f"""
whole = programs.builtin_object("requests")
programs.builtin_object = lambda name: {data}
"""

    found = serve(prepare=prepare)

    assert_served_by_procfs(found, telling)


def test_without_the_compiled_part_the_warning_says_so() -> None:
    prepare = """
import kerneltrace_core.requests.backends as backends
def missing(*_):
    from kerneltrace_core.errors import NativeMissingError
    raise NativeMissingError("import _libbpf: no such module (install a wheel for this platform)")
backends.BpfBackend.__init__ = missing
"""

    found = serve(prepare=prepare)

    assert_served_by_procfs(found, "install a wheel for this platform")


def test_a_failure_that_nobody_thought_of_is_no_failure_of_the_application() -> None:
    prepare = """
import kerneltrace_core.requests.backends as backends
def surprise(*_):
    raise RuntimeError("surprise")
backends.BpfBackend.__init__ = surprise
"""

    found = serve(prepare=prepare)

    assert_served_by_procfs(found, "surprise")


@pytest.mark.parametrize("options", ["", "required=True", "enabled=True, backend='bpf'"])
def test_the_kill_switch_beats_everything_and_says_nothing(options: str) -> None:
    found = serve(options, prepare="traced = False", KERNELTRACE_ENABLED="0")

    assert found["statuses"] == [200] * 3
    assert found["backends"] == ["off"] * 3
    assert found["read_bytes"] == [None] * 3
    assert found["warnings"] == []


# ---- required ----------------------------------------------------------------------------------

RUN = """
uvicorn.run(KernelTraceMiddleware(app, **options), port=0, log_level="info")
sys.exit(77)  # it served
"""
UVICORN_STARTUP_FAILURE = 3


@pytest.mark.parametrize(
    ("before", "telling"),
    [
        (NO_CAPABILITIES, "CAP_BPF, CAP_PERFMON missing (give it CAP_BPF, CAP_PERFMON)"),
        (NO_BTF, "(use a kernel with CONFIG_DEBUG_INFO_BTF=y"),
    ],
)
def test_required_refuses_to_start_with_the_text_of_the_warning(
    require: Require, before: tuple[str, ...], telling: str
) -> None:
    require("capability:cap_sys_admin")

    (warning,) = serve(before=before)["warnings"]
    refused = server("required=True", RUN, before, {})

    assert refused.returncode == UVICORN_STARTUP_FAILURE, refused.stderr
    cause = warning.partition("not possible: ")[2].partition("; counting")[0]
    assert telling in cause
    assert cause in refused.stderr
    assert "python -m kerneltrace_core.doctor" in refused.stderr
    assert "Application startup failed. Exiting." in refused.stderr
    assert "Traceback" not in refused.stderr


def test_required_without_a_lifespan_refuses_to_serve() -> None:
    prepare = "lifespan, traced = 'off', False"

    done = server("required=True", prepare, NO_CAPABILITIES, {})

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["statuses"] == [500] * 3
    assert "CAP_BPF, CAP_PERFMON missing" in done.stderr


def test_required_starts_where_the_kernel_can_be_traced(require: Require) -> None:
    require("thread_registration")

    found = serve("required=True")

    assert found["backends"] == ["bpf"] * 3
    assert found["warnings"] == []


# ---- options and hooks -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "telling"),
    [
        ("enabld=True", "there is no such option (did you mean 'enabled'?)"),
        ("probes=('sched', 'sycalls')", "syscalls"),
        ("sample_rate=7", "sample_rate"),
    ],
)
def test_a_bad_option_is_one_warning_and_the_application_serves(options: str, telling: str) -> None:
    found = serve(f"{options}, backend='procfs'")

    assert found["backends"] == ["procfs"] * 3
    (warning,) = found["warnings"]
    assert telling in warning


def test_a_bad_option_raises_where_it_is_written_if_tracing_is_required() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    with pytest.raises(OptionError, match="did you mean 'backend'"):
        KernelTraceMiddleware(app, required=True, backed="bpf")
    with pytest.raises(OptionError, match="backend"):
        KernelTraceMiddleware(app, required=True, backend="ebpf")


def test_a_slip_in_the_environment_is_one_warning_and_no_failure() -> None:
    found = serve(KERNELTRACE_BACKED="procfs", KERNELTRACE_BACKEND="procfs")

    assert found["backends"] == ["procfs"] * 3
    (warning,) = found["warnings"]
    assert "KERNELTRACE_BACKED" in warning
    assert "did you mean KERNELTRACE_BACKEND?" in warning


def test_an_exception_in_a_hook_never_reaches_the_request() -> None:
    found = json.loads(
        server(
            "on_request=lambda scope, stats: 1 / 0, server_timing=lambda scope: {}['no'],"
            "backend='procfs'",
            "",
            (),
            {},
        ).stdout.splitlines()[-1]
    )

    assert found["statuses"] == [200] * 3
    assert found["whole"]
    assert found["read_bytes"] == [1234] * 3
