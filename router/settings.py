"""The router's settings from the words of a cluster's YAML: one making for gateways and for the simulator.

Knows the YAML's words and what gateways are told of them; reads nothing.
"""

from collections.abc import Mapping

from twinpool.core.spec_requests import TenantSpec
from twinpool.router.admission import AdmissionSettings
from twinpool.router.estimate import LatencyModel
from twinpool.router.fair_queue import FairSettings
from twinpool.router.route import Disaggregate, OnPrefillLoss, PlacementSettings, Policy
from twinpool.router.standing import DEFAULT_TENANT
from twinpool.router.tenants import NO_TENANTS, TenantLimits


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


def admission_settings(
    max_queued: int, aging_s: float = 30.0, tenants: Mapping[str, TenantLimits] = NO_TENANTS
) -> AdmissionSettings:
    """The bounds of one gateway's queue, and of its tenants."""
    return AdmissionSettings(max_queued=max_queued, fair=FairSettings(aging_s=aging_s), tenants=tenants)


def tenant_limits(tenants: Mapping[str, TenantSpec]) -> dict[str, TenantLimits]:
    """Limits by tenant. Where the YAML has any tenants there is a `default`, whose part of the queue is bounded too."""
    if not tenants:
        return {}
    return {
        name: TenantLimits(**spec.model_dump())
        for name, spec in ({DEFAULT_TENANT: TenantSpec()} | dict(tenants)).items()
    }
