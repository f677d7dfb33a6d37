"""Decides which kinds of link two workers may use between them, in which order, and why.

Pure. Knows kinds by name only; links.py makes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

ON_ONE_HOST = frozenset({"shm"})  # kinds that need both workers on one host
_MAX_KINDS = 16
_MAX_TEXT = 200


@dataclass(frozen=True, slots=True)
class LinkOffer:
    """What one end of a pair can use: the kinds, best first, and where it is."""

    kinds: tuple[str, ...] = ()
    host: str = ""  # equal for workers that share memory and Unix sockets; empty: unknown

    @classmethod
    def heard(cls, kinds: Sequence[str], host: str) -> "LinkOffer":
        """The offer of a peer that may say anything."""
        return cls(tuple(kind[:_MAX_TEXT] for kind in kinds[:_MAX_KINDS]), host[:_MAX_TEXT])


NOTHING = LinkOffer()


@dataclass(frozen=True, slots=True)
class LinkChoice:
    """A kind to try, and why it is its turn."""

    kind: str
    why: str


@dataclass(frozen=True, slots=True)
class NoLink:
    """No kind will do; says why each of ours will not."""

    why: str


def choose_links(ours: LinkOffer, theirs: LinkOffer, named_by: str) -> tuple[LinkChoice, ...] | NoLink:
    """The kinds that both ends have and that can work between them, in our order.

    The first is to be used, and each later one only if those before it could not be opened.

    Args:
        named_by: what gave our kinds, for people: "auto", or the setting.
    """
    choices: list[LinkChoice] = []
    passed: list[str] = []
    for kind in ours.kinds:
        obstacle = _obstacle(kind, ours, theirs)
        if obstacle:
            passed.append(obstacle)
        else:
            here = "both workers are on one host" if kind in ON_ONE_HOST else "both workers have it"
            choices.append(LinkChoice(kind, f"{named_by}: " + "; ".join([*passed, here])))
    return tuple(choices) if choices else NoLink(f"{named_by}: " + ("; ".join(passed) or "no kind of link"))


def _obstacle(kind: str, ours: LinkOffer, theirs: LinkOffer) -> str:
    """Why a kind cannot work; empty if it can."""
    if kind in ON_ONE_HOST and (not ours.host or ours.host != theirs.host):
        return f"{kind} needs both workers on one host, in one network namespace"
    if kind not in theirs.kinds:
        return f"the peer receives over {', '.join(theirs.kinds) or 'nothing'}, not over {kind}"
    return ""
