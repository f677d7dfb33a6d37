import pytest
import torch

from twinpool.kernels.tiles import Gpu, choose_decode_tiles, choose_prefill_tiles, decode_rows, gpu_of, interpreting


@pytest.mark.parametrize(("rows", "block_m"), [(1, 16), (16, 16), (17, 64), (64, 64)])
def test_the_smallest_tile_that_holds_the_rows_is_chosen(rows, block_m):
    assert choose_decode_tiles(Gpu("cuda", 90), 128, torch.bfloat16, rows).block_m == block_m


@pytest.mark.parametrize(("dtype", "rows"), [(torch.bfloat16, 0), (torch.bfloat16, 65), (torch.float32, 17)])
def test_more_rows_than_the_largest_tile_are_refused(dtype, rows):
    with pytest.raises(ValueError, match=f"{rows} rows of {dtype}: the decode kernel takes 1 to"):
        choose_decode_tiles(Gpu("cuda", 90), 128, dtype, rows)


def test_every_ratio_of_heads_up_to_16_fits_the_smallest_tile_of_any_dtype():
    assert all(decode_rows(dtype)[0] >= 16 for dtype in (torch.float16, torch.bfloat16, torch.float32))


def test_hopper_prefills_in_tiles_of_128_by_64_with_8_warps():
    tiles = choose_prefill_tiles(Gpu("cuda", 90), 128, torch.bfloat16)
    assert (tiles.block_m, tiles.block_n, tiles.num_warps) == (128, 64, 8)


def test_wide_heads_have_one_buffer_where_shared_memory_is_small():
    assert [Gpu("cuda", arch).stages(256) for arch in (80, 86, 89, 90)] == [3, 2, 2, 3]


def test_a_cpu_interprets_what_hopper_would_run():
    assert gpu_of(torch.device("cpu")) == Gpu("cuda", 90)
    assert not interpreting()
