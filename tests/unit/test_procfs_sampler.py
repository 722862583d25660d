"""The procfs backend's sums, with counters that are known: no thread loses another's."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import pytest

from kerneltrace_core.requests import layout, procfs

THREADS, SAMPLES = 4, 3_000


class Counters:
    """A thread whose every counter is one higher at each reading."""

    def __init__(self, **kinds: bool) -> None:
        self.now = self.cpu_ns = 0
        self.readings = 0
        self.last = self.read()

    def read(self) -> tuple[int, ...]:
        self.readings += 1
        return (self.readings,) * (len(procfs.PER_SLOT) + len(procfs.PER_BANK))


@pytest.fixture
def sampler(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(procfs, "_Thread", Counters)
    # No time on a CPU: what a clock shows has passed, less one of the run queue, is blocked.
    monkeypatch.setattr(time, "thread_time_ns", lambda: 0)
    return procfs.ProcfsSampler(memoryview(bytearray(layout.SLOTS_OFFSET + layout.SLOT_BYTES)))


def test_threads_that_charge_one_slot_lose_nothing(sampler: Any) -> None:
    def work() -> None:
        sampler.enter(0)
        for sample in range(1, SAMPLES + 1):
            sampler.sample(0, 11 * sample)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)

    start = layout.SLOTS_OFFSET // 8
    words = sampler._words
    found = {word: words[start + word] for word in (*procfs.PER_SLOT, *procfs.PER_BANK)}
    assert found == dict.fromkeys(found, THREADS * SAMPLES)
    assert words[start + procfs.OTHER] == 10 * THREADS * SAMPLES
