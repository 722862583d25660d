"""Write cpio archives in the "newc" format, the one that the kernel unpacks as its initramfs.

The format: Documentation/driver-api/early-userspace/buffer-format.rst in the kernel tree.
"""

from __future__ import annotations

import stat


class CpioArchive:
    """Collect members in memory, then give the archive's bytes with `done`."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._inode = 0

    def add_file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._add(name, stat.S_IFREG | mode, content)

    def add_directory(self, name: str) -> None:
        """Add a directory that all may enter."""
        self._add(name, stat.S_IFDIR | 0o755)

    def add_link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def add_character_device(self, name: str, major: int, minor: int) -> None:
        """Add a character device that root may use."""
        self._add(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def done(self) -> bytes:
        """Return the whole archive, ended and padded."""
        self._add("TRAILER!!!", 0)
        self._pad(512)
        return bytes(self._data)

    def _add(
        self, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        path = name.encode() + b"\0"
        header = (
            self._inode,
            mode,
            0,  # uid
            0,  # gid
            1,  # links
            0,  # mtime: the same input gives the same archive
            len(content),
            0,  # major and minor of the device that holds the file
            0,
            *device,
            len(path),
            0,  # checksum: none in this format
        )
        self._data += b"070701" + b"".join(b"%08x" % field for field in header) + path
        self._pad(4)
        self._data += content
        self._pad(4)

    def _pad(self, alignment: int) -> None:
        self._data += bytes(-len(self._data) % alignment)
