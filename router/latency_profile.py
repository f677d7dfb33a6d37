"""What was measured of a cluster's workers, as the profile file has it: forms, links, delays, and the fits' errors.

Knows the file's keys and their limits; cluster/profile_file.py reads and writes it.
"""

from dataclasses import asdict
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from twinpool.core.messages import Role
from twinpool.router.estimate import LatencyModel, LinearForm, LinkCost, StepForm
from twinpool.router.latency_fit import FitError, LinearFit
from twinpool.router.latency_table import Curve, TableForm

VERSION = 1
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(max_length=1024)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class LinearPart(_Part):
    """`LinearForm`."""

    form: Literal["linear"] = "linear"
    prefill_a_s: Seconds
    prefill_b_s: Seconds
    prefill_c_s: Seconds
    decode_alpha_s: Seconds
    decode_beta_s: Seconds
    decode_gamma_s: Seconds

    def steps(self) -> LinearForm:
        """The form itself."""
        return LinearForm(**self.model_dump(exclude={"form"}))


class CurvePart(_Part):
    """`Curve`: as many values as places, which grow."""

    x: Annotated[list[Seconds], Field(min_length=2, max_length=10_000)]
    y: list[Seconds]

    @model_validator(mode="after")
    def _is_a_curve(self) -> Self:
        if len(self.x) != len(self.y) or any(one >= other for one, other in zip(self.x, self.x[1:], strict=False)):
            raise ValueError("x must grow, and y must have a value for each")
        return self

    def curve(self) -> Curve:
        """The curve itself."""
        return Curve(tuple(self.x), tuple(self.y))


class TablePart(_Part):
    """`TableForm`."""

    form: Literal["table"] = "table"
    prefill_s: CurvePart
    decode_s: CurvePart
    base_context_tokens: Seconds
    context_s_per_token: Seconds

    def steps(self) -> TableForm:
        """The form itself."""
        return TableForm(
            self.prefill_s.curve(), self.decode_s.curve(), self.base_context_tokens, self.context_s_per_token
        )


class LinkPart(_Part):
    """`LinkCost`."""

    latency_s: Seconds
    bytes_per_s: Positive | None
    """None: too fast to be measured."""

    def cost(self) -> LinkCost:
        """The link itself."""
        return LinkCost(self.latency_s, self.bytes_per_s or float("inf"))


class ErrorPart(_Part):
    """`FitError`."""

    count: Annotated[int, Field(ge=1)]
    median: Seconds
    p90: Seconds


class KindProfile(_Part):
    """Workers of one role and shape."""

    role: Literal["prefill", "decode", "mixed"]
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    pipeline_parallel: Annotated[int, Field(ge=1)] = 1
    kv_token_bytes: Annotated[int, Field(ge=1)]
    steps: Annotated[LinearPart | TablePart, Field(discriminator="form")]
    """How long steps take, as the worker's engine loop sees it: with all that it does between two steps."""
    link: LinkPart
    """A handoff that leaves such a worker."""
    step_overhead_s: Seconds = 0.0
    """Of that, what the loop takes beside computing; for information, it is in `steps`."""
    send_s: Seconds = 0.0
    """What its engine does for a prompt that is handed over, beside the steps that compute it."""
    join_s: Seconds = 0.0
    """What its engine does for a sequence that arrives by a handoff and ends, beside the steps that decode it."""
    fit_errors: dict[str, ErrorPart] = Field(default_factory=dict)
    """By region."""
    not_measured: list[str] = Field(default_factory=list)
    """Regions in which the form only extrapolates."""

    def latency_model(self, chunk_tokens: int) -> LatencyModel:
        """What predictions are made from."""
        return LatencyModel(self.steps.steps(), self.link.cost(), self.kv_token_bytes, chunk_tokens)


class LatencyProfile(_Part):
    """A profile file."""

    version: Literal[1]
    model: Name
    machine: Name
    dtype: Name
    message_s: Seconds
    """A control message, one way, between a gateway and an idle worker."""
    kinds: Annotated[dict[str, KindProfile], Field(min_length=1, max_length=1024)]
    """By `kind_name`."""

    def of_kind(self, name: str) -> KindProfile | None:
        """The kind of that name, or else the first of the same shape, whatever its role: the hardware is the same."""
        if name in self.kinds:
            return self.kinds[name]
        shape = name.partition("-")[2]
        return next((self.kinds[other] for other in sorted(self.kinds) if other.partition("-")[2] == shape), None)


def kind_name(role: Role | str, tensor_parallel: int = 1, pipeline_parallel: int = 1) -> str:
    """What workers of one role and shape are called: ``prefill-tp1-pp1``."""
    return f"{role}-tp{tensor_parallel}-pp{pipeline_parallel}"


def part_of(form: StepForm) -> LinearPart | TablePart:
    """A form as the file has it.

    Raises:
        TypeError: a form that is computed and not measured; it has no place in a profile.
    """
    match form:
        case LinearForm():
            return LinearPart.model_validate(
                {"form": "linear", **{key: float(value) for key, value in asdict(form).items()}}
            )
        case TableForm():
            prefill, decode = (CurvePart(x=list(c.x), y=list(c.y)) for c in (form.prefill_s, form.decode_s))
            return TablePart(
                prefill_s=prefill,
                decode_s=decode,
                base_context_tokens=form.base_context_tokens,
                context_s_per_token=form.context_s_per_token,
            )
        case _:
            raise TypeError(f"a profile holds linear and table forms, not {type(form).__name__}")


def error_parts(fit: LinearFit) -> dict[str, ErrorPart]:
    """A fit's errors as the file has them."""
    return {str(region): _error_part(error) for region, error in fit.errors.items()}


def _error_part(error: FitError) -> ErrorPart:
    return ErrorPart(count=error.count, median=error.median, p90=error.p90)


def link_part(link: LinkCost) -> LinkPart:
    """A link as the file has it."""
    return LinkPart(
        latency_s=link.latency_s, bytes_per_s=None if link.bytes_per_s == float("inf") else link.bytes_per_s
    )
