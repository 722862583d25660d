"""What is wrong with a run of the matrix: each request against its own job, and the totals."""

from __future__ import annotations

from typing import Any

from integration.truth.constructs import CONSTRUCTS
from integration.truth.work import CALLS, SENT_BYTES, WRITE_BYTES

Result = dict[str, Any]
BYTES = ("read_bytes", "write_bytes", "net_tx_bytes")
# The interpreter reads files and opens them, a loop writes to wake itself: in the totals only
# what nobody but a job does can be compared.
ONLY_JOBS = (*CALLS, "misses")
# Which of its threads wakes a loop is a matter of timing, so what that writes may be anyone's:
# a byte on asyncio's and trio's sockets, eight on uvloop's eventfd. A job's own are multiples.
LESS_THAN_A_UNIT = {"write_bytes": WRITE_BYTES, "net_tx_bytes": SENT_BYTES}


def sum_of(charged: Result, name: str) -> int | None:
    """Return response and background together, None if it was not measured."""
    response = charged["response"].get(name)
    if response is None:
        return None
    return int(response + ((charged["background"] or {}).get(name) or 0))


def wrongs_of(row: Result) -> list[str]:
    """Return what is wrong with one request's numbers."""
    construct = CONSTRUCTS[row["name"]]
    if row["done"] != row["planned"] + construct.extra:
        return [f"{row['path']}: did {row['done']} units of {row['planned']} + {construct.extra}"]
    if len(row["charged"]) != 1:
        return [f"{row['path']}: told {len(row['charged'])} times"]
    charged = row["charged"][0]
    response, background = charged["response"], charged["background"] or {}
    wrongs = []
    for name, own in row["expected"].items():
        expected = 0 if construct.phase == "nobody" else own
        found = sum_of(charged, name)
        if found is None:
            continue
        if construct.threaded and name in LESS_THAN_A_UNIT:
            found -= (found - expected) % LESS_THAN_A_UNIT[name]
        if found != expected:
            wrongs.append(f"{row['path']}: {name} is {found}, not {expected}")
        later = background.get(name) or 0
        if construct.phase == "response" and name in ONLY_JOBS and later:
            wrongs.append(f"{row['path']}: {later} of {name} in the background")
        if construct.phase == "background" and name in ONLY_JOBS and response.get(name):
            wrongs.append(f"{row['path']}: {response[name]} of {name} in the response")
    if response["attribution"] != "exact":
        wrongs.append(f"{row['path']}: attribution is {response['attribution']}")
    return wrongs


def rows_of(result: Result, name: str) -> list[Result]:
    """Return a construct's requests, without those that only warmed up."""
    return [row for row in result["rows"] if row["name"] == name and not row["warm_up"]]


def wrongs_in(result: Result) -> list[str]:
    """Return what is wrong with all requests of a run."""
    wrongs = list(result["failures"])
    for row in result["rows"]:
        if not row["warm_up"]:
            wrongs += wrongs_of(row)
    return wrongs


def totals_of(result: Result) -> dict[str, tuple[int, int]]:
    """Return by call: how often all of the run's jobs made it, and how often it was charged."""
    totals = {}
    for name in ONLY_JOBS:
        charged = result["unattributed"][name] + result["late"][name]
        for row in result["rows"]:
            charged += sum(sum_of(one, name) or 0 for one in row["charged"])
        totals[name] = (result["done"][name], charged)
    return totals
