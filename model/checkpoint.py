"""Opens a Hugging Face directory's safetensors files, single or sharded, and says which tensor lies where.

Knows names, shapes and dtypes; knows neither what a tensor is for nor where it goes. Pickled weights are never read.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open

from twinpool.core.errors import SpecError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
SAMPLED_BYTES = 4096
SAMPLES_PER_FILE = 4096


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a checkpoint."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class Checkpoint:
    """All tensors of a directory, read one at a time so that no more than one is ever mapped.

    Raises:
        SpecError: a file is missing, truncated or corrupt, or the index and the shards disagree. Names the file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        self.files = _files(folder)
        for file in self.files:
            self._scan(file)
        if (folder / INDEX).exists():
            _check_index(folder, self.entries)

    def read_into(self, name: str, place: torch.Tensor) -> None:
        """Copy a tensor into ``place`` (same shape, any dtype) and unmap its file again."""
        entry = self.entries[name]
        with _opened(entry.file) as file:
            place.copy_(file.get_tensor(name))

    def identity(self) -> str:
        """A hash of config.json, every file's header and samples of its data: equal on every host and path.

        Sampled, as weights may be large; training of any kind changes nearly every byte.
        """
        digest = xxhash.xxh3_128()
        for file in (self.folder / "config.json", *self.files):
            size = file.stat().st_size
            digest.update(f"{file.name}:{size}:".encode())
            step = max(SAMPLED_BYTES, size // SAMPLES_PER_FILE)
            with file.open("rb") as handle:
                if file.suffix == ".safetensors":
                    digest.update(handle.read(8 + int.from_bytes(handle.read(8), "little")))
                for offset in range(0, size, step):
                    handle.seek(offset)
                    digest.update(handle.read(SAMPLED_BYTES))
        return digest.hexdigest()

    def _scan(self, path: Path) -> None:
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118  # not a dict
                if name in self.entries:
                    raise SpecError(f"{path}: {name} is also in {self.entries[name].file.name}")
                part = file.get_slice(name)
                dtype = DTYPES.get(part.get_dtype())
                if dtype is None:
                    raise SpecError(f"{path}: {name} is {part.get_dtype()}; supported: {', '.join(DTYPES)}")
                self.entries[name] = Entry(path, tuple(part.get_shape()), dtype)


def _files(folder: Path) -> tuple[Path, ...]:
    """The single file, or the index's shards in order of name."""
    if not (folder / INDEX).exists():
        if not (folder / SINGLE).exists():
            raise SpecError(f"{folder}: has neither {SINGLE} nor {INDEX}; other formats are not read")
        return (folder / SINGLE,)
    names = sorted(set(_weight_map(folder).values()))
    for name in names:
        if Path(name).name != name:
            raise SpecError(f"{folder / INDEX}: shard {name!r} is not a plain file name")
        if not (folder / name).exists():
            raise SpecError(f"{folder / name}: is missing, but {INDEX} names it")
    return tuple(folder / name for name in names)


def _weight_map(folder: Path) -> dict[str, str]:
    index = folder / INDEX
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SpecError(f"{index}: has no readable weight_map: {error!r}") from error
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise SpecError(f"{index}: weight_map does not map tensors to files")
    if not weight_map:
        raise SpecError(f"{index}: weight_map is empty")
    return weight_map


def _check_index(folder: Path, entries: dict[str, Entry]) -> None:
    weight_map = _weight_map(folder)
    for name, shard in weight_map.items():
        if name not in entries or entries[name].file.name != shard:
            raise SpecError(f"{folder / shard}: {name} is missing, but {INDEX} puts it there")
    for name, entry in entries.items():
        if name not in weight_map:
            raise SpecError(f"{entry.file}: {name} is not in {INDEX}")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise SpecError(f"{path}: is not a whole safetensors file: {error}") from error
