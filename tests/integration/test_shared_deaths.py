"""Workers that are killed, at any moment and in any way, leave nothing that is not cleaned up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from integration.served.servers import GUNICORN, Kind, started
from integration.shared.killing import survive
from integration.shared.kinds import CONF, RUN, SITE

pytestmark = pytest.mark.integration

# `make test-deaths` asks for 500.
KILLS = int(os.environ.get("KERNELTRACE_TEST_KILLS", "40"))
WORKERS = 4
KIND = Kind("gunicorn", f"{GUNICORN} {CONF} --workers {WORKERS} {SITE}", WORKERS)


@pytest.mark.parametrize("before", [(), RUN], ids=["inherited", "handed over"])
def test_random_kills_under_load_leave_the_survivors_exact_and_nothing_behind(
    before: tuple[str, ...], open_tmp_path: Path
) -> None:
    with started(KIND, open_tmp_path, ready="/health", before=before) as server:
        survive(server, KILLS, WORKERS, seed=len(before))
