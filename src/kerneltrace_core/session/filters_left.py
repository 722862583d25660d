"""Whether an interface's clsact qdisc still has filters, asked by rtnetlink(7)."""

from __future__ import annotations

import os
import socket
import struct

__all__ = ["filters_left"]

HEADER = struct.Struct("=IHHII")
MESSAGE = struct.Struct("=BxxxiIII")
RTM_NEWTFILTER, RTM_GETTFILTER = 44, 46
DONE, ERROR = 3, 2
REQUEST, DUMP = 0x1, 0x300
PARENTS = (0xFFFFFFF2, 0xFFFFFFF3)  # ingress and egress of clsact
BYTES = 1 << 16


def filters_left(interface: int) -> bool:
    """Tell whether there are filters, anybody's, at an interface. Raises OSError."""
    return any(_has_filters(interface, parent) for parent in PARENTS)


def _has_filters(interface: int, parent: int) -> bool:
    family = socket.AF_UNSPEC
    message = MESSAGE.pack(family, interface, 0, parent, 0)
    size = HEADER.size + len(message)
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE) as asked:
        asked.send(HEADER.pack(size, RTM_GETTFILTER, REQUEST | DUMP, 1, 0) + message)
        found = False
        while True:
            answer = asked.recv(BYTES)
            at = 0
            while at + HEADER.size <= len(answer):
                length, what, _, _, _ = HEADER.unpack_from(answer, at)
                if what == DONE:
                    return found
                if what == ERROR:
                    code = -struct.unpack_from("=i", answer, at + HEADER.size)[0]
                    raise OSError(code, os.strerror(code))
                found = found or what == RTM_NEWTFILTER
                at += max(length + 3 & ~3, HEADER.size)
