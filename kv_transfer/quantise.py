"""Turns float32 values into codes, scales and zeros, and packs codes into bytes: the sums of the coded form of KV.

codec_format.py says what they are. Knows tensors only: no layout, no record, no array of bytes to send.

Shape letters: N records (blocks x layers), H KV heads, T block_tokens, D head_dim, P bytes that hold a row's D codes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from twinpool.kv_transfer.codec_format import LARGEST, TINY

FP8_WIDENED = 256.0


@dataclass(frozen=True, slots=True)
class Groups:
    """Views of the K or the V of some records: its elements, and zeros and scales that broadcast over them."""

    zero: Tensor
    scale: Tensor
    values: Tensor  # float32
    axis: int  # along which a group lies


def pack(codes_N2HTD: Tensor, bits: int, out_N2HTP: Tensor) -> None:
    """Put the parts of each row, ``8 / bits`` of them, on top of each other; ``codes`` is scratch from then on."""
    packed, *parts = codes_N2HTD.chunk(8 // bits, dim=-1)
    for i, part in enumerate(parts, 1):
        packed |= part.bitwise_left_shift_(bits * i)
    out_N2HTP.copy_(packed)


def unpack(packed_N2HTP: Tensor, bits: int, out_N2HTD: Tensor) -> None:
    """Write the codes of each row as numbers."""
    for i, part in enumerate(out_N2HTD.chunk(8 // bits, dim=-1)):
        part.copy_((packed_N2HTP >> bits * i).bitwise_and_(2**bits - 1))


def encode_tokens(x_N2HTD: Tensor, scale_N2HT: Tensor, peak_code: float) -> None:
    """Turn values into codes, not yet rounded, in place, and write the scales they stand for."""
    # Two passes, since torch takes ten times as long for an absolute maximum. A NaN survives all of this.
    peak_N2HT = torch.maximum(x_N2HTD.amax(-1), x_N2HTD.amin(-1).neg_())
    if peak_N2HT.amin().item() >= TINY and peak_N2HT.amax().item() <= LARGEST:
        torch.div(peak_N2HT, peak_code, out=scale_N2HT)
        x_N2HTD.mul_(scale_N2HT.reciprocal().unsqueeze(-1))
        return
    is_sick_N2HT = ~peak_N2HT.isfinite()
    peak_N2HT.clamp_(max=LARGEST).masked_fill_(peak_N2HT < TINY, 0.0)
    torch.div(peak_N2HT, peak_code, out=scale_N2HT)
    x_N2HTD.mul_(_inverse(scale_N2HT).unsqueeze(-1))
    scale_N2HT.masked_fill_(is_sick_N2HT, torch.nan)
    x_N2HTD.masked_fill_(is_sick_N2HT.unsqueeze(-1), 0.0).clamp_(-peak_code, peak_code)


def encode_groups(groups: Groups, levels: float) -> None:
    """Turn values into codes, in place, and write the zeros and scales they stand for."""
    x = groups.values
    zero, top = x.amin(groups.axis, keepdim=True), x.amax(groups.axis, keepdim=True)
    zero.add_(0.0)  # turns -0 into +0: which of the two a minimum is differs from machine to machine
    spread = top - zero
    if spread.amin().item() >= TINY and zero.amin().item() >= -LARGEST and top.amax().item() <= LARGEST:
        groups.zero.copy_(zero)
        _write_rounded_up(spread / levels, groups.scale)
        x.sub_(zero).mul_(groups.scale.float().reciprocal_()).round_()
        return
    is_sick = ~(zero.isfinite() & top.isfinite())
    zero.masked_fill_(is_sick, 0.0).clamp_(-LARGEST, LARGEST)
    spread = top.masked_fill_(is_sick, 0.0).clamp_(-LARGEST, LARGEST) - zero
    groups.zero.copy_(zero)
    _write_rounded_up(spread.masked_fill_(spread < TINY, 0.0) / levels, groups.scale)
    x.sub_(zero).mul_(_inverse(groups.scale.float()))
    groups.scale.masked_fill_(is_sick, torch.nan)
    x.masked_fill_(is_sick, 0.0).clamp_(0.0, levels).round_()


def _write_rounded_up(step: Tensor, out: Tensor) -> None:
    """Write the least numbers of ``out``'s 2-byte type that are not below ``step``: float32, not negative."""
    rounded = step.to(out.dtype)
    rounded.view(torch.int16).add_(rounded.float() < step)  # the next number's bits are the next integer
    out.copy_(rounded)


def _inverse(scale: Tensor) -> Tensor:
    return scale.reciprocal().masked_fill_(scale == 0.0, 0.0)


def widen_fp8(codes: Tensor, out: Tensor) -> Tensor:
    """The values of e4m3fn codes over ``FP8_WIDENED``, as float16 in the memory of ``out``, which is int16.

    The same bits, shifted, mean that number there; torch's own conversion takes several times as long. Not for the
    two NaN codes.
    """
    bits = out.copy_(codes.view(torch.int8)).bitwise_left_shift_(7).bitwise_and_(~0x4000)
    return bits.view(torch.float16)
