"""The router's settings from the words of a cluster's YAML: one making for gateways and for the simulator.

Knows the YAML's words and what gateways are told of them; reads nothing.
"""

from collections.abc import Mapping

from twinpool.router.admission import AdmissionSettings
from twinpool.router.estimate import LatencyModel
from twinpool.router.route import Disaggregate, OnPrefillLoss, PlacementSettings, Policy


def placement_settings(
    *,
    policy: str,
    disaggregate: str,
    on_prefill_loss: str,
    latencies: Mapping[str, LatencyModel],
    kv_token_bytes: int,
    chunk_tokens: int,
) -> PlacementSettings:
    """The router's knobs. Workers of a kind that is not in ``latencies`` are predicted by the default forms."""
    return PlacementSettings(
        policy=Policy(policy),
        disaggregate=Disaggregate(disaggregate),
        on_prefill_loss=OnPrefillLoss(on_prefill_loss),
        latency=LatencyModel(kv_token_bytes=kv_token_bytes, chunk_tokens=chunk_tokens),
        latencies=latencies,
    )


def admission_settings(max_queued: int) -> AdmissionSettings:
    """The bounds of one gateway's queue."""
    return AdmissionSettings(max_queued=max_queued)
