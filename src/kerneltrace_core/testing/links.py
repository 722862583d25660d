"""FakeLink: an attachment without a kernel."""

from __future__ import annotations

from kerneltrace_core.errors import ClosedError, KernelTraceError
from kerneltrace_core.session.probe import Probe

__all__ = ["FakeLink"]


class FakeLink:
    """The attachment of a fake session: it is on or off, and nothing else."""

    def __init__(self, program: str, spec: Probe) -> None:
        self.spec = spec
        self.program = program
        self.error: KernelTraceError | None = None
        self.attached = False
        self.closed = False

    def __repr__(self) -> str:
        state = "attached" if self.attached else "detached"
        return f"<FakeLink {self.spec} to {self.program}: {state}>"

    def attach(self) -> None:
        """Be attached. Raises ClosedError after the session."""
        if self.closed:
            raise ClosedError(
                f"attach {self.spec} to program {self.program}: it or its session is closed"
            )
        self.attached = True

    def detach(self) -> None:
        """Be detached."""
        self.attached = False

    def close(self) -> None:
        """Be detached for good."""
        self.detach()
        self.closed = True

    abandon = close
