"""The process behind one cluster: owns the local Ray, the state file and the controller, until it is told to end.

`twinpool up` runs it, detached as ``python -m twinpool.cluster.supervisor`` or in the foreground. Knows no request.
"""

import argparse
import asyncio
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from twinpool.cluster.launch import LaunchPlan, plan_launch
from twinpool.cluster.ray_session import ray_session
from twinpool.cluster.state import ClusterState, StateFolder
from twinpool.cluster.stopping import Stopped, StopSignals
from twinpool.core.errors import SpecError, TwinpoolError

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 30.0

OnReady = Callable[[ClusterState], None]


def supervise(spec_path: Path, folder: StateFolder, on_ready: OnReady, lifeline: int | None = None) -> None:
    """Bring the cluster up, call ``on_ready``, and take it down again on SIGTERM or SIGINT.

    ``lifeline`` is the read end of a pipe whose closing means the same. A signal counts from the first line on: the
    start goes no further than it has to.

    Raises:
        SpecError: it cannot start as described. Nothing is left running.
    """
    with StopSignals() as signals:
        plan = plan_launch(spec_path)
        with folder.lock(plan.name), suppress(Stopped):
            _check_ports_are_free(plan)
            with ray_session(plan, signals):
                asyncio.run(_serve(str(spec_path.resolve()), plan, folder, on_ready, signals, lifeline))


async def _serve(
    spec_path: str,
    plan: LaunchPlan,
    folder: StateFolder,
    on_ready: OnReady,
    signals: StopSignals,
    lifeline: int | None,
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    with signals.ending(lambda: loop.call_soon_threadsafe(stop.set)), _held(lifeline, stop):
        await _run(spec_path, plan, folder, on_ready, stop)


async def _run(spec_path: str, plan: LaunchPlan, folder: StateFolder, on_ready: OnReady, stop: asyncio.Event) -> None:
    controller = _controller(plan)
    try:
        addresses = await _unless(stop, _start(controller))
        if addresses is None:
            return
        state = ClusterState(plan.name, os.getpid(), tuple(addresses), _ray_address(), spec_path)
        folder.write(state)
        on_ready(state)
        plan = _at_ports(plan, addresses)
        while not stop.is_set():
            await _unless(stop, _controller_lost(controller))
            if not stop.is_set():
                controller = _controller(plan)
                await _unless(stop, _start(controller))
    finally:
        await _end(controller)


def _at_ports(plan: LaunchPlan, addresses: list[str]) -> LaunchPlan:
    """The plan whose gateways come back where clients know them, also those that took a free port."""
    ports = [int(address.rpartition(":")[2]) for address in addresses]
    gateways = tuple(replace(gateway, grpc_port=port) for gateway, port in zip(plan.gateways, ports, strict=True))
    return replace(plan, gateways=gateways)


@contextmanager
def _held(lifeline: int | None, stop: asyncio.Event) -> Iterator[None]:
    """Set ``stop`` at the end of the process that holds the other end of the lifeline."""
    if lifeline is None:
        yield
        return
    loop = asyncio.get_running_loop()

    def let_go() -> None:
        loop.remove_reader(lifeline)
        stop.set()

    loop.add_reader(lifeline, let_go)
    try:
        yield
    finally:
        loop.remove_reader(lifeline)


async def _end(controller: Any) -> None:
    """Have the controller end its processes, and end it too: on a Ray of others nothing of ours may stay."""
    import ray
    from ray.exceptions import RayError

    try:
        await asyncio.wait_for(controller.stop.remote(), STOP_TIMEOUT_S)
    except (RayError, TimeoutError) as error:
        log.error("the controller did not stop: %s", error)
    finally:
        ray.kill(controller)


async def _unless(stop: asyncio.Event, work: Any) -> Any:
    """The result of ``work``, or None when told to stop before it is there."""
    stopped = asyncio.ensure_future(stop.wait())
    future = asyncio.ensure_future(work)
    try:
        await asyncio.wait((stopped, future), return_when=asyncio.FIRST_COMPLETED)
        if future.done():
            return future.result()
    finally:
        stopped.cancel()
        future.cancel()
        await asyncio.gather(stopped, future, return_exceptions=True)
    return None


async def _start(controller: Any) -> list[str]:
    from twinpool.cluster.ray_host import outcome_of

    addresses: list[str] = await outcome_of(controller.start.remote())
    return addresses


async def _controller_lost(controller: Any) -> None:
    from ray.exceptions import RayActorError

    try:
        await controller.until_closed.remote()
    except RayActorError as error:
        log.warning("the controller is gone (%s); starting another", str(error).splitlines()[0])


def _controller(plan: LaunchPlan) -> Any:
    from twinpool.cluster.actors import OPTIONS
    from twinpool.cluster.controller_actor import make_controller

    return make_controller(plan, OPTIONS)


def _check_ports_are_free(plan: LaunchPlan) -> None:
    for gateway in plan.gateways:
        if not gateway.grpc_port:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((gateway.host, gateway.grpc_port))
            except OSError as error:
                where = f"gateway.grpc_port: {gateway.host}:{gateway.grpc_port}"
                raise SpecError(f"{where} cannot be used: {error.strerror}") from None


def _ray_address() -> str:
    import ray

    return str(ray.get_runtime_context().gcs_address)


def main() -> int:
    """Run detached; tell the starter by one JSON line whether the cluster serves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--lifeline-fd", type=int)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    pipes = [arguments.ready_fd]

    def report(**fields: object) -> None:
        if pipes:  # the starter listens until the first report
            with os.fdopen(pipes.pop(), "w") as pipe:
                pipe.write(json.dumps(fields) + "\n")

    try:
        folder = StateFolder(arguments.state_dir)
        supervise(arguments.spec, folder, lambda state: report(ok=True, grpc=state.grpc), arguments.lifeline_fd)
    except TwinpoolError as error:
        log.error("%s", error)
        report(ok=False, error=str(error), is_spec=isinstance(error, SpecError))
        return 2 if isinstance(error, SpecError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
