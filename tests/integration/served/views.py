"""Views that do a request's units of work in each way that Django has, and tell of the worker."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from asgiref.sync import async_to_sync, sync_to_async
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

from integration.served.jobs import job_of, nobodys
from integration.served.report import charged
from integration.truth.work import Job
from kerneltrace_django.tracing import tracing
from traced import Meter

PART = bytes(1 << 16)
PARTS = 3
# What a server's and the kernel's buffers cannot hold.
MANY_PARTS = 20_000


async def in_turns(job: Job, units: int) -> None:
    """Do units on the event loop, and let others run in between."""
    for turn in range(units):
        job.unit()
        await asyncio.sleep(0.0005 if turn % 8 == 7 else 0)


def sync_view(request: Any, number: int, units: int) -> HttpResponse:
    job_of(request).units(units)
    return HttpResponse("x")


async def async_view(request: Any, number: int, units: int) -> HttpResponse:
    await in_turns(job_of(request), units)
    return HttpResponse("x")


def sync_threads(request: Any, number: int, units: int) -> HttpResponse:
    """Work in a thread, on an event loop of its own, and here."""
    job = job_of(request)
    worker = threading.Thread(target=job.units, args=(units // 3,))
    worker.start()
    async_to_sync(in_turns)(job, units // 3)
    worker.join()
    job.units(units - units // 3 * 2)
    return HttpResponse("x")


async def async_tasks(request: Any, number: int, units: int) -> HttpResponse:
    """Work in tasks, in Django's thread for sync code, and in one of the loop's."""
    job, part = job_of(request), units // 4
    await asyncio.gather(
        in_turns(job, part),
        in_turns(job, units - 3 * part),
        sync_to_async(job.units)(part),
        asyncio.to_thread(job.units, part),
    )
    return HttpResponse("x")


def sync_stream(request: Any, number: int, units: int) -> StreamingHttpResponse:
    job, part = job_of(request), units // (PARTS + 1)

    def parts() -> Iterator[bytes]:
        for _ in range(PARTS):
            job.units(part)
            yield b"part"

    job.units(units - PARTS * part)
    return StreamingHttpResponse(parts())


async def async_stream(request: Any, number: int, units: int) -> StreamingHttpResponse:
    job, part = job_of(request), units // (PARTS + 1)

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(PARTS):
            await in_turns(job, part)
            yield b"part"

    await in_turns(job, units - PARTS * part)
    return StreamingHttpResponse(parts())


def sync_error(request: Any, number: int, units: int) -> HttpResponse:
    job_of(request).units(units)
    raise KeyError(number)


async def async_error(request: Any, number: int, units: int) -> HttpResponse:
    await in_turns(job_of(request), units)
    raise KeyError(number)


def sync_left(request: Any, number: int, units: int) -> StreamingHttpResponse:
    """Stream more than anybody will read."""
    job = job_of(request)

    def parts() -> Iterator[bytes]:
        try:
            for turn in range(MANY_PARTS):
                if turn < units - 1:
                    job.unit()
                yield PART
        finally:
            job.unit()

    return StreamingHttpResponse(parts())


async def async_left(request: Any, number: int, units: int) -> StreamingHttpResponse:
    job = job_of(request)

    async def parts() -> AsyncIterator[bytes]:
        try:
            for turn in range(MANY_PARTS):
                if turn < units - 1:
                    job.unit()
                yield PART
        finally:
            job.unit()

    return StreamingHttpResponse(parts())


def slept(request: Any, number: int, units: int) -> HttpResponse:
    """Sleep so many milliseconds, and measure that without us."""
    with Meter() as meter:
        time.sleep(units / 1000)
    request.measured = {
        "blocked_ns": meter.blocked_ns,
        "running_ns": meter.cpu_ns + meter.run_queue_ns,
    }
    return HttpResponse("x")


def busy(request: Any) -> JsonResponse:
    """Tell who serves; long enough that the next request at once goes to another worker."""
    time.sleep(0.05)
    return JsonResponse({"pid": os.getpid(), "parent": os.getppid()})


def totals(request: Any) -> JsonResponse:
    """Tell what this worker did for nobody, and what nobody was charged."""
    time.sleep(0.05)
    tracer = tracing().tracer()
    assert tracer is not None
    return JsonResponse(
        {
            "pid": os.getpid(),
            "nobodys": nobodys.calls(),
            "unattributed": charged(tracer.unattributed()),
            "late": charged(tracer.late()),
            "health": tracer.health(),
        }
    )


WORK = (sync_view, async_view, sync_threads, async_tasks, sync_stream, async_stream)
ERRORS = (sync_error, async_error)
urlpatterns = [
    path("-/busy", busy),
    path("-/totals", totals),
    *(
        path(f"{view.__name__}/<int:number>/<int:units>", view)
        for view in (*WORK, *ERRORS, sync_left, async_left, slept)
    ),
]
