"""Rules of the repository itself: its layout, what its files may import, and that generated files are current."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

import twinpool
from twinpool.core.spec_file import load_cluster

ROOT = Path(__file__).resolve().parent.parent
LINKS = ROOT / "src" / "twinpool"
SKIPPED = {"build", "dist", "node_modules", "src"}  # src holds links to folders that are walked anyway
FORBIDDEN_IN_PURE = {"asyncio", "grpc", "logging", "os", "random", "ray", "time", "torch", "triton"}
PURE = (
    "router/*.py",
    "cluster/batch/json_line.py",
    "cluster/batch/line.py",
    "cluster/batch/record.py",
    "cluster/batch/tally.py",
    "cluster/bench/parity_numbers.py",
    "cluster/json_text.py",
    "cluster/openai_answers.py",
    "cluster/openai_bodies.py",
    "cluster/profile/grid.py",
    "cluster/profile/result.py",
    "cluster/profile/rows.py",
    "*_worker/batching.py",
    "decode_worker/age_table.py",
    "decode_worker/lengths.py",
    "kv_transfer/codec.py",
    "kv_transfer/codec_choice.py",
    "kv_transfer/codec_format.py",
    "kv_transfer/coding.py",
    "kv_transfer/events.py",
    "kv_transfer/handoff.py",
    "kv_transfer/link_choice.py",
    "kv_transfer/metrics.py",
    "kv_transfer/phases.py",
    "kv_transfer/plan.py",
    "kv_transfer/rank_groups.py",
    "kv_transfer/rank_shape.py",
    "kv_transfer/reshard.py",
    "kv_transfer/runs.py",
    "kv_transfer/sending.py",
    "kv_transfer/source.py",
    "kv_transfer/target.py",
    "kv_transfer/terms.py",
    "kv_transfer/throughput.py",
    "core/called.py",
    "core/errors.py",
    "core/limits.py",
    "core/messages.py",
    "core/sampling.py",
    "core/spec.py",
    "core/spec_fields.py",
    "core/spec_pools.py",
    "core/spec_requests.py",
    "core/spec_section.py",
    "model/batch.py",
    "model/block_hash.py",
    "model/block_pool.py",
    "model/kv_layout.py",
    "model/layer_groups.py",
    "model/sequence.py",
    "model/step.py",
    "model/stop_strings.py",
)
CODE_FROM_BYTES = {"cloudpickle", "dill", "jsonpickle", "marshal", "pickle", "ray.cloudpickle", "shelve"}


def folders_below(folder: Path) -> Iterator[Path]:
    """The folder and those below it, links, hidden ones and build results left out."""
    yield folder
    for child in folder.iterdir():
        is_skipped = child.name.startswith(".") or child.name.endswith(".egg-info") or child.name in SKIPPED
        if child.is_dir() and not (child.is_symlink() or is_skipped):
            yield from folders_below(child)


def files(pattern: str) -> list[Path]:
    """Files of the working tree by name."""
    return sorted(path for folder in FOLDERS for path in folder.glob(pattern))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything a file imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FOLDERS = list(folders_below(ROOT))
PACKAGES = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
SOURCES = [path for path in files("*.py") if not path.stem.endswith(("_pb2", "_pb2_grpc"))]
PURE_FILES = [path for pattern in PURE for path in sorted(ROOT.glob(pattern)) if path.name != "__init__.py"]


def test_each_package_folder_has_one_relative_link_and_nothing_else_has():
    links = {path.name: str(path.readlink()) for path in LINKS.iterdir() if path.is_symlink()}
    assert links == {name: f"../../{name}" for name in PACKAGES}


def test_the_import_package_holds_nothing_but_links_and_itself():
    assert {path.name for path in LINKS.iterdir() if not path.is_symlink()} <= {
        "__init__.py",
        "py.typed",
        "__pycache__",
    }


@pytest.mark.parametrize("path", files("__init__.py"), ids=name_of)
def test_package_files_are_empty_so_that_importing_one_module_imports_no_other(path: Path):
    assert path.read_text() == ""


def test_public_names_are_sorted_and_exist():
    assert twinpool.__all__ == sorted(twinpool.__all__)
    assert [name for name in twinpool.__all__ if getattr(twinpool, name, None) is None] == []
    with pytest.raises(AttributeError):
        _ = twinpool.no_such_name


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import twinpool", ["grpc", "numpy", "pydantic", "ray", "torch"]),
        ("from twinpool import Client", ["pydantic", "ray", "torch", "transformers"]),
        ("import twinpool.prefill_worker.batching, twinpool.decode_worker.batching", ["grpc", "ray", "torch"]),
    ],
)
def test_an_import_brings_nothing_heavy_along(statement: str, heavy: list[str]):
    code = f"{statement}\nimport sys\nprint([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/", timeout=60
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize("path", files("*.yaml") + files("*.yml"), ids=name_of)
def test_every_yaml_file_is_a_cluster_that_loads_and_that_the_schema_accepts(path: Path):
    load_cluster(path)
    schema = json.loads((ROOT / "docs" / "cluster.schema.json").read_text())
    jsonschema.validate(YAML(typ="safe", pure=True).load(path), schema)


@pytest.mark.parametrize("path", [path for path in SOURCES if "tests" not in path.parts], ids=name_of)
def test_no_file_makes_code_out_of_bytes(path: Path):
    tree = ast.parse(path.read_text())
    found = [name for name in imports(tree) if name in CODE_FROM_BYTES or name.partition(".")[0] in CODE_FROM_BYTES]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("eval", "exec", "torch.load", "ray.cloudpickle.loads") or called.endswith("yaml.unsafe_load"):
                found.append(f"line {node.lineno}: {called}")
            if any(
                keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False" for keyword in node.keywords
            ):
                found.append(f"line {node.lineno}: allow_pickle")
    assert found == []


@pytest.mark.parametrize("path", PURE_FILES, ids=name_of)
def test_pure_files_get_time_and_chance_as_arguments(path: Path):
    tree = ast.parse(path.read_text())
    found = sorted({name for name in imports(tree) if name.partition(".")[0] in FORBIDDEN_IN_PURE})
    found += [name for name in imports(tree) if name.startswith("numpy.random")]
    found += [
        ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_numpy_random(node)
    ]
    assert found == []


def _is_numpy_random(node: ast.Attribute) -> bool:
    return node.attr == "random" and isinstance(node.value, ast.Name) and node.value.id in ("np", "numpy")


def test_every_pattern_of_pure_files_matches_something():
    assert [pattern for pattern in PURE if not any(path.name != "__init__.py" for path in ROOT.glob(pattern))] == []


def test_tests_stand_where_their_sources_stand():
    strays = []
    for path in files("test_*.py"):
        folder = path.relative_to(ROOT / "tests").parent
        if not (ROOT / folder).is_dir():
            strays.append(name_of(path))
    assert strays == []


def test_generated_protocol_code_is_current():
    command = [sys.executable, str(ROOT / "scripts" / "generate_protos.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
