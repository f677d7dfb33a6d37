"""Makes a scenario of a cluster's YAML: the workers that its pools would have, the router's knobs, the goals.

Knows what a live cluster derives from the same YAML, from the same functions. Opens no file.
"""

from dataclasses import dataclass, field

from twinpool.core.errors import SpecError
from twinpool.core.messages import Role
from twinpool.core.spec import ClusterSpec, PoolSpec
from twinpool.model.shape import ModelShape, load_shape
from twinpool.router.admission import AdmissionSettings
from twinpool.router.estimate import LatencyModel
from twinpool.router.latency_profile import kind_name
from twinpool.router.route import Disaggregate, OnPrefillLoss, PlacementSettings, Policy
from twinpool.simulator.scenario import GoalClass, PrefixCache, Scenario, SimulatedWorker, WorkerKind
from twinpool.simulator.truth import Truth, TruthOptions, find_truth

MAX_LAYER_GROUPS = 8
