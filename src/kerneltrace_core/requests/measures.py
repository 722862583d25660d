"""What a backend measures: the fields of KernelStats that are numbers and not None."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["OFF", "Measures"]


@dataclass(frozen=True)
class Measures:
    """What the backend in use measures; everything else is None in the stats.

    ``causes``: time blocked by cause. ``calls``: system calls by name. ``call_times``: their
    durations. ``files``: bytes of read and write. ``net``: bytes on sockets. ``retransmits``,
    ``block``, ``faults``: those counters. ``processes``: forks and execs. ``loop``: the request
    is served on an event loop; one that has a thread to itself neither waits for a loop nor
    holds one.
    """

    backend: str = "off"
    ledger: bool = False
    causes: bool = False
    calls: bool = False
    call_times: bool = False
    files: bool = False
    net: bool = False
    retransmits: bool = False
    block: bool = False
    disk_bytes: bool = False
    faults: bool = False
    processes: bool = False
    loop: bool = True


OFF = Measures()
