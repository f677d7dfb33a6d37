"""Reads the files and words of a command line that say what is simulated beside the cluster's YAML.

Knows options by their names; what they mean is simulator/from_spec.py's.
"""

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Latency:
    """How long steps take, where a file says it, and what that was measured on; empty texts where no file does."""

    profile: LatencyProfile | None = None
    table: TableForm | None = None
    told: str = ""  # the option or key that names the file
    rows: tuple[str, str, int] | None = None  # of a table: model, GPU, tensor parallel degree

    @property
    def model(self) -> str:
        """Its model's name."""
        if self.rows is not None:
            return self.rows[0]
        return "" if self.profile is None else self.profile.model

    @property
    def machine(self) -> str:
        """The GPU of a table's rows, or the machine of a profile."""
        if self.rows is not None:
            return self.rows[1]
        return "" if self.profile is None else self.profile.machine

    @property
    def tensor_parallel(self) -> int | None:
        """Of a table's rows; a profile has its kinds' own."""
        return None if self.rows is None else self.rows[2]


def read_scenario_options(
    *,
    policy: str | None = None,
    gateways: int | None = None,
    hardware: str | None = None,
    tensor_parallel: int | None = None,
    kv_memory: str | None = None,
    noise: float = 0.0,
    seed: int = 0,
) -> ScenarioOptions:
    """Options from plain values. Raises SpecError, naming the option and what is wrong with it."""
    return ScenarioOptions(
        hardware=None if hardware is None else find_gpu(hardware, "--hardware").name,
        tensor_parallel=tensor_parallel,
        kv_memory=None if kv_memory is None else _memory(kv_memory),
        policy=None if policy is None else parse_policy(policy),
        num_gateways=gateways,
        step_noise=noise,
        seed=seed,
    )


def read_latency(path: Path | None, rows: str | None, tensor_parallel: int) -> Latency:
    """A profile, or a form made of a table's rows for workers of that degree.

    Raises:
        SpecError: the file cannot be read, or the rows are not in it.
    """
    if path is None or path.suffix.lower() != ".csv":
        if rows is not None:
            raise SpecError("--latency-rows: is for --latency FILE.csv")
        return Latency(None if path is None else read_profile(path), told="--latency")
    model, comma, hardware = (rows or "").partition(",")
    if not (model.strip() and comma and hardware.strip()):
        raise SpecError("--latency-rows: say which rows of the .csv: MODEL,GPU, such as llama2-70b,h100-80gb")
    group = (model.strip(), hardware.strip(), tensor_parallel)
    points = read_profile_csv(path, *group)
    try:
        return Latency(None, table_form(points), "--latency", group)
    except ValueError as error:
        raise SpecError(f"{path}: {error}") from None


def _memory(text: str) -> int | str:
    if text == AUTO:
        return AUTO
    try:
        return _BYTES.validate_python(text)
    except ValidationError as error:
        raise SpecError(f"--kv-memory: {error.errors()[0]['msg']}") from None
