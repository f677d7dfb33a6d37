"""Reads what the router starts from: the profile that a cluster's YAML names, and the model's size.

Knows where these are written; router/first_estimate.py says what follows from them.
"""

from twinpool.cluster.profile_file import read_profile
from twinpool.core.errors import SpecError
from twinpool.core.spec_fields import Problem
from twinpool.core.spec_file import SpecFile
from twinpool.model.config import load_model_config
from twinpool.model.kv_layout import ITEM_BYTES
from twinpool.model.modelled_shape import PREFIX
from twinpool.model.shape import ModelShape
from twinpool.router.estimate import LatencyModel
from twinpool.router.first_estimate import check_profile, first_estimates
from twinpool.router.latency_profile import LatencyProfile
from twinpool.router.roofline import ModelSize


def read_estimates(file: SpecFile, shape: ModelShape) -> dict[str, LatencyModel]:
    """Latency models by kind of worker, as far as anything is known.

    Raises:
        SpecError: the profile is not one, or of another model, or a sheet lacks a number; with the YAML's line.
    """
    profile = read_named_profile(file)
    if profile is not None:
        file.refuse(check_profile(profile, shape.kv_token_bytes))
    found, problems = first_estimates(file.spec, profile, model_size(file, shape))
    file.refuse(problems)
    return found


def read_named_profile(file: SpecFile) -> LatencyProfile | None:
    """The profile of `router.profile`, if the YAML names one; raises SpecError with the YAML's line."""
    path = file.spec.router.profile
    if path is None:
        return None
    try:
        return read_profile(path)
    except SpecError as error:
        file.refuse([Problem(("router", "profile"), line) for line in str(error).splitlines()])
        raise


def model_size(file: SpecFile, shape: ModelShape) -> ModelSize | None:
    """What a roofline needs of the model; a modelled one has no size to speak of."""
    if file.spec.model.path.startswith(PREFIX):
        return None
    return ModelSize.of(load_model_config(file.spec.model.path), ITEM_BYTES[shape.kv_layout.dtype])
