import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from twinpool.core.errors import SpecError
from twinpool.model.checkpoint import INDEX, SINGLE, Checkpoint


@pytest.fixture
def sharded(write_llama):
    """A checkpoint of two shards and an index."""
    folder = write_llama()
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, held in halves.items():
        save_file({name: tensors[name] for name in held}, folder / shard)
    weight_map = {name: shard for shard, held in halves.items() for name in held}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def edit_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def test_shards_hold_together_what_a_single_file_holds(write_llama, sharded):
    single, shards = Checkpoint(write_llama()), Checkpoint(sharded)
    assert {name: (e.shape, e.dtype) for name, e in single.entries.items()} == {
        name: (e.shape, e.dtype) for name, e in shards.entries.items()
    }
    for name, entry in single.entries.items():
        one, other = torch.empty(entry.shape), torch.empty(entry.shape)
        single.read_into(name, one)
        shards.read_into(name, other)
        assert torch.equal(one, other)


def test_a_missing_shard_is_named(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(SpecError, match=r"model-00002-of-00002\.safetensors: is missing, but .*index\.json names it"):
        Checkpoint(sharded)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_named(write_llama, keep):
    folder = write_llama()
    file = folder / SINGLE
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(SpecError, match=rf"{file}: is not a whole safetensors file: "):
        Checkpoint(folder)


def test_a_file_of_another_format_is_named(write_llama):
    folder = write_llama()
    (folder / SINGLE).write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 3)
    with pytest.raises(SpecError, match=r"model\.safetensors: is not a whole safetensors file"):
        Checkpoint(folder)


def test_pickled_weights_are_not_read(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(
        SpecError, match=r"has neither model\.safetensors nor .*index\.json; other formats are not read"
    ):
        Checkpoint(tmp_path)


def test_a_tensor_that_is_not_where_the_index_puts_it_is_named(sharded):
    edit_index(sharded, lambda index: index.update({"model.norm.weight": "model-00001-of-00002.safetensors"}))
    with pytest.raises(SpecError, match=r"model-00001-of-00002\.safetensors: model\.norm\.weight is missing, but"):
        Checkpoint(sharded)


def test_a_tensor_that_the_index_does_not_name_is_refused(sharded):
    edit_index(sharded, lambda index: index.pop("lm_head.weight"))
    with pytest.raises(SpecError, match=r"lm_head\.weight is not in model\.safetensors\.index\.json"):
        Checkpoint(sharded)


def test_a_tensor_held_twice_is_refused(sharded):
    shutil.copy(sharded / "model-00001-of-00002.safetensors", sharded / "other.safetensors")
    edit_index(sharded, lambda index: index.update(extra="other.safetensors"))
    with pytest.raises(SpecError, match=r"other\.safetensors: \S+ is also in model-00001-of-00002\.safetensors"):
        Checkpoint(sharded)


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd"])
def test_a_shard_outside_the_directory_is_refused(sharded, shard):
    edit_index(sharded, lambda index: index.update({"lm_head.weight": shard}))
    with pytest.raises(SpecError, match=r"is not a plain file name"):
        Checkpoint(sharded)


@pytest.mark.parametrize(
    "content", ["{", "{}", "[]", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}', '{"weight_map": {}}']
)
def test_a_corrupt_index_is_named(sharded, content):
    (sharded / INDEX).write_text(content)
    with pytest.raises(SpecError, match=r"model\.safetensors\.index\.json: (has no readable weight_map|weight_map )"):
        Checkpoint(sharded)


def test_a_tensor_of_an_unsupported_dtype_is_named(write_llama):
    folder = write_llama()
    tensors = load_file(folder / SINGLE)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, folder / SINGLE)
    with pytest.raises(SpecError, match=r"lm_head\.weight is F8_E4M3; supported: F32, BF16, F16"):
        Checkpoint(folder)


def test_the_identity_is_the_contents_and_not_the_place(write_llama, tmp_path):
    folder = write_llama()
    identity = Checkpoint(folder).identity()
    assert Checkpoint(shutil.copytree(folder, tmp_path / "elsewhere")).identity() == identity
    tensors = load_file(folder / SINGLE)
    tensors["model.layers.1.mlp.up_proj.weight"] += 1e-3
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    assert Checkpoint(folder).identity() != identity
