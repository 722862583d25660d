"""Work of a known amount for each request of the served site, and for nobody."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from integration.truth.work import Desk, Job

FOLDER = Path(os.environ["SERVED_FOLDER"])

# Opened when the site is loaded: under --preload in the master, for all of its workers.
desk = Desk(FOLDER)
nobodys = Job(desk, 0)


def job_of(request: Any) -> Job:
    """Return the job of a request to /chain/view/number/units."""
    if not hasattr(request, "job"):
        request.job = Job(desk, int(request.path.rpartition("/")[2]))
    job: Job = request.job
    return job
