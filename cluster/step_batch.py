"""Packs what one engine step computes: decoding sequences and chunks of prompts, flat."""

import numpy as np

from twinpool.model.batch import Batch
from twinpool.model.sequence import Sequence
from twinpool.prefill_worker.service import Prompt


def build_batch(rows: list[Sequence], prompts: list[Prompt], eos_token_ids: tuple[int, ...]) -> Batch:
    """One token for each decoding sequence, then each prompt's chunk; who gets a token, in the same order."""
    sequences = rows + [prompt.sequence for prompt in prompts]
    counts = [1] * len(rows) + [prompt.chunk_tokens for prompt in prompts]
    contexts = [s.num_computed + count for s, count in zip(sequences, counts, strict=True)]
    ids = [
        s.token_ids[context - count : context] for s, count, context in zip(sequences, counts, contexts, strict=True)
    ]
    sampled = [*range(len(rows)), *(len(rows) + i for i, prompt in enumerate(prompts) if prompt.is_last_chunk)]
    chunks = [(len(rows) + i, prompt) for i, prompt in enumerate(prompts)]
    scores = [prompt.sequence.score_row(row, prompt.chunk_tokens) for row, prompt in chunks]
    return Batch(
        token_ids=np.concatenate([np.array(part, dtype=np.int64) for part in ids]),
        cu_seqlens=np.cumsum([0, *counts], dtype=np.int32),
        context_lens=np.array(contexts, dtype=np.int32),
        block_tables=tuple(np.array(s.block_ids, dtype=np.int64) for s in sequences),
        samples=tuple(sequences[row].sample_row(row, eos_token_ids) for row in sampled),
        scores=tuple(score for score in scores if score is not None),
    )
