"""Which codec each handoff of a worker is sent in: what transfer.codec says, for the worker's layout.

Knows names, rates and the request's word. Measures nothing itself, and codes nothing.
"""

from collections.abc import Callable, Sequence

from twinpool.kv_transfer.codec import CodecName, is_lossless
from twinpool.kv_transfer.codec_choice import CodecRates, choose_codec
from twinpool.kv_transfer.codec_format import record_bytes
from twinpool.kv_transfer.codec_rates import measure_codec
from twinpool.model.kv_layout import KVLayout

AUTO = "auto"
SETTINGS = (AUTO, *CodecName)  # what transfer.codec may say
AUTO_CODECS = (CodecName.INT8, CodecName.FP8, CodecName.INT4)  # int2 changes too many answers to be chosen unasked
COPIED_KINDS = frozenset({"shm", "cuda_ipc"})  # links whose target copies out of the source's memory: no codec there

Measure = Callable[[CodecName, KVLayout], CodecRates]


def possible_codecs(setting: str, layout: KVLayout) -> tuple[CodecName, ...]:
    """The codecs that KV of this layout may come in, best first; raw, for requests that ask for it, always.

    Raises:
        ValueError: the setting is none, or names a codec that does not fit the layout.
    """
    if setting not in SETTINGS:
        raise ValueError(f"transfer.codec: {setting} is not one of {', '.join(SETTINGS)}")
    if setting == AUTO:
        return (CodecName.RAW, *(name for name in AUTO_CODECS if _fits(name, layout)))
    named = CodecName(setting)
    try:
        record_bytes(named, layout)
    except ValueError as error:
        raise ValueError(f"transfer.codec: {error}") from None
    return (CodecName.RAW,) if is_lossless(named) else (CodecName.RAW, named)


def usable_link(setting: str, link: str) -> str:
    """What ``transfer.link`` comes to with this codec: one that is named holds for every handoff, so none is copied.

    Raises:
        ValueError: both are named and cannot go together.
    """
    if setting == AUTO or is_lossless(CodecName(setting)):
        return link
    if link in COPIED_KINDS:
        raise ValueError(f"transfer.codec: {setting} cannot go with transfer.link: {link}, which copies KV as it is")
    return "gloo" if link == "auto" else link


class CodecPolicy:
    """Chooses for the handoffs of one worker.

    Args:
        measure: how the cost of a codec is found; only ``auto`` asks, once for each of its codecs.

    Raises:
        ValueError: as ``possible_codecs`` does.
    """

    def __init__(self, setting: str, layout: KVLayout, measure: Measure = measure_codec) -> None:
        self.setting = setting
        self.codecs = possible_codecs(setting, layout)
        self._rates: Sequence[CodecRates] = ()
        if setting == AUTO:
            self._rates = tuple(measure(name, layout) for name in self.codecs[1:])

    def choose(
        self, *, allows_loss: bool, link_kind: str, link_bytes_per_s: float | None, produced_bytes_per_s: float | None
    ) -> CodecName:
        """The codec for a handoff that starts now.

        Args:
            link_kind: of the pair's link; empty while none was opened.
            link_bytes_per_s: what raw KV was measured at on it lately; None: not yet.
            produced_bytes_per_s: raw KV that this worker's prefills make; None: not yet measured.
        """
        if not allows_loss or len(self.codecs) == 1:
            return CodecName.RAW
        if self.setting != AUTO:
            return self.codecs[-1]
        if link_kind in COPIED_KINDS or link_bytes_per_s is None or produced_bytes_per_s is None:
            return CodecName.RAW
        return choose_codec(link_bytes_per_s, produced_bytes_per_s, self._rates, allows_loss=True).codec


def _fits(name: CodecName, layout: KVLayout) -> bool:
    try:
        record_bytes(name, layout)
    except ValueError:
        return False
    return True
