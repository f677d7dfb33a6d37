"""A cluster that a command brings up for itself: what is handed over, and what is left behind afterwards."""

import os
from pathlib import Path

import pytest

from twinpool.cluster import own_cluster as module
from twinpool.cluster.own_cluster import own_cluster
from twinpool.cluster.state import ClusterState, StateFolder
from twinpool.core.errors import Internal, SpecError

VALUES = {"model": {"path": "modelled:instant"}, "pools": {"mixed": {"workers": 1}}}


def open_descriptors() -> set[str]:
    """What they are open on, but for the folder that this lists."""
    names = {str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
    return names - {f"/proc/{os.getpid()}/fd"}


@pytest.mark.parametrize("ends_with_caller", [True, False])
def test_the_lifeline_is_held_while_the_cluster_is_up_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends_with_caller: bool
) -> None:
    given: list[int | None] = []
    state = ClusterState("mine", 1, ("127.0.0.1:1",), "", "")

    def start(path: Path, folder: StateFolder, lifeline_fd: int | None) -> ClusterState:
        given.append(lifeline_fd)
        return state

    def end(state: ClusterState, folder: StateFolder) -> None:
        for descriptor in given:
            assert descriptor is None or os.fstat(descriptor)  # the supervisor ends by our signal, not by our silence

    monkeypatch.setattr(module, "run_detached", start)
    monkeypatch.setattr(module, "take_down", end)
    before = open_descriptors()
    with own_cluster(VALUES, "mine", StateFolder(tmp_path), ends_with_caller=ends_with_caller) as up:
        assert up is state
        assert len(open_descriptors() - before) == int(ends_with_caller)  # both ends of a pipe have one name
    assert open_descriptors() == before
    assert [descriptor is not None for descriptor in given] == [ends_with_caller]


def started(folder: StateFolder, name: str) -> ClusterState:
    """What a supervisor leaves in the state folder."""
    for suffix in ("lock", "log"):
        (folder.path / f"{name}.{suffix}").write_text("")
    return ClusterState(name, 1, ("127.0.0.1:1",), "", "")


def test_a_good_end_leaves_no_file_and_touches_no_other_clusters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(StateFolder(tmp_path), "mine-too")
    monkeypatch.setattr(module, "run_detached", lambda path, folder, *_: started(folder, path.stem))
    monkeypatch.setattr(module, "take_down", lambda *_: None)
    with own_cluster(VALUES, "mine", StateFolder(tmp_path)):
        assert (tmp_path / "mine.log").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine-too.lock", "mine-too.log"]


@pytest.mark.parametrize("fails", ["start", "block", "end"])
def test_the_log_is_kept_where_something_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    def start(path: Path, folder: StateFolder, lifeline_fd: int | None) -> ClusterState:
        state = started(folder, path.stem)
        fail_at("start")
        return state

    def fail_at(place: str) -> None:
        if place == fails:
            raise Internal(place)

    monkeypatch.setattr(module, "run_detached", start)
    monkeypatch.setattr(module, "take_down", lambda *_: fail_at("end"))
    with pytest.raises(Internal, match=fails), own_cluster(VALUES, "mine", StateFolder(tmp_path)):
        fail_at("block")
    assert (tmp_path / "mine.log").exists()


@pytest.mark.slow  # a process
def test_a_start_that_fails_leaves_no_descriptor_open(tmp_path: Path, free_port: int) -> None:
    before = open_descriptors()
    values = {**VALUES, "ray": {"address": f"127.0.0.1:{free_port}"}}
    with pytest.raises(SpecError, match="no Ray at"), own_cluster(values, "mine", StateFolder(tmp_path / "state")):
        pytest.fail("it started")
    assert open_descriptors() == before
    assert "no Ray at" in (tmp_path / "state" / "mine.log").read_text()
