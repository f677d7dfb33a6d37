"""Plots are drawn of every kind of run, and refused early where they cannot be."""

from pathlib import Path

import pytest

from twinpool.cluster.simulate.plots import (
    check_library,
    make_folder,
    plot_attainment,
    plot_latencies,
    plot_paths,
    plot_utilisation,
)
from twinpool.core.errors import SpecError
from twinpool.simulator.rate_search import RatePoint, RateSearch
from twinpool.simulator.sketch import Sketch

from .builders import files, run

PNG = b"\x89PNG\r\n"


def is_drawn(path: Path) -> bool:
    data = path.read_bytes()
    return data.startswith(PNG) if path.suffix == ".png" else b"<svg" in data and b"</svg>" in data


@pytest.mark.slow
def test_a_sweep_draws_latencies_utilisation_and_attainment(tmp_path: Path):
    folder, stems = tmp_path / "new" / "plots", ("attainment", "latencies", "utilisation")
    run(*files(tmp_path), "--requests", "20", "--sweep", "rate=10:10", "--plot", str(folder))
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{stem}.{end}" for stem in stems for end in ("png", "svg")
    ]
    assert all(is_drawn(path) for path in folder.iterdir())
    assert sorted(plot_paths(folder)) == sorted(folder.iterdir())


def test_runs_of_nothing_can_be_drawn(tmp_path: Path):
    nothing = {name: [] for name in ("prefill", "decode", "mixed", "kv_used")}
    empty = {"start_s": 0.0, "bucket_s": 0.1, "pools": {"mixed": nothing}}
    found = RateSearch((RatePoint(1.0, ((0.0, {}),)),), None, 1.0, True, 0.02)
    written = plot_latencies(tmp_path, {"ttft_s": Sketch()}, {}) + plot_utilisation(tmp_path, empty)
    assert all(is_drawn(path) for path in written + plot_attainment(tmp_path, found, 0.9))


def test_a_drawing_is_the_same_each_time(tmp_path: Path):
    sketch = Sketch()
    sketch.add_many([0.1, 0.2, 4.0])
    for folder in ("one", "two"):
        make_folder(tmp_path / folder)
        plot_latencies(tmp_path / folder, {"ttft_s": sketch}, {"ttft_s": 1.0})
    assert (tmp_path / "one" / "latencies.svg").read_text() == (tmp_path / "two" / "latencies.svg").read_text()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match=r"--plot: .* cannot be made"):
        make_folder(tmp_path / "file")


def test_no_folder_is_made_where_the_input_is_bad(tmp_path: Path):
    with pytest.raises(SpecError, match="--goal-class"):
        run(*files(tmp_path), "--rate", "10", "--goal-class", "nobody", "--plot", str(tmp_path / "plots"))
    assert not (tmp_path / "plots").exists()


def test_a_drawing_that_cannot_be_written_is_named_and_leaves_nothing_beside(tmp_path: Path):
    (tmp_path / "latencies.svg").mkdir()
    with pytest.raises(SpecError, match=r"--plot: .*latencies\.svg cannot be written: Is a directory"):
        plot_latencies(tmp_path, {"ttft_s": Sketch()}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latencies.png", "latencies.svg"]


def test_without_the_library_one_line_says_how_to_get_it():
    with pytest.raises(SpecError, match=r"--plot: needs no_such_library: pip install 'twinpool\[plot\]'"):
        check_library("no_such_library")
