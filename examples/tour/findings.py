"""What the numbers say, in sentences; each is there only if the numbers are."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from tour.paint import WIDTH, bold, causes, ms
from tour.table import mean, mean_causes

Request = dict[str, Any]
HELD_NS = 20_000_000
NOTABLE_NS = 1_000_000
WAITED_NS = 10_000_000


def findings(requests: list[Request]) -> Iterator[str]:
    """Yield the lines."""
    yield bold("What this says")
    found = [
        text
        for text in (held_loop(requests), lock(requests), disk(requests), later(requests))
        if text
    ]
    if not found:
        yield "  nothing stands out"
    for text in found:
        yield textwrap.fill(text, WIDTH, initial_indent="  - ", subsequent_indent="    ")


def span(request: Request) -> tuple[int, int]:
    """Return when a response began and ended, in ns of CLOCK_MONOTONIC."""
    background = request["background"]
    end = request["ended_ns"] - (background["wall_ns"] if background else 0)
    return end - request["wall_ns"], end


def waited_for(holder: Request, requests: list[Request]) -> list[Request]:
    """Return those that were under way meanwhile and certainly waited for the loop.

    One that waited much longer than the holder held the loop waited for others as well: it is not
    laid to the holder's charge.
    """
    begin, end = span(holder)
    found = []
    for request in requests:
        first, last = span(request)
        meanwhile = first < end and last > begin and request is not holder
        if meanwhile and WAITED_NS <= request["loop_wait_ns"] <= 1.2 * holder["loop_block_max_ns"]:
            found.append(request)
    return found


def cost(waiting: list[Request]) -> int:
    """Return how long they waited together."""
    return sum(request["loop_wait_ns"] for request in waiting)


def held_loop(requests: list[Request]) -> str | None:
    """Tell the holder that most others waited for, and the one that waited longest."""
    holders = [each for each in requests if (each["loop_block_max_ns"] or 0) >= HELD_NS]
    victims = {id(holder): waited_for(holder, requests) for holder in holders}
    if not holders:
        return None
    holder = max(holders, key=lambda each: cost(victims[id(each)]))
    waiting = victims[id(holder)]
    reasons = causes(holder["blocked_by"])
    why = f" ({reasons[0][0]} {ms(reasons[0][1])} ms)" if reasons else ""
    text = (
        f"GET {holder['route']} held the event loop for {ms(holder['loop_block_max_ns'])} ms in "
        f"one step{why}"
    )
    if not waiting:
        return f"{text}; no other request was ready meanwhile."
    routes = ", ".join(sorted({request["route"] for request in waiting}))
    worst = max(waiting, key=lambda request: request["loop_wait_ns"])
    others = "other request" if len(waiting) == 1 else "other requests"
    return (
        f"{text}. {len(waiting)} {others} under way ({routes}) waited for the loop meanwhile, "
        f"10 ms or more each. The worst, a GET {worst['route']}, took {ms(worst['wall_ns'])} ms: "
        f"on the CPU {ms(worst['cpu_ns'])} ms, ready but kept waiting "
        f"{ms(worst['loop_wait_ns'])} ms."
    )


def lock(requests: list[Request]) -> str | None:
    """Tell the route whose threads wait for locks."""
    chosen = [each for each in requests if each["route"] == "/lock"]
    waited = mean_causes(chosen, "thread_blocked_by").get("lock", 0)
    if waited < NOTABLE_NS:
        return None
    return (
        f"GET /lock spends {ms(waited)} ms of the {ms(mean(chosen, 'thread_ns'))} ms in its thread "
        f"waiting for a lock (mean; the lock's holder sleeps 5 ms)."
    )


def disk(requests: list[Request]) -> str | None:
    """Tell the route that waits for the disk longest."""
    best: tuple[float, str] | None = None
    for route in sorted({request["route"] for request in requests}):
        chosen = [each for each in requests if each["route"] == route]
        taken, count = mean(chosen, "fsync_ns"), mean(chosen, "fsyncs")
        if taken and count and (best is None or taken > best[0]):
            where = (
                "a worker thread" if mean(chosen, "thread_ns") else "the event loop's own thread"
            )
            text = (
                f"GET {route} makes {count:.1f} fsyncs per request, which take {ms(taken)} ms, on "
                f"{where}."
            )
            best = taken, text
    return best[1] if best else None


def later(requests: list[Request]) -> str | None:
    """Tell the route that works on after its response."""
    chosen = [each for each in requests if each["route"] == "/background"]
    after = mean([each["background"] for each in chosen if each["background"]], "wall_ns")
    if not chosen or after is None or after < NOTABLE_NS // 2:
        return None
    return (
        f"GET /background answered in {ms(mean(chosen, 'wall_ns'))} ms and worked on for "
        f"{ms(after)} ms; that is kept apart from the response."
    )
