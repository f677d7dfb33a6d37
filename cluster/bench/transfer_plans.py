"""What `twinpool bench transfer` measures when nobody says what: a little of everything, or with --full all of it.

Names cases only; transfer.py measures them.
"""

from dataclasses import replace

from twinpool.cluster.bench.transfer import TransferOptions
from twinpool.cluster.bench.transfer_case import LIMITED_LINKS
from twinpool.kv_transfer.codec import CodecName
from twinpool.kv_transfer.codec_policy import possible_codecs
from twinpool.model.kv_layout import KVLayout

MIB = 1 << 20
TOKENS = 2048
SHAPES = ((1, 2), (2, 1), (2, 2), (2, 4), (4, 2))  # beside (1, 1)
LIMITS = (None, 1_000_000_000, 200_000_000)  # bytes/s: codecs start to pay between them
FULL_LIMITS = (None, 2_000_000_000, 1_000_000_000, 500_000_000, 200_000_000, 100_000_000)


def default_plans(base: TransferOptions) -> list[TransferOptions]:
    """Links at three sizes; codecs on links of several speeds; workers of several shapes."""
    sizes = (MIB, 64 * MIB, TOKENS * base.layout.token_bytes)
    once = replace(base, digests=_checked(base))
    plans = [replace(base, sizes=sizes), replace(once, sizes=(64 * MIB,), shapes=_shapes(base))]
    limited = tuple(link for link in base.links if link in LIMITED_LINKS)
    if limited:
        codecs = fitting_codecs(base.layout)
        plans.append(replace(once, links=limited, sizes=(16 * MIB,), codecs=codecs, limits=LIMITS))
    return plans


def full_plans(base: TransferOptions) -> list[TransferOptions]:
    """Every link, size and codec, with everything on and off; more speeds of the link; every shape with every codec."""
    codecs = fitting_codecs(base.layout)
    sizes = (MIB, 16 * MIB, 64 * MIB, TOKENS * base.layout.token_bytes, 256 * MIB, 1024 * MIB)
    once = replace(base, digests=_checked(base), codecs=codecs)
    plans = [
        replace(base, sizes=tuple(dict.fromkeys(sizes)), codecs=codecs),
        replace(once, sizes=(MIB, 64 * MIB, 1024 * MIB), shapes=_shapes(base)),
    ]
    limited = tuple(link for link in base.links if link in LIMITED_LINKS)
    if limited:
        plans.append(replace(once, links=limited, sizes=(32 * MIB,), limits=FULL_LIMITS))
    return plans


def fitting_codecs(layout: KVLayout) -> tuple[str, ...]:
    """Every codec that this layout's KV may come in."""
    found: list[str] = []
    for name in CodecName:
        try:
            possible_codecs(name, layout)
        except ValueError:
            continue
        found.append(str(name))
    return tuple(found)


def _shapes(base: TransferOptions) -> tuple[tuple[int, int], ...]:
    """Those that the layout's heads can be divided among."""
    return tuple(pair for pair in SHAPES if all(_divides(base.layout.num_kv_heads, tp) for tp in pair))


def _divides(num_heads: int, tensor_parallel: int) -> bool:
    return num_heads % tensor_parallel == 0 or tensor_parallel % num_heads == 0


def _checked(base: TransferOptions) -> tuple[bool, ...]:
    """With digests, unless they are not asked for."""
    return base.digests[:1]
