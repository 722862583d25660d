"""Link: a probe's attachment, which can be detached and attached again."""

from __future__ import annotations

import logging
import os
import threading

from kerneltrace_core.bpf.object import BpfObject
from kerneltrace_core.errors import AttachError, ClosedError, KernelTraceError
from kerneltrace_core.session.attach import attach_spec
from kerneltrace_core.session.attached import Attached
from kerneltrace_core.session.forking import no_fork_meanwhile
from kerneltrace_core.session.probe import Probe

__all__ = ["Link"]

logger = logging.getLogger("kerneltrace")

CLOSED = "it or its session is closed"


class Link:
    """The attachment of one program to one probe, for as long as its session lives.

    ``attach`` and ``detach`` may be called any number of times, also while events flow, from any
    thread, or a signal handler; each waits for one that is under way in another thread. ``close``
    is for good: the session forgets it. ``error`` is why an optional probe is not
    attached. In a child after fork nothing is attached here, and the parent's stays as it is.
    """

    def __init__(self, opened: BpfObject, program: str, spec: Probe) -> None:
        self.spec = spec
        self.program = program
        self.error: KernelTraceError | None = None
        self._object = opened
        self._attached: Attached | None = None
        self._process = os.getpid()
        self._loaded = True
        self._closed = False
        # Reentrant: a signal handler may close the session in the midst of an attach.
        self._lock = threading.RLock()

    @classmethod
    def refused(cls, opened: BpfObject, program: str, spec: Probe, error: KernelTraceError) -> Link:
        """Return the link of an optional probe whose program is not loaded; it stays detached.

        Logs why.
        """
        link = cls(opened, program, spec)
        link._loaded = False
        link._leave_out(error)
        return link

    def __repr__(self) -> str:
        state = "attached" if self.attached else "detached"
        return f"<Link {self.spec} to {self.program}: {state}>"

    @property
    def attached(self) -> bool:
        """Tell whether the program runs there now."""
        return self._attached is not None and self._process == os.getpid()

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called, by its session or for itself."""
        return self._closed

    def attach(self) -> None:
        """Attach; does nothing if it is attached.

        A failure of an optional probe is logged once and kept in ``error``. Otherwise raises
        AttachError, PrivilegeError or UnsupportedError, and ClosedError after the session.
        """
        if self._process != os.getpid():
            raise self._unusable("it is the parent process's")
        with self._lock:
            if self._closed:
                raise self._unusable(CLOSED)
            if self._attached is not None or not self._loaded:
                return
            try:
                # Or a close meanwhile would free the program, and its number be another's.
                with no_fork_meanwhile(), self._object.in_use():
                    self._attached = attach_spec(self._object, self.program, self.spec)
            except KernelTraceError as error:
                if not self.spec.optional:
                    raise
                self._leave_out(error)
            else:
                self.error = None
            if self.closed:  # by a signal handler, which found nothing attached
                self.detach()
                raise self._unusable(CLOSED)

    def _leave_out(self, error: KernelTraceError) -> None:
        if self.error is None:
            logger.warning("optional probe %s is left out: %s", self.spec, error)
        self.error = error

    def _unusable(self, cause: str) -> ClosedError:
        return ClosedError(f"attach {self.spec} to program {self.program}: {cause}")

    def detach(self) -> None:
        """Detach; does nothing if it is not attached. After it the program runs there no more.

        May wait some milliseconds for the kernel. What the program has written before stays.
        """
        if self._process != os.getpid():
            self.abandon()
            return
        with self._lock, no_fork_meanwhile():
            attached, self._attached = self._attached, None
            if attached is None:
                return
            try:
                attached.close()
            except AttachError:  # refused, and nothing was done
                self._attached = attached
                raise

    def close(self) -> None:
        """Detach for good, and be forgotten by the session. May be repeated."""
        self._closed = True
        self.detach()

    def abandon(self) -> None:
        """In a forked child: give up what is the parent's, which stays attached."""
        # Not under the lock: another thread of the parent may have held it at the fork.
        self._closed = True
        attached, self._attached = self._attached, None
        if attached is not None:
            attached.abandon()
