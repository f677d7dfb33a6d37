"""What compiled variants must be like, and how many programs of one a multiprocessor holds.

Knows sizes of GPUs and numbers read from machine code; compiles nothing.
"""

from dataclasses import dataclass

from twinpool.kernels.ahead_of_time import MachineCode, Variant

WGMMA_ROWS = 64  # of Hopper's matrix instruction
ATTENTION = ("decode_attention", "prefill_attention")
REGISTERS_PER_LANE_FILE = 512  # of one gfx942 SIMD
WAVES_PER_SIMD = 8
SIMDS = 4


@dataclass(frozen=True, slots=True)
class Multiprocessor:
    """What the programs on one of them share. NVIDIA's tuning guides for 8.0, 9.0 and 10.0; AMD's CDNA 3 manual."""

    shared_bytes: int
    shared_bytes_per_program: int
    reserved_bytes: int = 1024  # of shared memory, for each program
    registers: int = 65536
    warps: int = 64
    programs: int = 32


MULTIPROCESSORS = {
    "sm_80": Multiprocessor(164 * 1024, 163 * 1024),
    "sm_90": Multiprocessor(228 * 1024, 227 * 1024),
    "sm_100": Multiprocessor(228 * 1024, 227 * 1024),
    "gfx942": Multiprocessor(64 * 1024, 64 * 1024, reserved_bytes=0),
}


def faults(variant: Variant, code: MachineCode) -> list[str]:
    """What is wrong with a compiled variant, in words; empty: nothing is.

    Nothing spills; shared memory suffices; tiles of 64 rows and more of 16-bit numbers use Hopper's matrix instruction;
    keys and values come in asynchronous copies of 16 bytes each, the next tile's while this one is computed.
    """
    found = []
    if code.spill_bytes or code.stack_bytes:
        found.append(f"{code.spill_bytes} bytes spilled, {code.stack_bytes} of stack")
    limit = MULTIPROCESSORS[code.target].shared_bytes_per_program
    if code.shared_bytes > limit:
        found.append(f"{code.shared_bytes} bytes of shared memory, of {limit}")
    if code.kernel not in ATTENTION:
        return found
    is_narrow = variant.signature["q_ptr"] != "*fp32"
    if is_narrow and not code.wgmma + code.mma:
        found.append("no matrix instruction")
    if code.target == "sm_90" and is_narrow and variant.constants["BLOCK_M"] >= WGMMA_ROWS and not code.wgmma:
        found.append("no HGMMA")
    if code.target.startswith("sm"):
        if not code.async_copies or code.wide_async_copies < code.async_copies:
            found.append(f"{code.wide_async_copies} of {code.async_copies} asynchronous copies have 16 bytes")
        if is_narrow and code.buffers < 2:
            found.append(f"{code.buffers} buffers for keys and values")
    return found


def programs_per_multiprocessor(code: MachineCode) -> int:
    """How many programs registers, shared memory and warps let one multiprocessor (compute unit) hold at once."""
    unit = MULTIPROCESSORS[code.target]
    by_shared = unit.shared_bytes // max(code.shared_bytes + unit.reserved_bytes, 1)
    if code.target.startswith("gfx"):
        waves = min(WAVES_PER_SIMD, REGISTERS_PER_LANE_FILE // max(_round_up(code.registers, 8), 8))
        return min(by_shared, waves * SIMDS // code.num_warps, unit.programs)
    warp_registers = _round_up(code.registers * 32, 256)
    by_registers = unit.registers // 4 // warp_registers * 4 // code.num_warps  # a quarter of them has its own
    return min(by_shared, by_registers, unit.warps // code.num_warps, unit.programs)


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step
