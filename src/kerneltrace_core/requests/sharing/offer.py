"""What a broker and a joining process say to each other, over a Unix socket of packets.

The joining process sends ``{"protocol": 1, "abi": HASH, "want": "join"}``. The answer is an Offer
in binary, with the descriptors of the registering program, of the region and of every link; or
``{"ok": false, "error": TEXT}``. ``"want": "status"`` is answered in JSON without descriptors.
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
MARK = b"kt-offer"
# MARK, index, key, bits of the plan.
_OFFER = struct.Struct("=8sIQQ")


class PoolFullError(KernelTraceError):
    """No region is free at this moment; one may be in the next."""


@dataclass(frozen=True)
class Offer:
    """An index with its key, and what is loaded."""

    process: int
    key: int
    plan: Plan

    def encode(self) -> bytes:
        """Return it as the answer to a process that wants to join.

        In binary: to decode JSON is a noticeable part of a join. Only why a group is missing is
        text, where one is.
        """
        missing = write_packet(self.plan.missing) if self.plan.missing else b""
        return _OFFER.pack(MARK, self.process, self.key, self.plan.bits()) + missing

    @classmethod
    def decode(cls, answer: bytes, descriptors: int) -> Offer:
        """Read an answer. Raises PoolFullError, KernelTraceError (its reason), FormatError."""
        if not answer.startswith(MARK) or len(answer) < _OFFER.size:
            refusal = read_packet(answer)
            kind = PoolFullError if refusal.get("again") is True else KernelTraceError
            raise kind(f"join by socket: {refusal.get('error', 'refused')}")
        _, process, key, bits = _OFFER.unpack_from(answer)
        missing = {}
        if len(answer) > _OFFER.size:
            missing = {group: str(why) for group, why in read_packet(answer[_OFFER.size :]).items()}
        offer = cls(process, key, Plan.of_bits(bits, missing))
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
