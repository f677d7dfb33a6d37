"""Decides which kinds of link two workers may use between them, in which order, and why.

Pure. Knows kinds by name only; links.py makes them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ON_ONE_HOST = frozenset({"shm", "cuda_ipc"})  # kinds that need both workers on one host
BETWEEN_DEVICES = frozenset({"nccl", "cuda_ipc"})  # kinds that need a GPU at both ends
BETWEEN_TWO_DEVICES = frozenset({"nccl"})  # and not the same one
UNSAID_CHUNK_BYTES = 8 << 20  # of a peer that does not say: what workers cut at before they said so
_MAX_KINDS = 16
_MAX_TEXT = 200


@dataclass(frozen=True, slots=True)
class LinkOffer:
    """What one end of a pair can use: the kinds, best first, and where it is."""

    kinds: tuple[str, ...] = ()
    host: str = ""  # equal for workers that share memory and Unix sockets; empty: unknown
    device: str = ""  # the GPU that its links use, equal only for one and the same; empty: none
    chunk_bytes: Mapping[str, int] = field(default_factory=dict)  # by kind: the largest chunk that it sends or takes

    @classmethod
    def heard(
        cls, kinds: Sequence[str], host: str, device: str = "", chunk_bytes: Mapping[str, int] | None = None
    ) -> "LinkOffer":
        """The offer of a peer that may say anything."""
        few = tuple(kind[:_MAX_TEXT] for kind in kinds[:_MAX_KINDS])
        sizes = {kind: size for kind, size in (chunk_bytes or {}).items() if kind in few}
        return cls(few, host[:_MAX_TEXT], device[:_MAX_TEXT], sizes)


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
            choices.append(LinkChoice(kind, f"{named_by}: " + "; ".join([*passed, _merit(kind, ours, theirs)])))
    return tuple(choices) if choices else NoLink(f"{named_by}: " + ("; ".join(passed) or "no kind of link"))


def agreed_chunk_bytes(kind: str, ours: LinkOffer, theirs: LinkOffer) -> int:
    """The size at which both ends cut on a link of this kind: the smaller of what each takes."""
    return min(offer.chunk_bytes.get(kind, UNSAID_CHUNK_BYTES) for offer in (ours, theirs))


def _merit(kind: str, ours: LinkOffer, theirs: LinkOffer) -> str:
    """What lets a kind work."""
    if kind == "cuda_ipc":
        return f"both workers are on one {'GPU' if ours.device == theirs.device else 'host, each on its GPU'}"
    if kind in BETWEEN_DEVICES:
        return "each worker has a GPU of its own"
    return "both workers are on one host" if kind in ON_ONE_HOST else "both workers have it"


def _obstacle(kind: str, ours: LinkOffer, theirs: LinkOffer) -> str:
    """Why a kind cannot work; empty if it can."""
    if kind in ON_ONE_HOST and (not ours.host or ours.host != theirs.host):
        return f"{kind} needs both workers on one host, in one network namespace"
    if kind not in theirs.kinds:
        return f"the peer receives over {', '.join(theirs.kinds) or 'nothing'}, not over {kind}"
    if kind in BETWEEN_DEVICES and not (ours.device and theirs.device):
        return f"{kind} needs a GPU at both ends"
    if kind in BETWEEN_TWO_DEVICES and ours.device == theirs.device:
        return f"{kind} cannot link two workers on one GPU ({ours.device})"
    if agreed_chunk_bytes(kind, ours, theirs) < 1:
        return f"the peer cuts what goes over {kind} into chunks of no bytes"
    return ""
