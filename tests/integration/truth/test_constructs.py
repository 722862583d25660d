"""Every construct, all at once: each request has exactly its own numbers, on every event loop."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from integration.truth.constructs import CONSTRUCTS
from integration.truth.routes import PREFIXES
from integration.truth.verdicts import rows_of, totals_of, wrongs_in, wrongs_of

pytestmark = pytest.mark.integration

LOOPS = ("asyncio", "uvloop", "trio")
CONCURRENCIES = (1, 64, 256)
Matrix = Callable[..., dict[str, Any]]


def kind_of(loop: str) -> str:
    return "trio" if loop == "trio" else "asyncio"


@pytest.mark.parametrize("concurrency", CONCURRENCIES)
@pytest.mark.parametrize("loop", LOOPS)
def test_every_request_is_served_and_traced(matrix: Matrix, loop: str, concurrency: int) -> None:
    result = matrix(loop, concurrency)

    assert result["failures"] == []
    assert result["backend"] == "bpf"
    assert result["health"]["status"] == "ok"
    assert result["health"]["threads_refused"] == 0
    assert result["health"]["requests_open"] == 0
    sizes = [row["planned"] for row in result["rows"] if not row["warm_up"]]
    assert len(sizes) == len(set(sizes)) >= 2 * concurrency


@pytest.mark.parametrize("concurrency", CONCURRENCIES)
@pytest.mark.parametrize(
    ("loop", "name"),
    [
        (loop, name)
        for loop in LOOPS
        for name, each in CONSTRUCTS.items()
        if each.loops in ("any", kind_of(loop))
    ],
)
def test_a_request_is_charged_its_own_work_and_no_other(
    matrix: Matrix, require: Callable[..., None], loop: str, name: str, concurrency: int
) -> None:
    require("python:" + ".".join(map(str, CONSTRUCTS[name].since)))

    rows = rows_of(matrix(loop, concurrency), name)

    assert len(rows) >= len(PREFIXES)
    assert [wrong for row in rows for wrong in wrongs_of(row)] == []


@pytest.mark.parametrize("concurrency", CONCURRENCIES)
@pytest.mark.parametrize("loop", LOOPS)
def test_requests_and_unattributed_and_late_make_all(
    matrix: Matrix, loop: str, concurrency: int
) -> None:
    totals = totals_of(matrix(loop, concurrency))

    assert {name: charged for name, (_, charged) in totals.items()} == {
        name: done for name, (done, _) in totals.items()
    }


@pytest.mark.parametrize("loop", LOOPS)
def test_a_request_made_in_process_has_numbers_of_its_own(matrix: Matrix, loop: str) -> None:
    inner = [row for row in matrix(loop, 64)["rows"] if row["inner"] and not row["warm_up"]]

    assert len(inner) >= 2 * len(PREFIXES)
    assert [wrong for row in inner for wrong in wrongs_of(row)] == []


@pytest.mark.parametrize("concurrency", CONCURRENCIES)
def test_eager_tasks_belong_to_the_request_that_starts_them(
    matrix: Matrix, require: Callable[..., None], concurrency: int
) -> None:
    require("python:3.12")

    result = matrix("eager", concurrency)

    assert wrongs_in(result) == []
    assert all(done == charged for done, charged in totals_of(result).values())


def test_debug_mode_changes_no_number(matrix: Matrix) -> None:
    assert wrongs_in(matrix("debug", 64)) == []


@pytest.mark.parametrize("concurrency", CONCURRENCIES)
def test_a_task_factory_that_the_user_sets_later_makes_the_tasks_and_no_number_changes(
    matrix: Matrix, concurrency: int
) -> None:
    result = matrix("factories", concurrency, batches=2)

    assert wrongs_in(result) == []
    assert len(result["user_tasks"]) == 2
    assert all(made > 0 for made in result["user_tasks"])
    assert all(done == charged for done, charged in totals_of(result).values())


@pytest.mark.parametrize("loop", LOOPS)
def test_the_step_in_python_gives_the_same_numbers_as_the_one_in_c(
    program: Callable[..., subprocess.CompletedProcess[str]], loop: str
) -> None:
    arguments = ("integration.truth.matrix", "--concurrency", "64", "--loop", loop)
    result = json.loads(program(*arguments, KERNELTRACE_PURE_PYTHON="1").stdout)

    assert result["health"]["engine"] == "python"
    assert wrongs_in(result) == []
    assert all(done == charged for done, charged in totals_of(result).values())
