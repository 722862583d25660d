"""The life of a map's descriptor: closed, forked, pinned, frozen, mapped."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.map_layouts import U32, U64, layout_of
from harness.map_object import created, map_object, memory_for_maps, read
from harness.nobody import as_nobody
from harness.tiers import Require
from kerneltrace_core._native import maps
from kerneltrace_core.errors import ClosedError, MapError, OptionError, UnsupportedError
from kerneltrace_core.kernel.support import Support
from kerneltrace_core.maps.kinds import MapType
from kerneltrace_core.maps.opening import open_pinned

pytestmark = [pytest.mark.kernel, pytest.mark.unprivileged]

HASH = layout_of(MapType.HASH, U32, U64, 8)


@pytest.fixture(autouse=True)
def memory(require: Require) -> None:
    require("memory for maps", probe=memory_for_maps)


def holds(map_id: int) -> list[str]:
    """Return this process's descriptors of a map."""
    found = []
    for entry in Path("/proc/self/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            if f"map_id:\t{map_id}\n" in entry.read_text():
                found.append(entry.name)
    return found


def test_a_closed_map_never_touches_the_next_owner_of_its_descriptor() -> None:
    with created(HASH) as kept, created(HASH) as closed:
        number = closed.fileno()
        items = iter(closed.items())
        closed.close()
        os.dup2(kept.fileno(), number)  # now another map has the number
        try:
            for use in (
                lambda: closed.update({1: 1}),
                lambda: closed.get(1),
                lambda: closed.pop(1),
                lambda: list(closed),
                lambda: next(items),
                lambda: closed.clear(),
                lambda: closed.info,
                lambda: closed.freeze(),
                lambda: closed.fileno(),
            ):
                with pytest.raises(ClosedError, match="use map made: it is closed"):
                    use()
            closed.close()
            assert os.readlink(f"/proc/self/fd/{number}") == "anon_inode:bpf-map"  # noqa: PTH115
            assert kept.as_dict() == {}
        finally:
            os.close(number)


def test_the_maps_of_an_object_close_with_it_and_leave_no_descriptor() -> None:
    with map_object() as loaded:
        few, mine = loaded.maps["few"], loaded.maps
        map_id = few.info.id
        assert len(holds(map_id)) == 2
        assert mine["few"] is few
        few.close()
        assert mine["few"] is not few  # opened again
    assert holds(map_id) == []
    with pytest.raises(ClosedError, match="use map few: its session is closed"):
        mine["few"]
    with pytest.raises(ClosedError):
        few[1]


def test_a_forked_child_has_no_map_and_no_descriptor_of_one() -> None:
    array = layout_of(MapType.ARRAY, U32, U64, 8, flags=1 << 10)
    with created(array) as shared, shared.mapped(writable=True) as memory:
        shared[0] = 5
        map_id = shared.info.id
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            told = []
            try:
                told.append(f"{holds(map_id)}")
                try:
                    shared[0] = 6
                except ClosedError as error:
                    told.append(str(error))
                try:
                    memory[0] = 7
                except ClosedError as error:
                    told.append(str(error))
                shared.close()
                memory.close()
                with created(array) as own:  # and can have maps of its own
                    own[0] = 8
                    told.append(f"{own[0]}")
            except BaseException as error:  # noqa: BLE001 - a child must not run on into pytest
                told.append(repr(error))
            os.write(writing, "\n".join(told).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as lines:
            told = lines.read().splitlines()
        os.waitpid(child, 0)

        assert told == [
            "[]",
            f"use map made: it is the parent's (pid {os.getpid()}), and this is a forked child "
            "(open it here)",
            "use memory of map made: it is closed",
            "8",
        ]
        assert (shared[0], memory[0]) == (5, 5)


# ---- memory -------------------------------------------------------------------------------


def test_memory_is_shared_with_programs() -> None:
    with map_object() as loaded:
        shared = loaded.maps["shared"]
        with shared.mapped(writable=True) as memory:
            assert (memory.stride, len(memory), len(memory.memory)) == (16, 1000, 16_000)
            memory[999] = {"numbers": (1, 20, 3)}

            loaded.run("through_memory")

            assert loaded.result(0) == 20
            assert memory[999].numbers == shared[999].numbers == (1, 20, 21)
            assert struct.unpack_from("=3I", memory.memory, 999 * 16) == (1, 20, 21)
            shared.close()
            assert memory[999].numbers == (1, 20, 21)  # outlives the map's handle
            view = memory.memory[16:32]
            with pytest.raises(MapError, match="a view of it is in use"):
                memory.close()
            view.release()
        with pytest.raises(ClosedError, match="use memory of map shared: it is closed"):
            memory[0]


def test_memory_to_be_read_is_not_written() -> None:
    with map_object() as loaded, loaded.maps["shared"].mapped() as memory:
        with pytest.raises(MapError, match="mapped to be read"):
            memory[0] = (1, 2, 3)
        with pytest.raises(TypeError):
            memory.memory[0] = 1
        with pytest.raises(KeyError):
            memory[1000]


def test_an_array_that_was_not_made_for_it_has_no_memory() -> None:
    with (
        map_object() as loaded,
        pytest.raises(UnsupportedError, match="it was not made with BPF_F_MMAPABLE"),
    ):
        loaded.maps["results"].mapped()


def test_a_frozen_map_says_so_and_can_still_be_read() -> None:
    with map_object() as loaded:
        shared = loaded.maps["shared"]
        shared[0] = {"numbers": (1, 2, 3)}
        with shared.mapped(writable=True), pytest.raises(MapError, match="is mapped writable"):
            shared.freeze()
        shared.freeze()

        assert shared.info.frozen is True
        with pytest.raises(
            MapError, match="update map shared: it is frozen already, only programs may"
        ):
            shared[0] = {"numbers": (4, 5, 6)}
        with pytest.raises(MapError, match="map memory of map shared: it is frozen already"):
            shared.mapped(writable=True)
        with pytest.raises(MapError, match="it is frozen already"):
            shared.freeze()
        with shared.mapped() as memory:
            assert memory[0].numbers == (1, 2, 3)


# ---- pins -----------------------------------------------------------------------------------


@pytest.fixture
def bpf_folder(require: Require) -> Iterator[Path]:
    """Return a folder with a BPF file system of its own, also nobody's."""
    with tempfile.TemporaryDirectory(prefix="kt-") as name:
        mount = ["mount", "-t", "bpf", "-o", "mode=1777", "bpf", name]

        def mounted() -> Support:
            done = subprocess.run(mount, capture_output=True, text=True, check=False)
            if not done.returncode:
                return Support.yes()
            # Without the folder's name, which is another each time, and mount's advice.
            said = (done.stderr.strip() or "it failed").splitlines()[0]
            return Support.no(said.replace(f"{name}: ", ""))

        Path(name).chmod(0o755)
        require("mounting a BPF file system", probe=mounted)
        if not os.path.ismount(name):
            subprocess.run(mount, check=True)
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", name], check=True)


def test_a_pinned_map_is_found_again(bpf_folder: Path) -> None:
    place = bpf_folder / "table"
    with created(HASH) as table:
        table[1] = 10
        table.pin(place)
        with pytest.raises(MapError, match=r"the name is taken \(open what is there") as told:
            table.pin(place)
        assert told.value.errno == 17
    with open_pinned(place, HASH) as again:
        assert (again.name, again.as_dict()) == ("table", {1: 10})
        again.unpin(place)
        with pytest.raises(MapError, match="No such file"):
            again.unpin(place)
    with pytest.raises(MapError, match="nothing is pinned there") as told:
        open_pinned(place)
    assert told.value.errno == 2


def test_a_name_that_a_bpf_file_system_does_not_take_is_told(bpf_folder: Path) -> None:
    with created(HASH) as table:
        with pytest.raises(MapError, match="takes no names with a dot") as told:
            table.pin(bpf_folder / "table.1")
        assert told.value.errno == errno.EPERM
        with pytest.raises(MapError, match=f"there is no folder {bpf_folder}/none") as told:
            table.pin(bpf_folder / "none" / "table")
        assert told.value.errno == errno.ENOENT
    assert not any("table" in each.name for each in bpf_folder.iterdir())


def test_a_pinned_map_of_another_shape_is_refused(bpf_folder: Path) -> None:
    place = bpf_folder / "table"
    with created(HASH) as table:
        table.pin(place)
    for layout, wrong in (
        (layout_of(MapType.ARRAY, U32, U64, 8), "it is of type hash, not array"),
        (layout_of(MapType.HASH, U64, U64, 8), "its keys have 4 bytes, not 8"),
        (layout_of(MapType.HASH, U32, U32, 8), "its values have 8 bytes, not 4"),
        (layout_of(MapType.HASH, U32, U64, 9), "max_entries 8, made has 9"),
    ):
        with pytest.raises(OptionError, match=wrong):
            open_pinned(place, layout)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with open_pinned(place) as untyped:
        untyped[b"\1\0\0\0"] = b"\2" + bytes(7)
        assert list(untyped.items()) == [(b"\1\0\0\0", b"\2" + bytes(7))]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_map_opened_to_be_read_is_not_changed(bpf_folder: Path) -> None:
    place = bpf_folder / "table"
    with created(HASH) as table:
        table.pin(place)
        table[1] = 10
    with open_pinned(place, HASH, read_only=True) as again:
        assert again.as_dict() == {1: 10}
        assert again.info.access == "read"
        for change in (
            lambda: again.update({1: 2}),
            lambda: again.pop(1),
            lambda: again.clear(),
            lambda: again.__delitem__(1),
        ):
            with pytest.raises(MapError, match="map table: it is open to be read only"):
                change()


def test_a_pinned_program_is_not_taken_for_a_map(bpf_folder: Path) -> None:
    with map_object() as loaded:
        maps.pin(loaded.object.program_fd("landed"), str(bpf_folder / "program"))
        with pytest.raises(OptionError, match="is not one of a map"):
            open_pinned(bpf_folder / "program")


def test_pinning_elsewhere_names_the_file_system(tmp_path: Path) -> None:
    with created(HASH) as table:
        with pytest.raises(MapError, match=r"it is in no BPF file system \(mount one"):
            table.pin(tmp_path / "table")
        with pytest.raises(MapError, match=r"there is no folder .*nowhere"):
            table.pin(tmp_path / "nowhere" / "table")


def test_nobody_pins_and_opens_in_a_folder_that_he_may_write_to(bpf_folder: Path) -> None:
    read("maps")
    place = bpf_folder / "nobodys"

    def act() -> dict[int, int]:
        with created(HASH) as table:
            table[3] = 30
            table.pin(place)
        with open_pinned(place, HASH) as again:
            found: dict[int, int] = again.as_dict()
            return found

    assert as_nobody(act) == {3: 30}


# ---- asynchronous -----------------------------------------------------------------------------


def test_async_iteration_gives_other_tasks_their_turn_and_can_be_cancelled() -> None:
    async def main(table: object) -> tuple[int, int, int]:
        turns = 0

        async def ticking() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        ticker = asyncio.create_task(ticking())
        found = {key: value async for key, value in table.aitems()}  # type: ignore[attr-defined]
        during = turns

        async def forever() -> int:
            count = 0
            while True:
                async for _ in table.aitems():  # type: ignore[attr-defined]
                    count += 1

        endless = asyncio.create_task(forever())
        await asyncio.sleep(0.05)
        endless.cancel()
        ticker.cancel()
        await asyncio.gather(endless, ticker, return_exceptions=True)
        assert endless.cancelled()
        return len(found), sum(found.values()), during

    with created(layout_of(MapType.HASH, U32, U64, 3000)) as table:
        table.update(dict.fromkeys(range(3000), 2))
        entries, total, turns = asyncio.run(main(table))
        assert len(table) == 3000  # nothing is held, nothing is lost

    assert (entries, total) == (3000, 6000)
    assert turns >= 3000 // 256
