"""String tables, as ELF and BTF have them: NUL-terminated names at offsets."""

from __future__ import annotations

from kerneltrace_core.errors import FormatError

__all__ = ["Strings"]

# Names may share their tails, but no compiler makes a table say this many times its size.
SHARED_AT_MOST = 16
ROOM_AT_LEAST = 1 << 16


class Strings:
    """Names by offset in one table. Not thread-safe.

    ``where`` begins its errors. All names together have a limit: a hostile table of one long
    string would else be copied from every offset.
    """

    def __init__(self, table: bytes, where: str) -> None:
        self._table = table
        self._where = where
        self._known: dict[int, str] = {0: ""} if table[:1] == b"\0" else {}
        self._room = max(ROOM_AT_LEAST, SHARED_AT_MOST * len(table))

    def at(self, offset: int) -> str:
        """Return the name at ``offset``; what is no UTF-8 in it is escaped.

        Raises FormatError when the offset is outside of the table or no NUL follows.
        """
        known = self._known.get(offset)
        if known is not None:
            return known
        end = self._table.find(b"\0", offset)
        if not 0 <= offset <= end:
            raise FormatError(
                f"{self._where}: no string at 0x{offset:x} of 0x{len(self._table):x} bytes"
            )
        self._room -= end - offset
        if self._room < 0:
            raise FormatError(f"{self._where}: its strings overlap too often to be a name each")
        name = self._table[offset:end].decode(errors="backslashreplace")
        self._known[offset] = name
        return name
