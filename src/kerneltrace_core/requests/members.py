"""Members: the processes that share loaded programs, and how one becomes a member."""

from __future__ import annotations

import time
from collections.abc import Iterable
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from kerneltrace_core._native import lib, sharing
from kerneltrace_core.errors import KernelTraceError

__all__ = [
    "Member",
    "State",
    "leave",
    "quit_index",
    "read_member",
    "read_members",
    "register",
    "take_index",
]

# struct kt_registration: process, thread, act, done, key, epoch, padding.
_REGISTRATION = Struct("<IIIIQII")
# struct kt_member: state, tgid, epoch, padding, key, since_ns.
_MEMBER = Struct("<IIIIQQ")
REGISTER, LEAVE, JOIN, QUIT = range(4)
# A kernel may refuse a thread's storage while another use of it on this CPU has lost the CPU.
PAUSES_SECONDS = (0.0, 0.001, 0.002)


class State(IntEnum):
    """What became of the process that has an index; enum kt_member_state."""

    FREE = 0
    LIVE = 1
    LEFT = 2
    DEAD = 3
    TAKEN = 4


class Member(NamedTuple):
    """One index as the kernel has it. ``tgid`` is of the first pid namespace."""

    state: State
    tgid: int
    epoch: int
    key: int
    since_ns: int

    @property
    def available(self) -> bool:
        """Whether a process with the key can take the index."""
        return self.state in (State.FREE, State.DEAD)


def read_members(members_fd: int, indexes: Iterable[int]) -> dict[int, Member]:
    """Return the members at some indexes; 2 us each."""
    return {index: read_member(members_fd, index) for index in indexes}


def read_member(members_fd: int, index: int) -> Member:
    """Return the member at an index."""
    element = sharing.read_element(members_fd, index, _MEMBER.size)
    state, tgid, epoch, _, key, since = _MEMBER.unpack(element)
    return Member(State(state), tgid, epoch, key, since)


def write_key(members_fd: int, index: int, key: int) -> None:
    """Set, before anybody joins, what a process has to know to take an index."""
    sharing.write_element(members_fd, index, _MEMBER.pack(0, 0, 0, 0, key, 0))


def take_index(register_fd: int, process: int, key: int = 0) -> int | None:
    """Make the calling process the member at an index; None: it is another's, or the key is wrong.

    Returns its epoch there. Above 1 the index had a member before, whose numbers its region may
    still hold. The process keeps the index until it dies or takes another.
    """
    context = _run(register_fd, "join kernel side", process, act=JOIN, key=key)
    return int(context[5]) if context[3] else None


def quit_index(register_fd: int, process: int) -> bool:
    """Have nothing more charged to the calling process; tell whether it was a member."""
    return bool(_run(register_fd, "leave kernel side", process, act=QUIT)[3])


def register(register_fd: int, process: int, thread: int) -> None:
    """Have the calling thread charged through the region's thread entry; 2 us."""
    for pause in PAUSES_SECONDS:
        if pause:
            time.sleep(pause)
        if _run(register_fd, "register thread", process, thread)[3]:
            return
    raise KernelTraceError(
        "register thread: this process is no member any more, or the kernel has no memory "
        "for the thread's storage"
    )


def leave(register_fd: int) -> None:
    """Have the calling thread charged to nobody any more."""
    if not _run(register_fd, "unregister thread", 0, act=LEAVE)[3]:
        raise KernelTraceError("unregister thread: the kernel did not")


def _run(
    register_fd: int, what: str, process: int, thread: int = 0, act: int = REGISTER, key: int = 0
) -> tuple[int, ...]:
    context = bytearray(_REGISTRATION.pack(process, thread, act, 0, key, 0, 0))
    lib.run_program(register_fd, context, what)
    return _REGISTRATION.unpack(context)
