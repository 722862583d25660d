"""Broker: serves loaded programs to processes that have no privilege, over a Unix socket."""

from __future__ import annotations

import errno
import os
import secrets
import selectors
import socket
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from kerneltrace_core.errors import FormatError, KernelTraceError
from kerneltrace_core.requests import members
from kerneltrace_core.requests.members import Member, State
from kerneltrace_core.requests.programs import LoadedPrograms
from kerneltrace_core.requests.sharing.abi import abi_hash
from kerneltrace_core.requests.sharing.offer import (
    PACKET_BYTES,
    PROTOCOL,
    Offer,
    PoolFullError,
    peer_of,
    read_packet,
    write_packet,
)

__all__ = ["Broker"]

# A client that has not asked by then, or not taken its answer, is cut off.
CLIENT_SECONDS = 2.0
# An index that was offered and not taken goes to another.
OFFER_SECONDS = 5.0
# Who did not take an answer gets no other for so long: what it leaves unread stays in flight.
SULKING_SECONDS = 60.0
# Who comes when there are so many takes the place of the oldest one, which has had its time for
# a first word by then: until that is over the others wait in the backlog.
CLIENTS = 256
FIRST_WORD_SECONDS = 0.1
BACKLOG = 256
NO_DESCRIPTOR_PAUSE_SECONDS = 0.05
LAST_LOOK_SECONDS = 0.2


class _Offered(NamedTuple):
    """To whom an index was offered, until when, and what its epoch was."""

    pid: int = 0
    until: float = 0.0
    epoch: int = 0


class _Client(NamedTuple):
    connection: socket.socket
    pid: int
    safe_until: float
    until: float
    answered: bool


def _lives(pid: int) -> bool:
    """Tell whether a process may still come for what it was offered."""
    if pid == 0:  # of a pid namespace that is not seen from here
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


class Broker:
    """Serve until the main process has ended and the last member with it.

    ``uids`` may ask. Needs no capability itself, and cannot add regions: ``region_fds`` of the
    programs are the pool. One thread; nothing that a client does makes it wait.
    """

    def __init__(
        self, programs: LoadedPrograms, listening: socket.socket, uids: Iterable[int]
    ) -> None:
        self._programs = programs
        self._links = list(programs.link_fds().values())
        self._listening = listening
        self._uids = frozenset(uids)
        self._abi = abi_hash()
        self._keys = {index: secrets.randbits(64) for index in programs.region_fds}
        for index, key in self._keys.items():
            members.write_key(programs.members_fd, index, key)
        self._offered: dict[int, _Offered] = {}
        self._sulking: dict[int, float] = {}
        self._clients: dict[int, _Client] = {}
        self._accepts = False
        self._selector = selectors.DefaultSelector()

    # ---- the loop ---------------------------------------------------------------

    def serve(self, main_pidfd: int, grace_seconds: float = 2.0) -> None:
        """Serve; returns when the main process has ended and nobody was a member for the grace."""
        self._listening.setblocking(False)
        self._selector.register(main_pidfd, selectors.EVENT_READ)
        main_ended, empty_since = False, 0.0
        while True:
            self._accept_if_room(time.monotonic())
            for key, _ in self._selector.select(self._patience(main_ended)):
                if key.fileobj is self._listening:
                    self._accept()
                elif key.fd == main_pidfd:
                    self._selector.unregister(main_pidfd)
                    main_ended, empty_since = True, time.monotonic()
                elif key.fd in self._clients:
                    self._answer(key.fd)
            now = time.monotonic()
            self._cut_off(now)
            if main_ended:
                if self._live():
                    empty_since = now
                elif now - empty_since > grace_seconds:
                    return

    def _patience(self, main_ended: bool) -> float | None:
        now = time.monotonic()
        ends = [client.until - now for client in self._clients.values()]
        if not self._accepts:
            ends.append(self._oldest().safe_until - now)
        if main_ended:
            ends.append(LAST_LOOK_SECONDS)
        return max(0.0, min(ends)) if ends else None

    def _oldest(self) -> _Client:
        return next(iter(self._clients.values()))

    def _accept_if_room(self, now: float) -> None:
        accepts = len(self._clients) < CLIENTS or self._oldest().safe_until <= now
        if accepts and not self._accepts:
            self._selector.register(self._listening, selectors.EVENT_READ)
        elif self._accepts and not accepts:
            self._selector.unregister(self._listening)
        self._accepts = accepts

    def _accept(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(NO_DESCRIPTOR_PAUSE_SECONDS)
            return
        try:
            pid, uid = peer_of(connection)
        except OSError:
            connection.close()
            return
        if uid not in self._uids:
            connection.close()
            return
        if len(self._clients) >= CLIENTS:
            self._hang_up(next(iter(self._clients)))
        connection.setblocking(False)
        now = time.monotonic()
        self._clients[connection.fileno()] = _Client(
            connection, pid, now + FIRST_WORD_SECONDS, now + CLIENT_SECONDS, False
        )
        self._selector.register(connection, selectors.EVENT_READ)
        self._answer(connection.fileno())  # who means it has asked by now

    def _hang_up(self, fd: int) -> None:
        client = self._clients.pop(fd)
        self._selector.unregister(client.connection)
        client.connection.close()

    def _cut_off(self, now: float) -> None:
        for fd, client in list(self._clients.items()):
            if client.until < now:
                if client.answered:
                    self._sulking[client.pid] = now + SULKING_SECONDS
                self._hang_up(fd)
        for pid in [pid for pid, until in self._sulking.items() if until < now]:
            del self._sulking[pid]

    # ---- answers ----------------------------------------------------------------

    def _answer(self, fd: int) -> None:
        client = self._clients[fd]
        try:
            packet = client.connection.recv(PACKET_BYTES)
            if client.answered or not packet:
                self._hang_up(fd)  # it has what it wanted
                return
            answer, descriptors = self._decide(packet, client.pid)
            socket.send_fds(client.connection, [answer], descriptors)
        except BlockingIOError:
            return
        except OSError:
            self._hang_up(fd)
            return
        self._clients[fd] = client._replace(answered=True)

    def _decide(self, packet: bytes, pid: int) -> tuple[bytes, list[int]]:
        try:
            request = read_packet(packet)
            if request.get("protocol") != PROTOCOL or request.get("abi") != self._abi:
                raise KernelTraceError(
                    f"the programs that were loaded are another version's (ABI {self._abi}, "
                    f"asked for {str(request.get('abi'))[:40]}): restart what runs kerneltrace run"
                )
            if request.get("want") == "status":
                return write_packet(self.status()), []
            if request.get("want") != "join":
                raise KernelTraceError("asked for what it does not know")
            if pid in self._sulking:
                raise KernelTraceError("this process did not take an earlier answer")
            offer = self._offer(pid)
        except (FormatError, KernelTraceError) as error:
            full = isinstance(error, PoolFullError)
            return write_packet({"ok": False, "error": str(error), "again": full}), []
        programs = self._programs
        region_fd = programs.region_fds[offer.process]
        return offer.encode(), [programs.register_fd, region_fd, *self._links]

    def status(self) -> dict[str, Any]:
        """Return how it goes, for whom it may concern."""
        return {
            "ok": True,
            "abi": self._abi,
            "pid": os.getpid(),
            "groups": list(self._programs.plan.groups),
            "members": self._live(),
            "regions": len(self._keys),
        }

    def _offer(self, pid: int) -> Offer:
        now = time.monotonic()
        for index in sorted(self._keys, key=lambda index: self._preference(index, pid)):
            member = members.read_member(self._programs.members_fd, index)
            if self._free_for(member, index, pid, now):
                self._offered[index] = _Offered(pid, now + OFFER_SECONDS, member.epoch)
                return Offer(index, self._keys[index], self._programs.plan)
        raise PoolFullError(
            f"all {len(self._keys)} regions are taken by live processes "
            "(kerneltrace run --processes N makes room for more)"
        )

    def _preference(self, index: int, pid: int) -> tuple[bool, bool, int]:
        # What it was offered before, then what nobody was: the first look finds a free one.
        offered = self._offered.get(index)
        return offered is None or offered.pid != pid, offered is not None, index

    def _free_for(self, member: Member, index: int, pid: int, now: float) -> bool:
        offered = self._offered.get(index, _Offered())
        again = offered.pid == pid and pid != 0
        if member.state in (State.LEFT, State.LIVE):  # alive: it may come back, nobody else
            return again
        if not member.available:
            return False
        # Taken since, and free again; or never taken.
        over = member.epoch != offered.epoch or offered.until < now or not _lives(offered.pid)
        return again or over

    def _live(self) -> int:
        found = members.read_members(self._programs.members_fd, self._keys)
        return sum(m.state in (State.LIVE, State.TAKEN) for m in found.values())
