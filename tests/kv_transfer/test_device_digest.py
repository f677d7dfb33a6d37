"""What links between devices take digests with: a number that fits a header, and tells damage."""

import torch

from twinpool.kv_transfer.device_digest import digest_tensor
from twinpool.kv_transfer.header import DIGEST_BYTES


def test_a_digest_fits_a_header_and_tells_one_bit() -> None:
    chunk = torch.arange(1000, dtype=torch.int64).to(torch.uint8)
    before = digest_tensor(chunk)
    assert len(before.to_bytes(DIGEST_BYTES, "little")) == DIGEST_BYTES
    assert digest_tensor(chunk.clone()) == before
    chunk[999] ^= 1
    assert digest_tensor(chunk) != before
