"""Starts and ends a cluster's processes as Ray actors; see controller.Host.

One placement group per pool, and one for the gateways. Knows nothing of requests or of why a process is wanted.
"""

import asyncio
import logging
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from twinpool.cluster.actors import NAMESPACE, OPTIONS, GatewayActor, WorkerActor
from twinpool.cluster.launch import GatewayConfig, LaunchPlan
from twinpool.core.errors import Internal, SpecError, TwinpoolError
from twinpool.core.messages import WorkerAddress, WorkerConfig

log = logging.getLogger(__name__)

START_TIMEOUT_S = 300.0  # loading weights takes as long as it takes; a hang must end all the same
PLACE_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0


class RayHost:
    """The processes of one cluster, by id. Actors are named `CLUSTER/ID`, so that a new controller finds them."""

    def __init__(self, plan: LaunchPlan) -> None:
        self._cluster = plan.name
        self._actors: dict[str, Any] = {}
        self._groups: dict[str, PlacementGroup] = {}
        self._slots = _slots(plan)

    async def start_worker(self, config: WorkerConfig) -> WorkerAddress:
        actor = await self._actor(config.worker_id, WorkerActor, config)
        address: WorkerAddress = await _answer(actor.start.remote(), START_TIMEOUT_S, f"start of {config.worker_id}")
        return address

    async def closed(self, member_id: str) -> str:
        try:
            reason: str = await self._actors[member_id].until_closed.remote()
        except RayActorError as error:
            reason = str(error).splitlines()[0]
        actor = self._actors.pop(member_id, None)
        if actor is not None:
            ray.kill(actor)  # one that closed by itself leaves its process behind, and its name in Ray
        return reason

    async def start_gateway(self, config: GatewayConfig) -> str:
        actor = await self._actor(config.gateway_id, GatewayActor, config)
        address: str = await _answer(actor.start.remote(), START_TIMEOUT_S, f"start of {config.gateway_id}")
        return address

    async def set_workers(self, gateway_id: str, addresses: list[WorkerAddress]) -> None:
        actor = self._actors.get(gateway_id)
        if actor is None:
            raise Internal(f"{gateway_id} does not run")
        await _answer(actor.set_workers.remote(addresses), PLACE_TIMEOUT_S, f"news to {gateway_id}")

    async def until_ready(self, gateway_id: str, num_workers: int) -> None:
        await _answer(
            self._actors[gateway_id].until_ready.remote(num_workers), START_TIMEOUT_S, f"readiness of {gateway_id}"
        )

    async def stop(self) -> None:
        """Ask every process to stop, then end it; nothing is left in Ray of this cluster."""
        actors, self._actors = self._actors, {}
        stops = [_answer(actor.stop.remote(), STOP_TIMEOUT_S, "stop") for actor in actors.values()]
        for outcome in await asyncio.gather(*stops, return_exceptions=True):
            if isinstance(outcome, Exception):
                log.warning("a process did not stop by itself: %s", outcome)
        for actor in actors.values():
            ray.kill(actor)
        self._groups.clear()
        for pool in {pool for pool, _ in self._slots.values()}:
            group = self._find_group(pool)
            if group is not None:
                remove_placement_group(group)

    async def _actor(self, actor_id: str, actor_class: Any, config: WorkerConfig | GatewayConfig) -> Any:
        name = f"{self._cluster}/{actor_id}"
        try:
            actor = ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            pool, index = self._slots[actor_id]
            group = await self._group(pool)
            strategy = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=index)
            actor = actor_class.options(name=name, scheduling_strategy=strategy, **OPTIONS).remote(config)
        self._actors[actor_id] = actor
        return actor

    async def _group(self, pool: str) -> PlacementGroup:
        """The pool's placement group: detached, so that the workers in it outlive a controller."""
        if pool not in self._groups:
            self._groups[pool] = self._find_group(pool) or self._make_group(pool)
        await _answer(self._groups[pool].ready(), PLACE_TIMEOUT_S, f"room in Ray for {pool}")
        return self._groups[pool]

    def _find_group(self, pool: str) -> PlacementGroup | None:
        try:
            group: PlacementGroup = get_placement_group(f"{self._cluster}/{pool}")
        except ValueError:
            return None
        return group

    def _make_group(self, pool: str) -> PlacementGroup:
        size = sum(1 for slot in self._slots.values() if slot[0] == pool)
        bundles = [{"CPU": OPTIONS["num_cpus"]}] * size
        name = f"{self._cluster}/{pool}"
        group: PlacementGroup = placement_group(bundles, strategy="PACK", name=name, lifetime="detached")
        return group


def _slots(plan: LaunchPlan) -> dict[str, tuple[str, int]]:
    """Each actor's placement group and bundle in it."""
    slots: dict[str, tuple[str, int]] = {}
    counts: dict[str, int] = {}
    pools = [(worker.worker_id, str(worker.role)) for worker in plan.workers]
    for actor_id, pool in [*pools, *((gateway.gateway_id, "gateway") for gateway in plan.gateways)]:
        slots[actor_id] = (pool, counts.get(pool, 0))
        counts[pool] = counts.get(pool, 0) + 1
    return slots


async def _answer(reference: Any, timeout_s: float, what: str) -> Any:
    """Await a Ray call for so long."""
    try:
        return await asyncio.wait_for(outcome_of(reference), timeout_s)
    except TimeoutError:
        raise SpecError(f"{what} took over {timeout_s:g} s") from None


async def outcome_of(reference: Any) -> Any:
    """Await a Ray call; our own errors come out as themselves, without the remote traceback in their text."""
    try:
        return await reference
    except RayTaskError as error:
        if isinstance(error.cause, TwinpoolError):
            raise error.cause from None
        raise Internal(str(error)) from None
    except RayError as error:
        raise Internal(str(error).splitlines()[0]) from None
