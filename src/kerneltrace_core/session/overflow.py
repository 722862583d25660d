"""What waits for a slow consumer, and what goes when there is no space for more."""

from __future__ import annotations

import threading
from collections import deque

from kerneltrace_core.errors import OptionError

__all__ = ["POLICIES", "Batch", "Queue"]

POLICIES = ("drop_oldest", "drop_newest", "block")
# Frames, how many of the matching records in them to skip, and how many to deliver after that.
Batch = tuple[bytes, int, int]


class Queue:
    """Hold at most ``capacity`` records, in the batches in which they came. Thread-safe.

    ``drop_oldest`` forgets what has waited longest, ``drop_newest`` what comes now. ``block``
    has the ring not drained while there is no ``space``: the kernel's programs then find it full
    and count the loss. ``dropped`` is exact under all of them.
    """

    def __init__(self, capacity: int, policy: str) -> None:
        if policy not in POLICIES:
            raise OptionError(f"make queue: overflow {policy!r} is not one of {POLICIES}")
        if capacity < 1:
            raise OptionError(f"make queue: a capacity of {capacity} records (it is 1 or more)")
        self.capacity = capacity
        self.policy = policy
        self.records = 0
        self.dropped = 0
        self._batches: deque[Batch] = deque()
        # Reentrant: a collection of garbage may close a session in the midst of anything.
        self._lock = threading.RLock()

    @property
    def space(self) -> int:
        """How many records may still come."""
        return self.capacity - self.records

    def put(self, frames: bytes, records: int) -> None:
        """Add all matching records of the frames, of which there are so many."""
        with self._lock:
            surplus = self.records + records - self.capacity
            skip = 0
            if surplus > 0:
                self.dropped += surplus
                if self.policy == "drop_oldest":
                    skip = max(surplus - self.records, 0)
                    self._forget(surplus - skip)
                records -= surplus if self.policy != "drop_oldest" else skip
            if records > 0:
                self._batches.append((frames, skip, records))
                self.records += records

    def _forget(self, surplus: int) -> None:
        self.records -= surplus
        while surplus:
            frames, skip, take = self._batches[0]
            if take > surplus:
                self._batches[0] = (frames, skip + surplus, take - surplus)
                return
            self._batches.popleft()
            surplus -= take

    def take(self) -> Batch | None:
        """Remove and return the oldest batch, None if there is none."""
        with self._lock:
            if not self._batches:
                return None
            batch = self._batches.popleft()
            self.records -= batch[2]
            return batch

    def clear(self) -> int:
        """Remove everything; return how many records there were."""
        with self._lock:
            records, self.records = self.records, 0
            self._batches.clear()
            return records
