"""What a launched gateway starts from: the profile and the hardware that the YAML names."""

import json
from pathlib import Path

import pytest

from tests.router.profiles import kind, profile
from twinpool.cluster.gateway import placement_settings, view_of
from twinpool.cluster.launch import plan_launch
from twinpool.core.errors import SpecError
from twinpool.core.messages import Role
from twinpool.protos.twinpool.v1 import worker_pb2
from twinpool.router.estimate import LinearForm
from twinpool.router.hardware import GPUS
from twinpool.router.roofline import ModelSize, roofline_form
from twinpool.router.views import WorkerView

TINY = ModelSize(4, 128, 4, 2, 32, 352, 512)  # dummy:tiny
P, D = "prefill-tp1-pp1", "decode-tp1-pp1"


def write(folder: Path, *, model: str = "modelled:instant", pools: str = "", router: str = "") -> Path:
    path = folder / "cluster.yaml"
    lines = [
        "name: x",
        f"model: {{path: '{model}'}}",
        "pools:",
        f"  prefill: {{workers: 1{pools}}}",
        "  decode: {workers: 1}",
        f"router: {{policy: slo{router}}}",
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(SpecError) as caught:
        plan_launch(path)
    return str(caught.value)


def test_a_gateway_starts_from_the_profile_beside_its_yaml(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps(profile(prefill_tp1_pp1=kind())))
    (gateway,) = plan_launch(write(tmp_path, router=", profile: p.json")).gateways
    settings = placement_settings(gateway, 64)
    assert settings.latencies[P].steps == LinearForm(0.01, 0.001, 0.0, 0.02, 0.0, 0.003)
    assert settings.latencies[P].chunk_tokens == 512
    assert gateway.kinds[Role.PREFILL] == P
    assert gateway.kinds[Role.DECODE] == D


@pytest.mark.parametrize(("role", "kind"), [("prefill", P), ("decode", D), ("mixed", "mixed-tp1-pp1")])
def test_a_worker_that_greets_is_of_its_role_s_kind(tmp_path: Path, role: str, kind: str) -> None:
    (gateway,) = plan_launch(write(tmp_path)).gateways
    address = worker_pb2.WorkerAddress(worker_id="w", incarnation="i")
    hello = worker_pb2.WorkerHello(address=address, role=role, total_blocks=10, block_tokens=16)
    assert view_of(hello, gateway.kinds) == WorkerView("w", "i", Role(role), 10, 16, kind=kind)
    assert view_of(hello, {}).kind == ""


def test_a_gateway_starts_from_the_roofline_of_named_hardware(tmp_path: Path) -> None:
    (gateway,) = plan_launch(write(tmp_path, model="dummy:tiny", pools=", hardware: H100-SXM")).gateways
    assert set(gateway.latencies) == {P}
    assert gateway.latencies[P].steps == roofline_form(TINY, GPUS["H100-SXM"])


def test_without_either_nothing_is_supposed(tmp_path: Path) -> None:
    (gateway,) = plan_launch(write(tmp_path)).gateways
    assert placement_settings(gateway, 64).latencies == {}


def test_modelled_models_have_no_roofline(tmp_path: Path) -> None:
    (gateway,) = plan_launch(write(tmp_path, pools=", hardware: H100-SXM")).gateways
    assert gateway.latencies == {}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, ":6: router.profile: "),
        ("{", "is not JSON"),
        (json.dumps(profile() | {"message_s": -1.0}), "p.json: message_s: "),
        (json.dumps(profile(x=kind(kv_token_bytes=65))), "65 bytes of KV a token (m), not 64"),
    ],
)
def test_a_bad_profile_is_refused_at_the_yaml_s_line(tmp_path: Path, content: str | None, expected: str) -> None:
    if content is not None:
        (tmp_path / "p.json").write_text(content)
    told = refusal(write(tmp_path, router=", profile: p.json"))
    assert ":6: router.profile: " in told
    assert expected in told


def test_hardware_without_a_sheet_is_refused_at_its_line(tmp_path: Path) -> None:
    assert ":4: pools.prefill.hardware: " in refusal(write(tmp_path, pools=", hardware: TPU"))


def test_hardware_whose_sheet_lacks_a_number_is_refused_at_its_line(tmp_path: Path) -> None:
    told = refusal(write(tmp_path, model="dummy:tiny", pools=", hardware: A10G"))
    assert ":4: pools.prefill.hardware: A10G: its flops_per_s is not known" in told
