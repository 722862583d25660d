"""Join by descriptors that a broker hands over a Unix socket, with no capability at all."""

from __future__ import annotations

import os
import socket
import struct
import time
from array import array
from contextlib import ExitStack
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
    PACKET_BYTES,
    PROTOCOL,
    Offer,
    PoolFullError,
    address_of,
    peer_of,
    read_packet,
)

__all__ = ["ask", "join_handed"]

HOW = "socket"
SECONDS = 2.0
# By hand: the first use of json in a forked child is a noticeable part of a join.
REQUEST = b'{"protocol":%d,"abi":"%s","want":"%s"}'
AGAIN, AGAIN_SECONDS = 4, 0.25
# More than any set of programs has; the kernel's own limit is 253.
MOST_DESCRIPTORS = 64


def ask(address: str, want: str, seconds: float = SECONDS) -> tuple[dict[str, Any], list[int]]:
    """Ask a broker; return its answer and the descriptors, which the caller closes.

    Waits for ``seconds`` at most for each of three steps. Raises KernelTraceError, OSError.
    """
    kind = socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC
    # Made before: who has connected and says nothing makes room for others.
    request = REQUEST % (PROTOCOL, abi_hash().encode(), want.encode())
    with socket.socket(socket.AF_UNIX, kind) as connection:
        # Not settimeout: that makes a connect to a full backlog fail at once.
        limit = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        connection.connect(address_of(address))
        _, uid = peer_of(connection)
        # Who hands descriptors over decides what this process maps: nobody else may.
        if uid not in (0, os.geteuid()):
            raise KernelTraceError(f"ask {address}: it is served by uid {uid}, not by this user")
        connection.send(request)
        packet, fds, flags = _receive(connection)
    try:
        if flags & socket.MSG_CTRUNC:
            raise KernelTraceError(
                f"ask {address}: descriptors were lost on the way (raise the limit of open "
                "files, ulimit -n)"
            )
        if not packet:
            raise KernelTraceError(f"ask {address}: closed without an answer")
        return read_packet(packet), fds
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def _receive(connection: socket.socket) -> tuple[bytes, list[int], int]:
    """Return a packet, its descriptors, which no executed program inherits, and flags.

    Not socket.recv_fds: up to Python 3.13 at least it ignores the flags that it is given.
    """
    fds = array("i")
    space = socket.CMSG_LEN(MOST_DESCRIPTORS * fds.itemsize)
    packet, ancillary, flags, _ = connection.recvmsg(PACKET_BYTES, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return packet, list(fds), flags


def join_handed(address: str) -> KernelSide:
    """Join what the broker at ``address`` has loaded; 2 ms.

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
    with ExitStack() as undo:
        for fd in fds:
            undo.callback(os.close, fd)
        offer = Offer.of_answer(answer, len(fds))
        register_fd, region_fd = fds[:DESCRIPTORS_FIRST]
        _check_region(region_fd)
        epoch = members.take_index(register_fd, offer.process, offer.key)
        if epoch is None:
            raise PoolFullError(f"join by socket: index {offer.process} was taken meanwhile")
        side = KernelSide(
            HeldLinks(HOW, fds),
            offer.plan,
            register_fd=register_fd,
            region_fd=region_fd,
            process=offer.process,
            epoch=epoch,
            used=epoch > 1,
        )
        undo.pop_all()
    return side


def _check_region(fd: int) -> None:
    """Look before it is mapped: behind the end of something smaller, a store ends the process."""
    if not sharing.region_fits(fd, REGION_BYTES):
        raise KernelTraceError("join by socket: what was handed over is no region")
