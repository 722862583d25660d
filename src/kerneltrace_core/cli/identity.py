"""Identity: the user that a command runs as, and the end of all privileges."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass

from kerneltrace_core.errors import OptionError

__all__ = ["Identity"]


@dataclass(frozen=True)
class Identity:
    """A user with its groups; ``change`` False: whoever this process is already."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str
    home: str
    change: bool

    @classmethod
    def find(cls, user: str | None) -> Identity:
        """Look a user up by name or uid. Raises OptionError if there is none, or no right to it."""
        if user is None:
            return cls(os.geteuid(), os.getegid(), tuple(os.getgroups()), "", "", False)
        try:
            entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
        except KeyError:
            if not user.isdigit():
                raise OptionError(f"run as {user}: there is no such user") from None
            uid = int(user)
            return cls(uid, uid, (uid,), "", "", True)
        groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
        return cls(entry.pw_uid, entry.pw_gid, groups, entry.pw_name, entry.pw_dir, True)

    def assume(self, *, environment: bool = True) -> None:
        """Become that user without any capability, for good. Raises OSError, KernelTraceError.

        Of this thread alone: the process must not have another.
        """
        # Imported here: it loads libbpf, which a command that is not to be traced goes without.
        from kerneltrace_core._native import sharing

        sharing.bar_capabilities()
        if self.change:
            if (os.geteuid(), os.getegid()) != (self.uid, self.gid):
                os.setgroups(self.groups)
                os.setresgid(self.gid, self.gid, self.gid)
                os.setresuid(self.uid, self.uid, self.uid)
            if environment and self.name:
                os.environ.update(HOME=self.home, USER=self.name, LOGNAME=self.name)
        sharing.drop_capabilities()
