"""What a broker and a joining process say to each other, over a Unix socket of packets.

The joining process sends ``{"protocol": 1, "abi": HASH, "want": "join"}``. The answer is
``{"ok": true, "process": INDEX, "key": KEY, "plan": {...}}`` with the descriptors of the
registering program, of the region and of every link; or ``{"ok": false, "error": TEXT}``.
``"want": "status"`` is answered without descriptors.
"""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import dataclass
from typing import Any

from kerneltrace_core.errors import FormatError, KernelTraceError
from kerneltrace_core.requests.plan import Plan

__all__ = [
    "PACKET_BYTES",
    "PROTOCOL",
    "VARIABLE",
    "Offer",
    "PoolFullError",
    "address_of",
    "peer_of",
    "read_packet",
    "write_packet",
]

PROTOCOL = 1
PACKET_BYTES = 8192
VARIABLE = "KERNELTRACE_SOCKET"
# The registering program and the region, before the links.
DESCRIPTORS_FIRST = 2

_PEER = struct.Struct("iII")


class PoolFullError(KernelTraceError):
    """No region is free at this moment; one may be in the next."""


@dataclass(frozen=True)
class Offer:
    """An index with its key, and what is loaded."""

    process: int
    key: int
    plan: Plan

    def as_dict(self) -> dict[str, Any]:
        """Return it as the answer to a process that wants to join."""
        plan = self.plan.as_dict()
        return {"ok": True, "process": self.process, "key": self.key, "plan": plan}

    @classmethod
    def of_answer(cls, answer: dict[str, Any], descriptors: int) -> Offer:
        """Read an answer. Raises PoolFullError, KernelTraceError (its reason), FormatError."""
        if answer.get("ok") is not True:
            kind = PoolFullError if answer.get("again") is True else KernelTraceError
            raise kind(f"join by socket: {answer.get('error', 'refused')}")
        process, key = answer.get("process"), answer.get("key")
        if not isinstance(process, int) or not isinstance(key, int):
            raise FormatError("join by socket: the answer names no index")
        if process < 0 or not 0 <= key < 1 << 64:
            raise FormatError("join by socket: the answer's index is none")
        offer = cls(process, key, Plan.of_dict(answer.get("plan")))
        if descriptors != DESCRIPTORS_FIRST + len(offer.plan.programs):
            raise FormatError(f"join by socket: {descriptors} descriptors came with the answer")
        return offer


def write_packet(data: dict[str, Any]) -> bytes:
    """Encode a packet."""
    return json.dumps(data, separators=(",", ":")).encode()


def read_packet(packet: bytes) -> dict[str, Any]:
    """Decode a packet. Raises FormatError for anything that is no object of JSON."""
    try:
        data = json.loads(packet)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"read packet: {error}") from error
    if not isinstance(data, dict):
        raise FormatError("read packet: it is no object")
    return data


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Return pid and uid of who is at the other end, as the kernel knows; pid 0: not seen here."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    pid, uid, _ = _PEER.unpack(data)
    return pid, uid


def address_of(text: str) -> str:
    """Return what the socket module takes: a leading @ means the abstract namespace."""
    return "\0" + text[1:] if text.startswith("@") else text
