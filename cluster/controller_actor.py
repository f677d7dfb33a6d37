"""The controller as a Ray actor: a shell of one-line methods."""

import time
from typing import Any

import ray

from twinpool.cluster.controller import Controller
from twinpool.cluster.launch import LaunchPlan
from twinpool.cluster.ray_host import RayHost


@ray.remote
class ControllerActor:
    """One cluster's controller, named `CLUSTER/controller`."""

    def __init__(self, plan: LaunchPlan) -> None:
        self._controller = Controller(plan, RayHost(plan), time.monotonic)

    async def start(self) -> list[str]:
        return await self._controller.start()

    async def until_closed(self) -> str:
        return await self._controller.until_closed()

    async def stop(self) -> None:
        await self._controller.stop()


def make_controller(plan: LaunchPlan, options: dict[str, Any]) -> Any:
    """The running controller of this cluster, or a new one that finds the actors that run already."""
    actor_class: Any = ControllerActor
    return actor_class.options(name=f"{plan.name}/controller", get_if_exists=True, **options).remote(plan)
