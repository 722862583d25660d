"""Join by descriptors that a broker hands over a Unix socket, with no capability at all."""

from __future__ import annotations

import os
import time
from typing import Any

from kerneltrace_core._native import sharing
from kerneltrace_core.errors import KernelTraceError
from kerneltrace_core.requests import members
from kerneltrace_core.requests.kernel_side import KernelSide
from kerneltrace_core.requests.programs import REGION_BYTES
from kerneltrace_core.requests.sharing.abi import abi_hash
from kerneltrace_core.requests.sharing.held import HeldLinks
from kerneltrace_core.requests.sharing.offer import (
    DESCRIPTORS_FIRST,
    PROTOCOL,
    Offer,
    PoolFullError,
    read_packet,
    write_packet,
)

__all__ = ["ask", "join_handed", "status"]

HOW = "socket"
SECONDS = 2.0
# Made here: the first use of json in a forked child is a noticeable part of a join.
REQUESTS = {
    want: write_packet({"protocol": PROTOCOL, "abi": abi_hash(), "want": want})
    for want in ("join", "status")
}
AGAIN, AGAIN_SECONDS = 4, 0.25


def ask(address: str, want: str, seconds: float = SECONDS) -> tuple[bytes, list[int]]:
    """Ask a broker for ``join`` or ``status``; return its answer and descriptors, for the caller.

    Waits for ``seconds`` at most for each of three steps. Raises KernelTraceError, OSError.
    """
    packet, fds, lost = sharing.exchange(address, REQUESTS[want], os.geteuid(), seconds)
    if lost or not packet:
        for fd in fds:
            os.close(fd)
        if lost:
            raise KernelTraceError(
                f"ask {address}: descriptors were lost on the way (raise the limit of open "
                "files, ulimit -n)"
            )
        raise KernelTraceError(f"ask {address}: closed without an answer")
    return packet, fds


def status(address: str, seconds: float = SECONDS) -> dict[str, Any]:
    """Return what a broker says of itself, or ``ok`` false and why; waits and raises as ``ask``."""
    packet, fds = ask(address, "status", seconds)
    for fd in fds:
        os.close(fd)
    return read_packet(packet)


def join_handed(address: str) -> KernelSide:
    """Join what the broker at ``address`` has loaded; 1 ms.

    Needs no capability from Linux 5.19 on, or where kernel.unprivileged_bpf_disabled is 0. Raises
    KernelTraceError, with the broker's reason where it refuses, or OSError. A pool that is full is
    asked again for a second: workers that are replaced come before the others have gone.
    """
    for _ in range(AGAIN):
        try:
            return _join(address)
        except PoolFullError:
            time.sleep(AGAIN_SECONDS)
    return _join(address)


def _join(address: str) -> KernelSide:
    answer, fds = ask(address, "join")
    try:
        offer = Offer.decode(answer, len(fds))
        register_fd, region_fd = fds[:DESCRIPTORS_FIRST]
        # Behind the end of something smaller, a store ends the process.
        if not sharing.region_fits(region_fd, REGION_BYTES):
            raise KernelTraceError("join by socket: what was handed over is no region")
        epoch = members.take_index(register_fd, offer.process, offer.key)
        if epoch is None:
            raise PoolFullError(f"join by socket: index {offer.process} was taken meanwhile")
        return KernelSide(
            HeldLinks(HOW, fds),
            offer.plan,
            register_fd=register_fd,
            region_fd=region_fd,
            process=offer.process,
            epoch=epoch,
            used=epoch > 1,
        )
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
