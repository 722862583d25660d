"""When tracing starts in a Django project: with a process's first request, and never before."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from traced import run_python

# Makes a site whose one page reads; `serve` returns how many reads its request was charged.
SITE = """
    import asyncio, os, sys, threading, time
    import integration.django_served as served
    from django_site import MIDDLEWARE, configure

    def page(request, n):
        served.read(n)
        from django.http import HttpResponse
        return HttpResponse("x")

    from django.urls import path
    class Urls:
        urlpatterns = [path("page/<int:n>", page)]

    configure()
    from django.test import override_settings
    override_settings(ROOT_URLCONF=Urls, KERNELTRACE={"REQUIRED": REQUIRED}).enable()
    from django.core.handlers.asgi import ASGIHandler
    from django.core.handlers.wsgi import WSGIHandler
    from kerneltrace_core.requests import RequestTracer
    from kerneltrace_django.signals import kernel_request_finished
    from kerneltrace_django.tracing import tracing

    charged = []
    def keep(stats, **_):
        charged.append(served.reads(stats))
    kernel_request_finished.connect(keep)

    def serve(app, n):
        charged.clear()
        served.call_wsgi(app, f"/page/{n}")
        return charged[0] if charged else None

    def serve_async(app, n):
        charged.clear()
        asyncio.run(served.Client(app, f"/page/{n}").serve())
        return charged[0] if charged else None

    def in_children(count, work):
        told = []
        for number in range(count):
            reading, writing = os.pipe()
            if (pid := os.fork()) == 0:
                try:
                    os.write(writing, str(work(number)).encode())
                except BaseException as error:
                    os.write(writing, repr(error).encode())
                os._exit(0)
            os.close(writing)
            told.append((pid, reading))
        texts = []
        for pid, reading in told:
            texts.append(os.read(reading, 500).decode())
            os.close(reading)
            os.waitpid(pid, 0)
        return texts
"""


@pytest.fixture(autouse=True)
def _bpf(require: Callable[..., None]) -> None:
    require("thread_registration")


def run(script: str, *, required: bool = True) -> list[str]:
    return run_python(SITE.replace("REQUIRED}", f"{required}}}") + script).splitlines()


def test_neither_setting_up_nor_making_handlers_starts_anything() -> None:
    printed = run("""
    WSGIHandler(), ASGIHandler()
    print(RequestTracer._shared, threading.active_count())
    """)

    assert printed == ["None 1"]


def test_the_first_request_starts_it_and_does_not_wait() -> None:
    printed = run(
        """
    app = WSGIHandler()
    print(serve(app, 3))
    deadline = time.monotonic() + 20
    while not tracing().tracer() and time.monotonic() < deadline:
        time.sleep(0.01)
    print(serve(app, 4), serve_async(ASGIHandler(), 5))
    """,
        required=False,
    )

    assert printed == ["None", "4 5"]


def test_where_it_is_required_the_first_request_of_either_kind_is_traced() -> None:
    printed = run("""
    print(serve_async(ASGIHandler(), 5), serve(WSGIHandler(), 6))
    """)

    assert printed == ["5 6"]


def test_workers_forked_from_a_master_that_preloaded_each_have_their_own() -> None:
    printed = run("""
    app = WSGIHandler()
    print(in_children(4, lambda number: (serve(app, 10 + number), serve(app, 20 + number))))
    print(RequestTracer._shared)
    """)

    assert printed == [str([f"({10 + n}, {20 + n})" for n in range(4)]), "None"]


def test_workers_forked_from_a_process_that_traces_each_have_their_own() -> None:
    printed = run("""
    app = WSGIHandler()
    print(serve(app, 1))
    print(in_children(3, lambda number: (serve(app, 10 + number), serve(app, 20 + number))))
    print(serve(app, 2))
    """)

    assert printed == ["1", str([f"({10 + n}, {20 + n})" for n in range(3)]), "2"]
