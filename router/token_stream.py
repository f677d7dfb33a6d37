"""One answer's tokens as they come from several workers, put into order: each index once.

Knows no worker, epoch or client.
"""

from dataclasses import dataclass
from typing import NamedTuple

from twinpool.core.messages import FinishReason
from twinpool.core.sampling import TokenLogprobs

Logprobs = tuple[TokenLogprobs, ...]


class Taken(NamedTuple):
    """What is new and without a gap: tokens, why the answer ended if it did, and their logarithms where sent.

    A named tuple, because one is made for every token: a frozen dataclass takes about three times as long to make.
    """

    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    logprobs: Logprobs = ()


@dataclass(frozen=True, slots=True)
class _Piece:
    index: int
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    logprobs: Logprobs  # as many as token_ids, or none


class TokenStream:
    """Owns the tokens accepted so far, of ``max_tokens`` at most, and those that came too early."""

    def __init__(self, max_tokens: int, emitted: tuple[int, ...] = ()) -> None:
        self._max_tokens = max_tokens
        self._token_ids = list(emitted)
        self._early: list[_Piece] = []

    def __len__(self) -> int:
        """Tokens accepted: the index of the next."""
        return len(self._token_ids)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All tokens accepted, in order."""
        return tuple(self._token_ids)

    def take(
        self, index: int, token_ids: tuple[int, ...], finish_reason: FinishReason | None, logprobs: Logprobs = ()
    ) -> Taken:
        """Add tokens that begin at ``index``; return what the client may now have.

        Indices already accepted are dropped, tokens beyond a gap are kept for later, tokens beyond the limit are cut;
        and ``logprobs``, as many as tokens or none, with them.
        """
        first = len(self._token_ids)
        if index == first and not self._early and (last := first + len(token_ids)) <= self._max_tokens:
            self._token_ids.extend(token_ids)  # as nearly always: nothing to put in order, and nothing to cut
            is_full = last == self._max_tokens
            return Taken(token_ids, finish_reason or (FinishReason.LENGTH if is_full else None), logprobs)
        finish, fresh = None, list[TokenLogprobs]()
        self._early.append(_Piece(index, token_ids, finish_reason, logprobs))
        self._early.sort(key=lambda piece: piece.index)
        while finish is None and self._early and self._early[0].index <= len(self):
            piece = self._early.pop(0)
            old = len(self) - piece.index
            finish = self._append(piece)
            fresh += piece.logprobs[old : len(self) - piece.index]
        return Taken(tuple(self._token_ids[first:]), finish, tuple(fresh))

    def forget_early(self) -> None:
        """Drop what waits beyond a gap: the attempt that sent it is over."""
        self._early.clear()

    def _append(self, piece: _Piece) -> FinishReason | None:
        self._token_ids.extend(piece.token_ids[len(self) - piece.index :])
        if len(self) > self._max_tokens:
            del self._token_ids[self._max_tokens :]
            return FinishReason.LENGTH
        if piece.finish_reason is not None and piece.index + len(piece.token_ids) == len(self):
            return piece.finish_reason
        return FinishReason.LENGTH if len(self) == self._max_tokens else None
