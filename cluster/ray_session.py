"""A process's membership in a Ray: one of its own, of which nothing stays, or one that runs already.

Knows where Ray is and how it starts and ends; not what runs on it.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from twinpool.cluster.descendants import ending_descendants
from twinpool.cluster.launch import LaunchPlan
from twinpool.cluster.stopping import Stopped, StopSignals
from twinpool.core.errors import SpecError

RAY_CONNECT_TIMEOUT_S = 5.0


@contextmanager
def ray_session(plan: LaunchPlan, stop: StopSignals) -> Iterator[None]:
    """Have Ray for as long as the block runs.

    A signal while it starts or connects is never lost: Ray's own start, which leaves processes behind where it is
    interrupted, is waited for (some seconds), and the block does not begin.

    Raises:
        SpecError: no Ray answers; Stopped: a signal came. Nothing of ours is left running.
    """
    import ray

    is_ours = plan.ray_address == "local"
    with ending_descendants() if is_ours else nullcontext():
        try:
            stop.check()
            try:
                _start(plan) if is_ours else _join(plan, stop)
            except SystemExit:  # Ray takes SIGTERM for itself before it starts anything
                raise Stopped from None
            finally:
                stop.listen()
            stop.check()
            yield
        finally:
            ray.shutdown()


def _common() -> dict[str, Any]:
    from twinpool.cluster.actors import NAMESPACE

    return {"namespace": NAMESPACE, "log_to_driver": False, "configure_logging": False}


def _start(plan: LaunchPlan) -> None:
    import ray

    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=plan.object_store_bytes,
        _system_config={"worker_niceness": 0},  # Ray's 15 lets whatever else runs here go before every worker
        **_common(),
    )


def _join(plan: LaunchPlan, stop: StopSignals) -> None:
    """No process of ours is on the way here, so a signal need not wait."""
    import ray

    from twinpool.cluster.nodes import check_nodes

    _check_ray_answers(plan.ray_address)
    with stop.raising():
        try:
            ray.init(address=plan.ray_address, **_common())
        except (ConnectionError, RuntimeError, ValueError) as error:
            hint = "if it asks for a token, set RAY_AUTH_MODE=token"
            what = str(error).splitlines()[0]
            raise SpecError(f"ray.address: no Ray at {plan.ray_address!r}: {what} ({hint})") from None
    stop.listen()
    stop.check()
    check_nodes(plan.workers[0].model)


def _check_ray_answers(address: str) -> None:
    """Ray itself retries for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=RAY_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise SpecError(f"ray.address: no Ray at {address!r}: {error.strerror or error}") from None
