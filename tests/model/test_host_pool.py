"""Memory that other processes are shown: what they may do with it, and what is left of it."""

import fcntl
import gc
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from twinpool.core.errors import SpecError
from twinpool.model.host_pool import SEALS, HostPool, map_pool

SIZE = 3 * 4096 + 100  # not whole pages


@pytest.fixture
def memfd() -> Iterator[int]:
    """Memory that is not sealed."""
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SIZE)
    yield fd
    os.close(fd)


def open_pools() -> list[str]:
    """Of this process: descriptors of memory like ours."""
    links = [str(file.readlink()) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    return [link for link in links if "twinpool-kv" in link]


def test_what_the_owner_writes_others_read() -> None:
    pool = HostPool(SIZE)
    seen = map_pool(pool.fd)
    assert not seen.any()
    pool.bytes[:] = np.arange(SIZE) % 251
    assert np.array_equal(seen, pool.bytes)


def test_others_can_neither_write_nor_resize_nor_unseal() -> None:
    pool = HostPool(SIZE)
    assert fcntl.fcntl(pool.fd, fcntl.F_GET_SEALS) & SEALS == SEALS
    assert not map_pool(pool.fd).flags.writeable
    with pytest.raises(PermissionError):
        mmap.mmap(pool.fd, SIZE)
    for change in (
        lambda: os.pwrite(pool.fd, b"x", 0),
        lambda: os.ftruncate(pool.fd, 0),
        lambda: os.ftruncate(pool.fd, 2 * SIZE),
        lambda: fcntl.fcntl(pool.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
    ):
        with pytest.raises(OSError, match="not permitted"):
            change()
    pool.bytes[:] = 7
    assert (map_pool(pool.fd) == 7).all()


def test_memory_that_its_owner_could_shrink_is_not_mapped(memfd: int) -> None:
    with pytest.raises(ValueError, match="not sealed"):
        map_pool(memfd)
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    with pytest.raises(ValueError, match="not sealed"):
        map_pool(memfd)


def test_no_memory_at_all_is_not_mapped(memfd: int, tmp_path: Path) -> None:
    os.ftruncate(memfd, 0)
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, SEALS)
    with pytest.raises(ValueError, match="empty"):
        map_pool(memfd)
    (tmp_path / "file").write_bytes(b"x" * SIZE)
    with (tmp_path / "file").open("rb") as file, pytest.raises(ValueError, match="not sealed"):
        map_pool(file.fileno())


def test_descriptors_go_with_the_pool_and_the_memory_with_its_last_reader() -> None:
    gc.collect()
    before = len(open_pools())
    pool = HostPool(SIZE)
    pool.bytes[:] = 3
    seen = map_pool(pool.fd)
    assert len(open_pools()) > before
    del pool
    gc.collect()
    assert (seen == 3).all()
    del seen
    assert len(open_pools()) == before


@pytest.mark.parametrize("size", [1 << 62, 1 << 70, 0, 1 << 46])
def test_memory_that_cannot_be_had_is_refused_by_name_and_nothing_is_kept(size: int) -> None:
    gc.collect()
    before = len(open_pools())
    with pytest.raises(SpecError, match=rf"kv\.memory: cannot allocate {size} bytes"):
        HostPool(size)
    assert len(open_pools()) == before


def test_pages_that_are_never_touched_cost_nothing() -> None:
    pool = HostPool(1 << 30)
    pool.bytes[5 << 20] = 1
    assert os.fstat(pool.fd).st_blocks * 512 <= 4 << 20
