"""What is told of runs that mix one machine's times with another's numbers."""

from pathlib import Path

import pytest

from twinpool.cluster.simulate.doubts import is_same_gpu, is_same_model

from .builders import LENGTHS, files, run_json

YAML = """\
name: gpus
model: {path: dummy:llama-3-8b, max_model_len: 1000}
pools: {prefill: {workers: 1, hardware: H100-SXM}, decode: {workers: 1, hardware: H100-SXM}}
kv: {memory: 4GiB}
"""
HEADER = "model,hardware,tensor_parallel,prompt_size,batch_size,token_size,prompt_time,token_time\n"


def doubts(folder: Path, model: str, gpu: str) -> list[str]:
    rows = "".join(f"{model},{gpu},1,{p},{b},10,{p * b / 10},{20 + b}\n" for p in (100, 200) for b in (1, 2, 4))
    (folder / "rows.csv").write_text(HEADER + rows)
    options = ("--latency", str(folder / "rows.csv"), "--latency-rows", f"{model},{gpu}")
    return run_json(*files(folder, YAML, LENGTHS), "--rate", "5", "--requests", "5", *options)["doubts"]


def test_rows_of_this_model_and_gpu_are_taken_without_a_word(tmp_path: Path):
    assert doubts(tmp_path, "llama3-8b", "h100-80gb") == []


def test_rows_of_another_model_and_gpu_are_taken_with_a_word_each(tmp_path: Path):
    (told,) = doubts(tmp_path, "llama2-70b", "a100-80gb")
    assert told.startswith("--latency: step times of llama2-70b on a100-80gb tp1 go together with")
    assert "the KV size of dummy:llama-3-8b" in told
    assert "power and price of H100-SXM" in told


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("llama2-70b", "/models/Llama-2-70b-hf", True),
        ("dummy:llama-3-8b", "llama-3-8b", True),
        ("llama2-70b", "llama-3-8b", False),
    ],
)
def test_models_are_told_apart_by_their_names(one: str, other: str, same: bool):
    assert is_same_model(one, other) is same
    assert is_same_model(other, one) is same


@pytest.mark.parametrize(
    ("gpu", "machine", "same"),
    [("H100-SXM", "NVIDIA H100 80GB HBM3", True), ("L4", "l40s", False), ("A100-80GB", "h100-80gb", False)],
)
def test_gpus_are_told_apart_by_the_first_word_of_their_names(gpu: str, machine: str, same: bool):
    assert is_same_gpu(gpu, machine) is same
