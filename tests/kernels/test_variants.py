from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from twinpool.kernels import (
    add_rms_norm,
    ahead_of_time,
    decode_attention,
    decode_plan,
    merge_partials,
    prefill_attention,
    rope_kv_write,
    silu_mul,
)
from twinpool.kernels.ahead_of_time import TARGETS, MachineCode, compile_variant, recall
from twinpool.kernels.code_rules import MULTIPROCESSORS, faults, programs_per_multiprocessor
from twinpool.kernels.paged_kv import DTYPES, HEAD_DIMS
from twinpool.kernels.prefill_plan import plan_prefill
from twinpool.kernels.tiles import choose_decode_tiles, choose_prefill_tiles, decode_rows
from twinpool.kernels.variants import NAMES, gpu_of_target, list_variants

REPRESENTATIVE = [
    ("sm_90", "decode_attention", "d128-bf16-rows16"),
    ("sm_90", "decode_attention", "d80-fp16-rows64-gather"),
    ("sm_90", "prefill_attention", "d128-bf16"),
    ("sm_90", "prefill_attention", "d64-bf16-gather-window"),
    ("sm_90", "merge_partials", "d128-bf16"),
    ("sm_90", "plan_decode", "sequences64"),
    ("sm_90", "add_rms_norm", "width4096-bf16-add"),
    ("sm_90", "silu_mul", "bf16"),
    ("sm_90", "rope_kv_write", "d128-bf16-norm"),
    ("sm_80", "prefill_attention", "d128-bf16"),
    ("sm_80", "decode_attention", "d64-fp32-rows16"),
    ("sm_100", "decode_attention", "d128-bf16-rows16"),
    ("gfx942", "decode_attention", "d128-bf16-rows16"),
    ("gfx942", "prefill_attention", "d64-fp16"),
]
GOOD = MachineCode("prefill_attention", "d128-bf16", "sm_90", 8, 193, 0, 0, 131072, 24, 0, 48, 48, 3)


def variant_named(target, kernel, name):
    return next(v for v in list_variants(target) if (v.kernel_name, v.name) == (kernel, name))


@pytest.mark.slow
@pytest.mark.parametrize(("target", "kernel", "name"), REPRESENTATIVE)
def test_a_variant_compiles_to_code_without_faults(target, kernel, name):
    variant = variant_named(target, kernel, name)
    code = compile_variant(variant, target)
    assert code.registers > 0
    assert faults(variant, code) == []
    assert programs_per_multiprocessor(code) >= 1


class Recorder:
    """Stands in for a kernel, and keeps what it was launched with."""

    def __init__(self, kernel):
        self.kernel, self.launches = kernel, []

    def __getattr__(self, name):
        return getattr(self.kernel, name)

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.launches.append((arguments, options))


@pytest.fixture
def recorders(monkeypatch):
    modules = (decode_attention, decode_plan, merge_partials, prefill_attention, add_rms_norm, silu_mul, rope_kv_write)
    names = [f"_{module.__name__.rpartition('.')[2]}_kernel" for module in modules]
    names[1] = "_plan_decode_kernel"
    made = [Recorder(getattr(module, name)) for module, name in zip(modules, names, strict=True)]
    for module, name, recorder in zip(modules, names, made, strict=True):
        monkeypatch.setattr(module, name, recorder)
    return made


def launch_all(target, head_dim, dtype, block_tokens, group, window):
    gpu, cpu = gpu_of_target(target), torch.device("cpu")
    q = torch.zeros(8, 2 * group, head_dim, dtype=dtype)
    kv = torch.zeros(3, 2, 2, block_tokens, head_dim, dtype=dtype)
    table = torch.zeros(2, 1, dtype=torch.int32)
    bounds, context = torch.tensor([0, 1, 8]).int(), torch.tensor([1, 7]).int()
    for rows in decode_rows(dtype):
        if rows < group:
            continue
        tiles = choose_decode_tiles(gpu, head_dim, dtype, rows)
        options = {"window": window, "most_queries": rows // group}
        plan = decode_plan.make_decode_plan(2, 2 * group, 2, head_dim, tiles, 8, cpu, **options)
        decode_plan.plan_decode(plan, bounds, context)
        decode_attention.decode_attention(q, kv, table, bounds, context, plan, tiles, q)
    tiles = choose_prefill_tiles(gpu, head_dim, dtype)
    lengths = (np.array([1, 7], np.int32), np.array([1, 7], np.int32))
    listed = plan_prefill(*lengths, group=group, block_m=tiles.block_m, most_short=1, window=window)
    prefill_attention.prefill_attention(
        q, kv, table, bounds, context, torch.from_numpy(listed), tiles, q, window=window
    )


def launch_elementwise(dtype, head_dim):
    for width in (512, 1008, 2048, 4096, 8192, 16384):
        rows = torch.zeros(2, width, dtype=dtype)
        for added in (None, rows):
            add_rms_norm.add_rms_norm(rows, added, rows[0], 1e-6, rows)
    silu_mul.silu_mul(torch.zeros(2, 96, dtype=dtype), torch.zeros(2, 48, dtype=dtype))
    qkv, kv = torch.zeros(2, 6, head_dim, dtype=dtype), torch.zeros(3, 2, 2, 16, head_dim, dtype=dtype)
    numbers = torch.zeros(2, dtype=torch.int64)
    for norm in (None, qkv[0, :4]):
        rope_kv_write.rope_kv_write(qkv, qkv[0], qkv[0], numbers, numbers, kv, norm, 1e-6)


def signature_of(argument):
    if isinstance(argument, torch.Tensor):
        return {torch.int32: "*i32", torch.int64: "*i64"}.get(argument.dtype) or f"*{NAMES[argument.dtype]}"
    return "fp32" if isinstance(argument, float) else "i32"


def described(kernel, arguments, options):
    """A launch as the list of variants would have it."""
    sizes = {name: options.pop(name) for name in ("num_warps", "num_stages") if name in options}
    names = kernel.arg_names[: len(arguments)]
    assert kernel.arg_names[len(arguments) :] == list(options)
    types = tuple((name, signature_of(argument)) for name, argument in zip(names, arguments, strict=True))
    return types, tuple(sorted(options.items())), (sizes.get("num_warps", 4), sizes.get("num_stages", 1))


@pytest.mark.parametrize("target", TARGETS)
def test_whatever_is_launched_is_a_listed_variant_and_each_of_them_may_be(recorders, target):
    for head_dim, dtype, block_tokens, window in product(HEAD_DIMS, DTYPES, (16, 128), (None, 5)):
        launch_all(target, head_dim, dtype, block_tokens, 7, window)
        launch_elementwise(dtype, head_dim)
    launched = {described(r.kernel, *launch) for r in recorders for launch in r.launches}
    listed = set()
    for variant in list_variants(target):
        order = [name for name in variant.kernel.arg_names if name in variant.signature]
        types = tuple((name, variant.signature[name]) for name in order)
        listed.add((types, tuple(sorted(variant.constants.items())), (variant.num_warps, variant.num_stages)))
    plans = {variant for variant in listed if variant[1][0][0] == "LANES"}
    assert launched - listed == set()
    assert listed - launched - plans == set()


def test_what_is_listed_as_a_multiple_of_16_is_one_and_other_numbers_make_no_variant(recorders):
    aligned = {variant.kernel_name: variant.aligned for variant in list_variants("sm_90")}
    launch_all("sm_90", 80, torch.float16, 16, 7, 5)
    launch_elementwise(torch.float16, 80)
    for recorder in recorders:
        kernel_name = recorder.__name__.strip("_").removesuffix("_kernel")
        for arguments, _ in recorder.launches:
            for name, value in zip(recorder.arg_names, arguments, strict=False):
                if name in aligned[kernel_name]:
                    assert (value.data_ptr() if isinstance(value, torch.Tensor) else value) % 16 == 0
                else:
                    assert name in recorder.do_not_specialize


def test_variants_have_names_of_their_own():
    for target in TARGETS:
        names = [(variant.kernel_name, variant.name) for variant in list_variants(target)]
        assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({}, None),
        ({"spill_bytes": 4}, "4 bytes spilled"),
        ({"stack_bytes": 8}, "8 of stack"),
        ({"shared_bytes": 227 * 1024 + 1}, "bytes of shared memory"),
        ({"wgmma": 0, "mma": 9}, "no HGMMA"),
        ({"wgmma": 0}, "no matrix instruction"),
        ({"wide_async_copies": 47}, "47 of 48 asynchronous copies"),
        ({"async_copies": 0, "wide_async_copies": 0}, "0 of 0 asynchronous copies"),
        ({"buffers": 1}, "1 buffers"),
    ],
)
def test_code_that_is_not_as_it_must_be_has_a_fault(change, complaint):
    variant = variant_named("sm_90", "prefill_attention", "d128-bf16")
    found = "; ".join(faults(variant, replace(GOOD, **change)))
    assert found == "" if complaint is None else complaint in found


@pytest.mark.parametrize(
    ("target", "num_warps", "registers", "shared_bytes", "programs"),
    [
        ("sm_90", 4, 32, 0, 16),  # 64 warps
        ("sm_90", 4, 128, 0, 4),
        ("sm_90", 4, 129, 0, 3),
        ("sm_90", 8, 193, 1024, 1),
        ("sm_90", 4, 32, 75 * 1024, 3),
        ("sm_80", 4, 32, 75 * 1024, 2),
        ("sm_90", 1, 16, 0, 32),  # as many as there may be
        ("gfx942", 4, 128, 0, 4),
        ("gfx942", 4, 129, 0, 3),
        ("gfx942", 4, 64, 33 * 1024, 1),
    ],
)
def test_programs_share_registers_shared_memory_and_warps(target, num_warps, registers, shared_bytes, programs):
    code = replace(GOOD, target=target, num_warps=num_warps, registers=registers, shared_bytes=shared_bytes)
    assert programs_per_multiprocessor(code) == programs
    assert set(MULTIPROCESSORS) == set(TARGETS)


@pytest.mark.slow
def test_what_was_compiled_once_is_remembered_for_the_same_source_and_constants_only(tmp_path, monkeypatch):
    variant = variant_named("sm_90", "merge_partials", "d64-fp16")
    assert recall(variant, "sm_90", tmp_path) is None
    code = compile_variant(variant, "sm_90", tmp_path)
    monkeypatch.setattr(ahead_of_time, "_compile", None)
    assert compile_variant(variant, "sm_90", tmp_path) == code
    for other in (
        replace(variant, constants={**variant.constants, "RUNS": 8}),
        replace(variant, num_warps=8),
        replace(variant, kernel=decode_plan._plan_decode_kernel),
    ):
        assert recall(other, "sm_90", tmp_path) is None
    assert recall(variant, "sm_80", tmp_path) is None
