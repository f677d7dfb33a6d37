"""Files that a run writes: never an input, whole or as they were, and named where they cannot be written."""

import os
import threading
from pathlib import Path

import pytest

from twinpool.cluster.simulate.outputs import Outputs, check_outputs
from twinpool.core.errors import SpecError

from .builders import LENGTHS, files, run, told_at_fault

LOAD = ("--rate", "10", "--requests", "10")


def write(path: Path, text: str = "new\n") -> None:
    with Outputs({"--event-log": path, "--timeline": None}) as outputs:
        assert outputs.stream("--timeline") is None
        stream = outputs.stream("--event-log")
        assert stream is not None
        stream.write(text)


def test_a_file_is_replaced_once_all_is_written_and_its_folder_made(tmp_path: Path):
    path = tmp_path / "a" / "b" / "log"
    write(path)
    write(path, "newer\n")
    assert path.read_text() == "newer\n"
    assert [each.name for each in path.parent.iterdir()] == ["log"]


def test_a_run_that_fails_leaves_what_was_there(tmp_path: Path):
    (tmp_path / "log").write_text("old")
    with pytest.raises(SpecError), Outputs({"--event-log": tmp_path / "log", "--timeline": tmp_path / "t"}) as outputs:
        for option in ("--event-log", "--timeline"):
            stream = outputs.stream(option)
            assert stream is not None
            stream.write("half")
        raise SpecError("no")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"log": "old"}


def test_a_full_disk_is_told_with_the_file_and_changes_no_other_output(tmp_path: Path):
    (tmp_path / "log").write_text("old")
    outputs = Outputs({"--event-log": tmp_path / "log", "--timeline": Path("/dev/full")})
    with pytest.raises(SpecError, match=r"^--timeline: /dev/full cannot be written: No space left on device$"):  # noqa: SIM117
        with outputs:
            for option in ("--event-log", "--timeline"):
                stream = outputs.stream(option)
                assert stream is not None
                stream.write("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"log": "old"}


def test_a_link_stays_one_and_its_file_is_replaced(tmp_path: Path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new\n"


def test_a_pipe_is_written_to_and_stays(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    write(tmp_path / "pipe")
    reader.join(timeout=10)
    assert read == ["new\n"]
    assert (tmp_path / "pipe").is_fifo()


def test_a_descriptor_is_written_on_from_where_it_is(tmp_path: Path):
    with (tmp_path / "file").open("w") as file:
        file.write("before\n")
        file.flush()
        write(Path(f"/dev/fd/{file.fileno()}"))
        file.write("after\n")
    assert (tmp_path / "file").read_text() == "before\nnew\nafter\n"


def test_a_device_may_be_two_outputs_and_a_file_may_not(tmp_path: Path):
    null = Path("/dev/null")
    check_outputs([("--timeline", null), ("--event-log", null)], [])
    with pytest.raises(SpecError, match=r"--event-log: .* is the same file as --timeline"):
        check_outputs([("--timeline", tmp_path / "x"), ("--event-log", tmp_path / "." / "y" / ".." / "x")], [])


@pytest.mark.parametrize("option", ["--event-log", "--timeline"])
def test_an_input_is_never_written_over_whatever_its_name(tmp_path: Path, option: str):
    cluster, trace = files(tmp_path)
    (tmp_path / "hard").hardlink_to(trace)
    (tmp_path / "soft").symlink_to(cluster)
    for path in (trace, cluster, str(tmp_path / "hard"), str(tmp_path / "soft")):
        assert "is the same file as" in told_at_fault(cluster, trace, *LOAD, option, path)
    assert f"{option}: {tmp_path} is a folder" in told_at_fault(cluster, trace, *LOAD, option, str(tmp_path))
    assert Path(trace).read_text() == LENGTHS


def test_a_refused_run_leaves_its_outputs_as_they_were(tmp_path: Path):
    log = tmp_path / "log"
    log.write_text("old")
    arguments = files(tmp_path, trace=LENGTHS + "5000,1\n")
    told_at_fault(*arguments, "--rate", "10", "--requests", "99", "--event-log", str(log))
    assert log.read_text() == "old"
    run(*files(tmp_path), *LOAD, "--event-log", str(log))
    assert log.read_text().startswith("'offered' 0 ")
