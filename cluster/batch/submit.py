"""Hands a batch to a running Ray cluster as a job, and follows it.

Knows Ray's job API; what the job does is command.py's business.
"""

import asyncio
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twinpool.core.errors import SpecError

STOP_WAIT_S = 60  # for the job to take down a cluster of its own when it is stopped; Ray's default of 3 is too short
AGENT_WAIT_S = 60  # a Ray that has just started refuses jobs until its dashboard agent has come up
NO_AGENT = "No available agent"


def job_entrypoint(python: str, input_path: Path, output_path: Path, options: Sequence[str]) -> str:
    """The shell command of the job; paths are absolute, for the node that runs it."""
    command = [python, "-m", "twinpool.cluster.batch", str(input_path.absolute()), str(output_path.absolute())]
    return shlex.join([*command, *options])


def submit_batch(ray_address: str, entrypoint: str, *, follow: bool) -> int:
    """Submit the job and say its id; with ``follow`` show its log, and return 0 if it succeeded, else 1.

    Raises:
        SpecError: there is no Ray dashboard at the address, or it takes no jobs.
    """
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    try:
        client: Any = JobSubmissionClient(ray_address)
        environment = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}}
        job_id = when_agent_is_up(lambda: str(client.submit_job(entrypoint=entrypoint, runtime_env=environment)))
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        hint = "if it asks for a token, set RAY_AUTH_MODE=token"
        raise SpecError(f"--ray-address: {ray_address}: {str(error).strip().splitlines()[0]} ({hint})") from None
    _say(f"{job_id}: {entrypoint}")
    if not follow:
        return 0
    asyncio.run(_show_log(client, job_id))
    status = client.get_job_status(job_id)
    _say(f"{job_id}: {status.value}")
    return int(status.value != "SUCCEEDED")


def when_agent_is_up(submit: Callable[[], str], pause: Callable[[float], None] = time.sleep) -> str:
    """What ``submit`` returns, called again every second for a while where Ray says that it has no agent yet."""
    for _ in range(AGENT_WAIT_S):
        try:
            return submit()
        except RuntimeError as error:
            if NO_AGENT not in str(error):
                raise
        pause(1.0)
    return submit()


async def _show_log(client: Any, job_id: str) -> None:
    async for text in client.tail_job_logs(job_id):
        _say(text, end="")


def _say(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()
