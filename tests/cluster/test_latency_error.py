"""The error report, on made-up measurements."""

import json
from pathlib import Path

import pytest

from twinpool.cluster.latency_error import (
    SIZES,
    calibrated_distserve,
    calibrated_table,
    distserve_errors,
    table_errors,
)
from twinpool.core.errors import SpecError
from twinpool.router.hardware import GPUS
from twinpool.router.roofline import SPLITWISE_A100, roofline_form

HEADER = "model,hardware,prompt_size,batch_size,token_size,prompt_time,token_time,tensor_parallel"
RUNS = [(n, 1) for n in (128, 512, 1024, 2048, 4096)] + [(512, batch) for batch in (2, 4, 16, 32)]


def write_table(folder: Path, hardware: str = "a100-80gb") -> Path:
    """Times as the roofline of Llama-2-70B has them."""
    form = roofline_form(SIZES["llama2-70b"], GPUS["A100-80GB"], 8, 1, SPLITWISE_A100)
    lines = [HEADER]
    for prompt, batch in RUNS:
        prompt_s = form.seconds(float(prompt * batch), float(batch * prompt**2), 0.0, 0.0)
        token_s = form.seconds(0.0, 0.0, batch * (prompt + 64.0), float(batch))
        lines.append(f"llama2-70b,{hardware},{prompt},{batch},128,{prompt_s * 1e3},{token_s * 1e3},8")
    path = folder / "table.csv"
    path.write_text("\n".join(lines))
    return path


def write_distserve(folder: Path, content: object) -> Path:
    path = folder / "fits.json"
    path.write_text(json.dumps(content))
    return path


def test_a_form_is_as_far_off_as_it_is(tmp_path: Path) -> None:
    rows = list(table_errors(write_table(tmp_path)))
    assert {row.group for row in rows} == {"llama2-70b a100-80gb tp8"}
    assert len({row.form for row in rows}) == 4
    roofline = [row for row in rows if row.form == "roofline"]
    assert {row.region: row.points for row in roofline} == {
        "prefill_short": 2,
        "prefill_long": 7,
        "decode_small": 7,
        "decode_large": 2,
    }
    assert max(row.p90 for row in roofline) < 1e-6
    original = {row.region: row.median for row in rows if row.form == "the original simulator's rule"}
    assert original["decode_large"] > original["prefill_short"]


def test_hardware_without_a_sheet_is_left_out(tmp_path: Path) -> None:
    assert list(table_errors(write_table(tmp_path, "h100-80gb-pcap"))) == []


def test_calibration_finds_what_the_rows_were_made_with(tmp_path: Path) -> None:
    found = calibrated_table(write_table(tmp_path), "a100-80gb")
    assert found.compute == pytest.approx(SPLITWISE_A100.compute, rel=0.3)


def test_distserve_s_fits_are_taken_at_their_own_values(tmp_path: Path) -> None:
    fit = {
        "prefill": [18.0, 0.1, 7e-6],
        "decoding_smallbs": [20.0, 6e-4, 0.04],
        "decoding_largebs": [7.0, 6e-4, 0.16],
        "decoding_large_small_bs_threshold": 95,
    }
    path = write_distserve(tmp_path, {"facebook/opt-13b": {"1": fit}})
    rows = list(distserve_errors(path))
    assert {row.region for row in rows} == {"prefill_short", "prefill_long", "decode_small", "decode_large"}
    assert max(row.median for row in rows) < 0.2
    assert 0 < calibrated_distserve(path).compute <= 1


@pytest.mark.parametrize("content", [{}, {"facebook/opt-13b": {"1": {"prefill": [1]}}}, {"facebook/opt-13b": []}, []])
def test_a_bad_file_of_fits_is_refused_by_name(tmp_path: Path, content: object) -> None:
    with pytest.raises(SpecError, match=r"fits\.json: is not a file of DistServe's fits"):
        list(distserve_errors(write_distserve(tmp_path, content)))
