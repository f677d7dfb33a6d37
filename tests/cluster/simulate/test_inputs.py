"""Files that say how long steps take."""

from pathlib import Path

import pytest

from twinpool.cluster.simulate.inputs import read_latency, read_scenario_options
from twinpool.core.errors import SpecError
from twinpool.router.latency_table import TableForm

HEADER = "model,hardware,tensor_parallel,prompt_size,batch_size,token_size,prompt_time,token_time\n"
ROWS = "".join(f"m,gpu,1,{p},{b},10,{p * b / 10},{20 + b}\n" for p in (100, 200) for b in (1, 2, 4))


def test_rows_of_a_table_become_a_form(tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_text(HEADER + ROWS)
    latency = read_latency(path, "m, gpu", 1)
    assert isinstance(latency.table, TableForm)
    assert latency.table.seconds(100.0, 0.0, 0.0, 0.0) == pytest.approx(0.01)
    assert (latency.model, latency.machine, latency.tensor_parallel) == ("m", "gpu", 1)


def test_too_few_rows_are_refused_with_the_file(tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_text(HEADER + "m,gpu,1,100,1,10,10,20\n")
    with pytest.raises(SpecError, match=r"rows\.csv"):
        read_latency(path, "m,gpu", 1)


@pytest.mark.parametrize(("text", "expected"), [("auto", "auto"), ("1GiB", 2**30), ("4096", 4096)])
def test_memory_is_read_as_in_the_yaml(text: str, expected: int | str):
    assert read_scenario_options(kv_memory=text).kv_memory == expected


def test_a_gpu_gets_its_whole_name():
    assert read_scenario_options(hardware="h100").hardware == "H100-SXM"
