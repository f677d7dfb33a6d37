"""Reads the files and words of a command line that say what is simulated beside the cluster's YAML.

Knows options by their names; what they mean is simulator/from_spec.py's.
"""

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from twinpool.cluster.profile_file import read_profile, read_profile_csv
from twinpool.core.errors import SpecError
from twinpool.core.spec_fields import Bytes
from twinpool.router.latency_profile import LatencyProfile
from twinpool.router.latency_table import TableForm, table_form
from twinpool.simulator.from_spec import ScenarioOptions, parse_policy
from twinpool.simulator.truth import AUTO, find_gpu

_BYTES: TypeAdapter[int] = TypeAdapter(Bytes)


def read_scenario_options(
    *,
    policy: str | None = None,
    gateways: int | None = None,
    latency: Path | None = None,
    latency_rows: str | None = None,
    hardware: str | None = None,
    tensor_parallel: int | None = None,
    kv_memory: str | None = None,
    noise: float = 0.0,
    seed: int = 0,
) -> ScenarioOptions:
    """Options from plain values. Raises SpecError, naming the option or the file and what is wrong there."""
    profile, table = _read_latency(latency, latency_rows, tensor_parallel or 1)
    return ScenarioOptions(
        profile=profile,
        table=table,
        hardware=None if hardware is None else find_gpu(hardware, "--hardware").name,
        tensor_parallel=tensor_parallel,
        kv_memory=None if kv_memory is None else _memory(kv_memory),
        policy=None if policy is None else parse_policy(policy),
        num_gateways=gateways,
        step_noise=noise,
        seed=seed,
    )


def _read_latency(
    path: Path | None, rows: str | None, tensor_parallel: int
) -> tuple[LatencyProfile | None, TableForm | None]:
    """A profile, or a form made of a table's rows."""
    if path is None or path.suffix.lower() != ".csv":
        if rows is not None:
            raise SpecError("--latency-rows: is for --latency FILE.csv")
        return (None if path is None else read_profile(path)), None
    model, comma, hardware = (rows or "").partition(",")
    if not (model.strip() and comma and hardware.strip()):
        raise SpecError("--latency-rows: say which rows of the .csv: MODEL,GPU, such as llama2-70b,h100-80gb")
    points = read_profile_csv(path, model.strip(), hardware.strip(), tensor_parallel)
    try:
        return None, table_form(points)
    except ValueError as error:
        raise SpecError(f"{path}: {error}") from None


def _memory(text: str) -> int | str:
    if text == AUTO:
        return AUTO
    try:
        return _BYTES.validate_python(text)
    except ValidationError as error:
        raise SpecError(f"--kv-memory: {error.errors()[0]['msg']}") from None
