"""A Filter refuses what would be misread; a FilterControl never lets a stranger through."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kerneltrace_core.btf.layout import ObjectLayout
from kerneltrace_core.errors import (
    MapError,
    MapFullError,
    MapKeyError,
    OptionError,
    UnsupportedError,
)
from kerneltrace_core.session import filters
from kerneltrace_core.session.cgroups import cgroup_id
from kerneltrace_core.session.filter_maps import FLAGS, FOLLOW, LAYOUT, SETTINGS
from kerneltrace_core.session.filters import Filter, FilterControl

NAMESPACE = 4026531836
TGIDS, TIDS, CGROUPS, UIDS = FLAGS


class FakeMap(dict[Any, Any]):
    """A map of the kernel that tells each change."""

    def __init__(self, told: FakeMaps, entries: dict[Any, Any], room: int = 100) -> None:
        super().__init__(entries)
        self.info = SimpleNamespace(max_entries=room)
        self._told = told

    def __setitem__(self, key: Any, value: Any) -> None:
        self._told.asked()
        if key not in self and len(self) >= self.info.max_entries:
            raise MapFullError("it is full")
        super().__setitem__(key, value)
        self._told.changed()

    def __delitem__(self, key: Any) -> None:
        if key not in self:
            raise MapKeyError("it has none")
        super().__delitem__(key)
        self._told.changed()

    def clear(self) -> None:
        self._told.asked()
        super().clear()
        self._told.changed()


class FakeMaps(dict[str, FakeMap]):
    """The maps of kt_filter.h, and who they let through after every single change."""

    def __init__(self) -> None:
        super().__init__({name: FakeMap(self, {}) for name in FLAGS})
        self[SETTINGS] = FakeMap(self, {0: bytes(16), 1: SimpleNamespace(unfollowed=0)})
        self.watched: list[dict[str, int]] = []
        self.let_through: list[list[bool]] = []

    def wants(self, task: dict[str, int]) -> bool:
        """Decide as kt_current_is_wanted() does."""
        flags = LAYOUT.unpack(self[SETTINGS][0])[0]
        return all(task[name] in self[name] for name, flag in FLAGS.items() if flags & flag)

    def asked(self) -> None:
        """Hear of a change before it is made; may refuse it."""

    def changed(self) -> None:
        self.let_through.append([self.wants(task) for task in self.watched])


@pytest.fixture
def maps(monkeypatch: pytest.MonkeyPatch) -> FakeMaps:
    monkeypatch.setattr(filters, "_pid_namespace", lambda: NAMESPACE)
    return FakeMaps()


def settings(maps: FakeMaps) -> tuple[int, int]:
    flags, namespace, _ = LAYOUT.unpack(maps[SETTINGS][0])
    return flags, namespace


# ---- Filter -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("current_process", 1, "True or False"),
        ("follow_forks", None, "True or False"),
        ("pids", 1, "None or a list of process numbers from 1 to 4194304"),
        ("pids", "12", "None or a list of process numbers from 1 to 4194304"),
        ("pids", [0], "None or a list of process numbers from 1 to 4194304"),
        ("pids", [True], "None or a list of process numbers from 1 to 4194304"),
        ("pids", [2**22 + 1], "None or a list of process numbers from 1 to 4194304"),
        ("tids", [1.0], "None or a list of thread numbers from 1 to 4194304"),
        ("tids", [-1], "None or a list of thread numbers from 1 to 4194304"),
        ("uids", [2**32 - 1], "None or a list of user numbers from 0 to 4294967294"),
        ("uids", ["root"], "None or a list of user numbers from 0 to 4294967294"),
        ("cgroups", "/sys", "None or a list of folders of control groups, or of their numbers"),
        ("cgroups", [b"/x"], "None or a list of folders of control groups, or of their numbers"),
        ("cgroups", [""], "None or a list of folders of control groups, or of their numbers"),
        ("cgroups", [0], "None or a list of folders of control groups, or of their numbers"),
        ("cgroups", [2**64], "None or a list of folders of control groups, or of their numbers"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(option: str, value: Any, allowed: str) -> None:
    with pytest.raises(OptionError) as caught:
        Filter(**{option: value})

    assert str(caught.value) == f"Filter option {option}: {value!r} is not {allowed}"


def test_sets_are_kept_sorted_and_once() -> None:
    found = Filter(pids=[3, 1, 3], uids=range(2), cgroups=["/b", Path("/a"), "/b"], tids=iter([9]))

    assert found.pids == (1, 3)
    assert found.uids == (0, 1)
    assert found.tids == (9,)
    assert found.cgroups == ("/b", Path("/a"))
    assert found == Filter(pids={1, 3}, uids=[1, 0], cgroups=("/b", Path("/a")), tids=[9])


def test_there_must_be_processes_to_follow() -> None:
    with pytest.raises(OptionError, match="follow_forks: True without processes to follow"):
        Filter(follow_forks=True, uids=[0])

    assert Filter(follow_forks=True, pids=[]).pids == ()


# ---- FilterControl ------------------------------------------------------------------


def test_an_object_without_the_header_has_no_control(maps: FakeMaps) -> None:
    empty = ObjectLayout(structs={}, maps={}, variables={}, programs={}, events={}, probes={})

    assert FilterControl.of(maps, empty) is None


def test_every_kind_of_condition_is_written_with_its_flag(maps: FakeMaps) -> None:
    control = FilterControl(maps)

    control.set(Filter(current_process=True, pids=[7], tids=[8], cgroups=[9], uids=[0]))

    assert settings(maps) == (15, NAMESPACE)
    assert dict(maps[TGIDS]) == {os.getpid(): os.getpid(), 7: 7}
    assert (list(maps[TIDS]), list(maps[CGROUPS]), list(maps[UIDS])) == ([8], [9], [0])
    assert control.processes == {os.getpid(), 7}


def test_numbers_of_tasks_alone_need_the_namespace(maps: FakeMaps) -> None:
    FilterControl(maps).set(Filter(uids=[5]))

    assert settings(maps) == (FLAGS[UIDS], 0)


def test_what_is_no_condition_any_more_leaves_the_maps(maps: FakeMaps) -> None:
    control = FilterControl(maps)
    control.set(Filter(pids=[7], tids=[8]))

    control.set(Filter(uids=[9]))
    assert [dict(maps[name]) for name in (TGIDS, TIDS, CGROUPS)] == [{}, {}, {}]
    control.clear()

    assert settings(maps) == (0, 0)
    assert not maps[UIDS]
    assert control.filter == Filter()


FILTERS = (
    Filter(),
    Filter(pids=[]),
    Filter(pids=[1]),
    Filter(pids=[2, 3]),
    Filter(pids=[1, 2], uids=[10]),
    Filter(uids=[10, 11]),
    Filter(tids=[5], uids=[11]),
    Filter(tids=[5, 6], pids=[1]),
    Filter(tids=[7], pids=[2]),
)


def tasks() -> Iterator[dict[str, int]]:
    for tgid in (1, 2, 3, 4):
        for tid in (5, 6, 7):
            for uid in (10, 11, 12):
                yield {TGIDS: tgid, TIDS: tid, UIDS: uid, CGROUPS: 1}


@pytest.mark.parametrize("old", FILTERS)
@pytest.mark.parametrize("new", FILTERS)
def test_at_no_moment_of_a_change_is_a_stranger_let_through_or_a_friend_refused(
    maps: FakeMaps, old: Filter, new: Filter
) -> None:
    control = FilterControl(maps)
    control.set(old)
    watched = list(tasks())
    before = [maps.wants(task) for task in watched]
    maps.watched, maps.let_through = watched, []

    control.set(new)

    after = [maps.wants(task) for task in watched]
    assert maps.let_through
    for moment in maps.let_through:
        for was, now, will in zip(before, moment, after, strict=True):
            assert was or will or not now, "a stranger was let through"
            assert now or not (was and will), "a friend was refused"


def test_followed_children_stay_with_the_process_they_descend_from(maps: FakeMaps) -> None:
    control = FilterControl(maps, follows=True)
    control.set(Filter(pids=[1, 2], follow_forks=True))
    maps[TGIDS].update({11: 1, 22: 2, 222: 2})

    control.set(Filter(pids=[2, 3], follow_forks=True))

    assert settings(maps) == (FLAGS[TGIDS] | FOLLOW, NAMESPACE)
    assert dict(maps[TGIDS]) == {2: 2, 3: 3, 22: 2, 222: 2}


def test_children_leave_when_forks_are_not_followed_any_more(maps: FakeMaps) -> None:
    control = FilterControl(maps, follows=True)
    control.set(Filter(pids=[1], follow_forks=True))
    maps[TGIDS].update({11: 1})

    control.set(Filter(pids=[1]))

    assert settings(maps) == (FLAGS[TGIDS], NAMESPACE)
    assert dict(maps[TGIDS]) == {1: 1}


def test_a_child_that_comes_while_its_parent_leaves_is_removed_as_well(maps: FakeMaps) -> None:
    control = FilterControl(maps, follows=True)
    control.set(Filter(pids=[1], follow_forks=True))
    born = iter([11])

    def have_a_child() -> None:
        if 1 not in maps[TGIDS]:
            for child in born:
                dict.__setitem__(maps[TGIDS], child, 1)

    maps.changed = have_a_child  # type: ignore[method-assign]
    control.set(Filter(pids=[2], follow_forks=True))

    assert next(born, None) is None
    assert dict(maps[TGIDS]) == {2: 2}


def test_a_process_that_ends_meanwhile_is_no_error(maps: FakeMaps) -> None:
    control = FilterControl(maps)
    control.set(Filter(pids=[1, 2, 3]))

    def end() -> None:
        dict.pop(maps[TGIDS], 2, None)

    maps.changed = end  # type: ignore[method-assign]
    control.set(Filter(pids=[4]))

    assert dict(maps[TGIDS]) == {4: 4}


def test_too_many_are_refused_before_anything_changes(maps: FakeMaps) -> None:
    control = FilterControl(maps)
    control.set(Filter(uids=[1]))
    maps[UIDS].info.max_entries = 2
    maps.let_through = []

    with pytest.raises(OptionError) as caught:
        control.set(Filter(pids=[1], uids=[1, 2, 3]))

    assert str(caught.value) == (
        "Filter option uids: 3 given, map kt_filter_uids has room for 2 "
        "(give it more: map_sizes={'kt_filter_uids': 3})"
    )
    assert maps.let_through == []
    assert control.filter == Filter(uids=[1])


def everything(maps: FakeMaps) -> dict[str, Any]:
    """Return what the kernel goes by: the flags, and the sets that they ask for."""
    flags, namespace = settings(maps)
    sets = {name: dict(maps[name]) for name, flag in FLAGS.items() if flags & flag}
    return {"flags": flags, "namespace": namespace, **sets}


def test_children_that_stay_need_room_too_and_are_told_before_anything_changes(
    maps: FakeMaps,
) -> None:
    control = FilterControl(maps, follows=True)
    maps[TGIDS].info.max_entries = 2
    followed = Filter(pids=[1], follow_forks=True)
    control.set(followed)
    maps[TGIDS].update({11: 1})
    before = everything(maps)
    maps.let_through = []

    with pytest.raises(OptionError) as caught:
        control.set(Filter(pids=[1, 2], cgroups=[9], follow_forks=True))

    assert str(caught.value) == (
        "Filter option pids: 2 given and 1 of their children followed, map kt_filter_tgids has "
        "room for 2 (give it more: map_sizes={'kt_filter_tgids': 3})"
    )
    assert maps.let_through == []
    assert (everything(maps), control.filter) == (before, followed)
    control.set(Filter(uids=[5]))
    assert everything(maps) == {"flags": FLAGS[UIDS], "namespace": NAMESPACE, UIDS: {5: b"\1"}}


def test_a_child_that_takes_the_last_room_during_a_change_is_counted_as_not_followed(
    maps: FakeMaps,
) -> None:
    control = FilterControl(maps, follows=True)
    maps[TGIDS].info.max_entries = 2
    control.set(Filter(pids=[1], follow_forks=True))
    born = iter([11])

    def have_a_child() -> None:
        for child in born:
            dict.__setitem__(maps[TGIDS], child, 1)

    maps.asked = have_a_child  # type: ignore[method-assign]
    control.set(Filter(pids=[1, 2], follow_forks=True))

    assert dict(maps[TGIDS]) == {1: 1, 2: 2}
    assert control.unfollowed == 1


@pytest.mark.parametrize("old", FILTERS)
@pytest.mark.parametrize("new", FILTERS)
def test_a_change_that_the_kernel_refuses_at_any_step_is_undone(
    maps: FakeMaps, old: Filter, new: Filter
) -> None:
    control = FilterControl(maps)
    control.set(old)
    watched = list(tasks())
    before, was = everything(maps), [maps.wants(task) for task in watched]
    control.set(new)
    will = [maps.wants(task) for task in watched]
    control.set(old)
    maps.watched = watched
    steps = 0
    while True:
        steps += 1
        last = iter([False] * (steps - 1) + [True])

        def refuse(last: Iterator[bool] = last) -> None:
            if next(last, False):
                raise MapError("the kernel has no memory")

        maps.asked = refuse  # type: ignore[method-assign]
        maps.let_through = []
        try:
            control.set(new)
        except MapError:
            assert {**everything(maps), "namespace": before["namespace"]} == before
            assert control.filter == old
        else:
            break
        for moment in maps.let_through:
            for old_one, now, new_one in zip(was, moment, will, strict=True):
                assert old_one or new_one or not now, "a stranger was let through"
                assert now or not (old_one and new_one), "a friend was refused"
        # What is asked for next holds, whatever was half done.
        del maps.asked
        control.set(Filter(pids=[4]))
        assert dict(maps[TGIDS]) == {4: 4}
        control.set(old)

    assert steps > 1
    assert [maps.wants(task) for task in watched] == will


def test_what_cannot_be_undone_either_is_right_after_the_next_change(maps: FakeMaps) -> None:
    control = FilterControl(maps)
    control.set(Filter(pids=[1]))
    asked = iter(range(100))

    def refuse() -> None:
        if next(asked) > 1:
            raise MapError("the kernel has no memory")

    maps.asked = refuse  # type: ignore[method-assign]
    with pytest.raises(MapError):
        control.set(Filter(uids=[10, 11, 12]))
    del maps.asked

    control.set(Filter(uids=[13]))

    assert everything(maps)[UIDS] == {13: b"\1"}
    assert settings(maps)[0] == FLAGS[UIDS]


def test_a_followed_child_that_is_named_itself_is_never_refused(maps: FakeMaps) -> None:
    control = FilterControl(maps, follows=True)
    control.set(Filter(pids=[1], follow_forks=True))
    maps[TGIDS].update({11: 1})
    maps.watched, maps.let_through = [{TGIDS: 11}], []

    control.set(Filter(pids=[11], follow_forks=True))

    assert dict(maps[TGIDS]) == {11: 11}
    assert all(moment == [True] for moment in maps.let_through)


def test_what_a_follower_left_in_a_set_that_was_no_condition_is_traced_by_nobody(
    maps: FakeMaps,
) -> None:
    control = FilterControl(maps)
    control.set(Filter(uids=[1]))
    dict.__setitem__(maps[TGIDS], 11, 1)  # forked while the set of processes was cleared

    control.set(Filter(pids=[2]))

    assert dict(maps[TGIDS]) == {2: 2}


def test_forks_are_followed_only_where_the_programs_for_it_are_attached(maps: FakeMaps) -> None:
    with pytest.raises(OptionError, match="follow_forks: True in a session that was opened with"):
        FilterControl(maps).set(Filter(current_process=True, follow_forks=True))


def test_children_without_room_are_told(maps: FakeMaps) -> None:
    maps[SETTINGS][1].unfollowed = 3

    assert FilterControl(maps).unfollowed == 3


def test_without_proc_processes_cannot_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: Path) -> None:
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr(Path, "stat", missing)

    with pytest.raises(UnsupportedError, match=r"cannot read /proc/self/ns/pid: .* \(mount /proc"):
        FilterControl(FakeMaps()).set(Filter(pids=[1]))


# ---- control groups -----------------------------------------------------------------


def test_the_number_of_a_control_group_is_its_folders_inode(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("")

    assert cgroup_id(tmp_path) == cgroup_id(str(tmp_path)) == tmp_path.stat().st_ino
    assert cgroup_id(17) == 17


def test_another_folder_is_no_control_group(tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        cgroup_id(tmp_path)

    assert str(caught.value) == (
        f"Filter option cgroups: {str(tmp_path)!r} is no control group of version 2: No such file "
        "or directory (a folder such as /sys/fs/cgroup/system.slice)"
    )
