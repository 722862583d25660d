"""Say whether something is supported: yes, no, or could not tell, with the reason and the fix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

__all__ = ["Support", "Verdict", "worst"]


class Verdict(Enum):
    """One of three answers; the values are part of the doctor's JSON."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Support:
    """Hold one answer about the kernel, and its evidence.

    ``reason`` says why (may be empty for a yes), ``remedy`` what to do about it, only where
    that is certain, ``errno`` is what the kernel answered, if it was asked. Immutable.
    """

    verdict: Verdict
    reason: str = ""
    remedy: str = ""
    errno: int | None = None

    @classmethod
    def yes(cls, reason: str = "") -> Support:
        """Answer yes."""
        return cls(Verdict.YES, reason)

    @classmethod
    def no(cls, reason: str, remedy: str = "", errno: int | None = None) -> Support:
        """Answer no."""
        return cls(Verdict.NO, reason, remedy, errno)

    @classmethod
    def unknown(cls, reason: str, remedy: str = "", errno: int | None = None) -> Support:
        """Answer that it could not be told."""
        return cls(Verdict.UNKNOWN, reason, remedy, errno)

    @property
    def works(self) -> bool:
        """Tell whether the answer is a certain yes."""
        return self.verdict is Verdict.YES

    def __bool__(self) -> bool:
        # `if support:` would silently read "could not tell" as yes or as no.
        raise TypeError("read Support as a bool: it has three values (use .works or .verdict)")


def worst(answers: Iterable[Support]) -> Support:
    """Return the first no, else the first unknown, else yes.

    A no decides even beside an unknown: whatever the unknown turns out to be, the whole
    does not work.
    """
    told = list(answers)
    for verdict in (Verdict.NO, Verdict.UNKNOWN):
        for answer in told:
            if answer.verdict is verdict:
                return answer
    return Support.yes()
