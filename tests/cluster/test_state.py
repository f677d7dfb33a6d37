"""State files: one owner per name, stale files ignored, everything named in refusals."""

import stat
from pathlib import Path

import pytest

from twinpool.cluster.state import ClusterState, StateFolder, default_folder
from twinpool.core.errors import SpecError


def make_state(name: str) -> ClusterState:
    return ClusterState(name, 1, ("127.0.0.1:7070",), "127.0.0.1:6379", "/x.yaml")


def test_a_name_has_one_owner_at_a_time(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    with folder.lock("a"):
        with pytest.raises(SpecError, match="'a' is already up"), folder.lock("a"):
            pass
        with folder.lock("b"):
            pass
    with folder.lock("a"):
        pass


def test_a_state_is_found_while_its_owner_lives_and_gone_afterwards(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    with folder.lock("a"):
        assert folder.read("a") is None
        folder.write(make_state("a"))
        assert folder.read("a") == folder.find(None) == folder.find("a") == make_state("a")
    assert folder.running() == []


def test_a_file_left_by_a_killed_owner_is_no_cluster(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    folder.write(make_state("a"))
    assert folder.read("a") is None
    with pytest.raises(SpecError, match="no cluster is up"):
        folder.find(None)


def test_several_clusters_must_be_told_apart_by_name(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    with folder.lock("a"), folder.lock("b"):
        folder.write(make_state("a"))
        folder.write(make_state("b"))
        with pytest.raises(SpecError, match=r"name one \(up: a, b\)"):
            folder.find(None)
        with pytest.raises(SpecError, match=r"no cluster named 'c' is up here \(up: a, b\)"):
            folder.find("c")
        assert folder.find("b").name == "b"


def test_only_the_user_may_read_the_folder(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    folder.write(make_state("a"))
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "state" / "a.json").stat().st_mode) == 0o600


def test_the_folder_follows_the_environment() -> None:
    assert default_folder({"TWINPOOL_STATE_DIR": "/a"}) == Path("/a")
    assert default_folder({"XDG_STATE_HOME": "/b"}) == Path("/b/twinpool")
    assert default_folder({}) == Path.home() / ".local" / "state" / "twinpool"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match="cannot keep state there"):
        StateFolder(tmp_path / "file" / "state").write(make_state("a"))
