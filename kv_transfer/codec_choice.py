"""Decides whether KV is worth compressing for a link, and how: the rule behind ``codec: auto``.

Pure. Knows rates only: neither what is sent nor how it is coded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf

from twinpool.kv_transfer.codec import CodecName, is_lossless


class CodecReason(StrEnum):
    """The rule that decided."""

    LOSS_NOT_ALLOWED = "the request allows no loss"
    LINK_KEEPS_UP = "the link is as fast as the KV is produced"
    CODING_TOO_SLOW = "coding would take longer than it saves"
    HIDES_WIRE = "the mildest codec with which the link keeps up"
    CHEAPEST = "no codec lets the link keep up; this one delays least"


@dataclass(frozen=True, slots=True)
class CodecRates:
    """What one codec costs between two workers. Rates are of raw bytes, measured where the codec runs."""

    codec: CodecName
    compression_ratio: float  # raw bytes for each byte on the wire
    encode_bytes_per_s: float
    decode_bytes_per_s: float

    def __post_init__(self) -> None:
        for field in ("compression_ratio", "encode_bytes_per_s", "decode_bytes_per_s"):
            _check_rate(f"{self.codec}: {field}", getattr(self, field))


@dataclass(frozen=True, slots=True)
class CodecChoice:
    """The codec to use, why, and how much later each raw byte arrives than it is produced, as estimated."""

    codec: CodecName
    reason: CodecReason
    delay_s_per_byte: float


def choose_codec(
    link_bytes_per_s: float, produced_bytes_per_s: float, codecs: Sequence[CodecRates], *, allows_loss: bool
) -> CodecChoice:
    """Compress only when the link is slower than the KV is produced, the request allows it, and it saves time.

    A byte that streams while the next ones are computed delays its request by what its wire time exceeds the time that
    it takes to produce it, and by coding, which is counted in full. Of the codecs that beat raw, the mildest with which
    the link keeps up is taken; if there is none, the one with the least delay; ties go to the milder one.

    Args:
        link_bytes_per_s: what this transfer can expect of the link.
        produced_bytes_per_s: prefill tokens/s x KV bytes per token, of all that share the link; inf for KV that is
            there already (prefix cache, migration).
        codecs: what may be used, each at most once, in any order; raw need not be among them.
        allows_loss: whether the request does. Without it, lossy codecs are not considered.

    Raises:
        ValueError: a rate is not positive.
    """
    _check_rate("link_bytes_per_s", link_bytes_per_s)
    _check_rate("produced_bytes_per_s", produced_bytes_per_s)
    raw_delay = _exposed_s(link_bytes_per_s, produced_bytes_per_s)
    if raw_delay == 0.0:
        return CodecChoice(CodecName.RAW, CodecReason.LINK_KEEPS_UP, raw_delay)
    if not allows_loss:
        return CodecChoice(CodecName.RAW, CodecReason.LOSS_NOT_ALLOWED, raw_delay)
    by_loss = list(CodecName)
    better = [
        rates
        for rates in sorted(codecs, key=lambda rates: by_loss.index(rates.codec))
        if not is_lossless(rates.codec) and _delay_s(rates, link_bytes_per_s, produced_bytes_per_s) < raw_delay
    ]
    if not better:
        return CodecChoice(CodecName.RAW, CodecReason.CODING_TOO_SLOW, raw_delay)
    hiding = [rates for rates in better if link_bytes_per_s * rates.compression_ratio >= produced_bytes_per_s]
    if hiding:
        chosen, reason = hiding[0], CodecReason.HIDES_WIRE
    else:
        chosen = min(better, key=lambda rates: _delay_s(rates, link_bytes_per_s, produced_bytes_per_s))
        reason = CodecReason.CHEAPEST
    return CodecChoice(chosen.codec, reason, _delay_s(chosen, link_bytes_per_s, produced_bytes_per_s))


def _delay_s(rates: CodecRates, link_bytes_per_s: float, produced_bytes_per_s: float) -> float:
    coding_s = 1 / rates.encode_bytes_per_s + 1 / rates.decode_bytes_per_s
    return _exposed_s(link_bytes_per_s * rates.compression_ratio, produced_bytes_per_s) + coding_s


def _exposed_s(sent_bytes_per_s: float, produced_bytes_per_s: float) -> float:
    if sent_bytes_per_s >= produced_bytes_per_s:
        return 0.0
    return 1 / sent_bytes_per_s - 1 / produced_bytes_per_s


def _check_rate(name: str, value: float) -> None:
    if not 0.0 < value <= inf:
        raise ValueError(f"{name} is {value}; it must be above 0")
