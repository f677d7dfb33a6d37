"""Compiles a kernel variant for a GPU that is not there, and reads from the machine code what it needs to run.

Knows Triton's compiler and the disassembler in its package; knows no kernel of ours. Nothing here is ever run on a GPU:
what it says is about code, not about speed.
"""

import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import __file__ as nvidia_file
from triton.compiler import ASTSource

TOOL_TIMEOUT_S = 60
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


@dataclass(frozen=True, slots=True)
class Variant:
    """One way in which a kernel may be launched."""

    kernel: Any  # triton.JITFunction
    name: str
    signature: Mapping[str, str]  # of the arguments that are no constants: "*bf16", "i32", "fp32"
    aligned: frozenset[str]  # of these: pointers and strides that are multiples of 16
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int = 1

    @property
    def kernel_name(self) -> str:
        """Without underscores around it."""
        return str(self.kernel.__name__).strip("_").removesuffix("_kernel")


@dataclass(frozen=True, slots=True)
class MachineCode:
    """What one variant is on one target. Registers and spills are of one thread; of gfx942, registers are VGPRs."""

    kernel: str
    variant: str
    target: str
    num_warps: int
    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int
    wgmma: int  # instructions: HGMMA
    mma: int  # HMMA, and tcgen05's; MFMA on gfx942
    async_copies: int  # LDGSTS
    wide_async_copies: int  # of those, of 128 bits
    buffers: int  # of the pipelined operand that has most; 0: none is pipelined


def compile_variant(variant: Variant, target_name: str, cache: Path | None = None) -> MachineCode:
    """Compile for one of ``TARGETS``, or read what an earlier run found in ``cache``.

    Triton's own cache is not used, and nothing is left in it.

    Raises:
        Exception: Triton's, of many classes: the variant does not compile.
        RuntimeError: the interpreter is on, or the disassembler failed.
    """
    known = recall(variant, target_name, cache)
    if known is not None:
        return known
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: nothing can be compiled")
    with tempfile.TemporaryDirectory() as triton_cache, triton.knobs.cache.scope():
        triton.knobs.cache.dir = triton_cache
        code = _compile(variant, target_name)
    if cache is not None:
        _keep(code, _cached_at(variant, target_name, cache))
    return code


def recall(variant: Variant, target_name: str, cache: Path | None) -> MachineCode | None:
    """What an earlier run found. A variant is known by its source with all that it calls, its signature, its constants,
    Triton's version and this file."""
    if cache is None or not (kept := _cached_at(variant, target_name, cache)).exists():
        return None
    return MachineCode(**json.loads(kept.read_text()))


def _keep(code: MachineCode, at: Path) -> None:
    at.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=at.parent, delete=False) as draft:
        json.dump(asdict(code), draft)
    Path(draft.name).replace(at)


def _cached_at(variant: Variant, target_name: str, cache: Path) -> Path:
    return cache / f"{_digest(variant, target_name)}.json"


def _digest(variant: Variant, target_name: str) -> str:
    options = (variant.num_warps, variant.num_stages, triton.__version__, target_name)
    parts = (sorted(variant.signature.items()), sorted(variant.aligned), sorted(variant.constants.items()), options)
    sources = sorted(_sources(variant.kernel))
    facts = repr((sources, variant.kernel_name, variant.name, parts, Path(__file__).read_text()))
    return hashlib.sha256(facts.encode()).hexdigest()[:32]


def _sources(kernel: Any) -> set[str]:
    """Of a kernel, of what it calls, and of the constants that it names; not where in its file it stands, as Triton's
    own key has it. Triton's functions have its version."""
    found = {kernel.src}
    for name in kernel.fn.__code__.co_names:
        value = kernel.fn.__globals__.get(name)
        if isinstance(value, triton.JITFunction) and not value.fn.__module__.startswith("triton."):
            found |= _sources(value)
        elif isinstance(value, triton.language.constexpr):
            found.add(f"{name} = {value.value!r}")
    return found


def _compile(variant: Variant, target_name: str) -> MachineCode:
    names = variant.kernel.arg_names
    signature = {name: variant.signature.get(name, "constexpr") for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in variant.aligned}
    source = ASTSource(variant.kernel, signature, dict(variant.constants), attributes)
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    compiled = triton.compile(source, target=TARGETS[target_name], options=options)
    read = _read_hsaco if target_name.startswith("gfx") else _read_cubin
    return MachineCode(
        kernel=variant.kernel_name,
        variant=variant.name,
        target=target_name,
        num_warps=variant.num_warps,
        shared_bytes=compiled.metadata.shared,
        buffers=_most_buffers(compiled.asm["ttgir"]),
        **read(compiled.asm),
    )


def _most_buffers(ttgir: str) -> int:
    """The leading size of the memory that the pipeliner allocated: ``memdesc<3x64x128xbf16, ..., mutable>``."""
    found = re.findall(r"ttg\.local_alloc\s*:\s*\(\)\s*->\s*!ttg\.memdesc<(\d+)x\d+x\d+x", ttgir)
    return max(map(int, found), default=0)


def _read_cubin(asm: Mapping[str, Any]) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(asm["cubin"])
        cubin.flush()
        usage = _cuobjdump("-res-usage", cubin.name)
        sass = _cuobjdump("-sass", cubin.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump -res-usage said {usage!r}")
    stores = re.findall(r"\bSTL(?:\.(\d+))?\b", sass)
    return {
        "registers": int(found[1]),
        "stack_bytes": int(found[2]),
        "spill_bytes": sum(int(bits or 32) // 8 for bits in stores),
        "wgmma": len(re.findall(r"\bHGMMA\b", sass)),
        "mma": len(re.findall(r"\b(?:HMMA|UTCHMMA|UTCQMMA)\b", sass)),
        "async_copies": len(re.findall(r"\bLDGSTS\b", sass)),
        "wide_async_copies": len(re.findall(r"\bLDGSTS\.[\w.]*128\b", sass)),
    }


def _cuobjdump(option: str, cubin: str) -> str:
    tool = Path(nvidia_file).parent / "bin" / "cuobjdump"
    nvdisasm = os.environ | {"PATH": f"{tool.parent}:{os.environ.get('PATH', '')}"}
    done = subprocess.run(
        [tool, option, cubin], capture_output=True, text=True, check=False, timeout=TOOL_TIMEOUT_S, env=nvdisasm
    )
    if done.returncode:
        raise RuntimeError(f"cuobjdump {option}: {done.stderr.strip()}")
    return done.stdout


def _read_hsaco(asm: Mapping[str, Any]) -> dict[str, int]:
    text = asm["amdgcn"]

    def metadata(name: str) -> int:
        found = re.search(rf"^\s*\.{name}:\s+(\d+)", text, re.MULTILINE)
        return int(found[1]) if found else 0

    return {
        "registers": metadata("vgpr_count"),
        "stack_bytes": metadata("private_segment_fixed_size"),
        "spill_bytes": metadata("private_segment_fixed_size"),  # scratch; a spill into another register is none
        "wgmma": 0,
        "mma": len(re.findall(r"\bv_mfma_", text)),
        "async_copies": 0,
        "wide_async_copies": 0,
    }
