"""Reads a cluster YAML and says, for every problem at once, in which line it is.

Safe by construction: YAML is composed into nodes and only plain scalars, lists and mappings are made of them.
Knows nothing of what the keys mean; core/spec.py does.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from twinpool.core.errors import SpecError
from twinpool.core.spec import ClusterSpec
from twinpool.core.spec_fields import KeyPath, Problem, dotted, shown
from twinpool.core.spec_requests import GoalSpec, TenantSpec

MAX_FILE_BYTES = 64 * 1024  # parsing this much takes about a second
MAX_DEPTH = 16
MAX_PROBLEMS = 50
PSEUDO_PATHS = ("dummy:", "modelled:")  # models that are no directory
_WORDING = (  # pydantic's, and ours
    ("Input should be a valid boolean", "must be true or false"),
    ("Input should be", "must be"),
    ("String should", "must"),
)
_BY_NAME: Mapping[str, type[BaseModel]] = {"goals": GoalSpec, "tenants": TenantSpec}  # sections under any name
_TAG = "tag:yaml.org,2002:"
_KINDS = ("map", "seq", "str", "int", "float", "bool", "null")


@dataclass(frozen=True, slots=True)
class SpecFile:
    """A cluster and where each of its keys stands in its file."""

    path: Path
    spec: ClusterSpec
    lines: Mapping[KeyPath, int]

    def refuse(self, problems: Iterable[Problem]) -> None:
        """Raise SpecError, one line for each problem, unless there is none."""
        _raise(self.path, self.lines, problems)


def load_cluster(path: str | Path) -> ClusterSpec:
    """The cluster that a YAML file describes, its model's path made absolute.

    Raises SpecError with one line ``FILE:LINE: keys: what is wrong`` for each problem of the file.
    """
    return read_cluster(path).spec


def read_cluster(path: str | Path) -> SpecFile:
    """As load_cluster, with the lines, for problems that only show when the model is known."""
    path = Path(path)
    data, lines, problems = _read_tree(_read_text(path), path)
    problems += _resolve_model(data, path.absolute().parent)
    problems += _resolve_profile(data, path.absolute().parent)
    spec, more = check_cluster(data)
    told = {problem.path for problem in problems}
    _raise(path, lines, problems + [problem for problem in more if problem.path not in told])
    assert spec is not None, "no cluster and no problem"
    return SpecFile(path, spec, lines)


def check_cluster(data: object) -> tuple[ClusterSpec | None, list[Problem]]:
    """Validate plain values as read from YAML: a cluster, or every problem found. Relative paths stay as they are."""
    try:
        return ClusterSpec.model_validate(data), []
    except ValidationError as error:
        return None, [problem for item in error.errors(include_url=False) for problem in _explain(item)]


def _explain(item: ErrorDetails) -> list[Problem]:
    path = tuple(key for key in item["loc"] if key != "[key]")
    match item["type"]:
        case "problems":
            return [Problem(path + problem.path, problem.what) for problem in item["ctx"]["problems"]]
        case "missing":
            return [Problem(path, "is missing")]
        case "extra_forbidden":
            return [Problem(path, _unknown_key(path))]
        case "model_type" | "dict_type":
            return [Problem(path, f"must be a mapping of keys to values, not {shown(item['input'])}")]
    text = item["msg"]
    for theirs, ours in _WORDING:
        text = text.replace(theirs, ours)
    return [Problem(path, text if " not " in text else f"{text}, not {shown(item['input'])}")]


def _unknown_key(path: KeyPath) -> str:
    section: type[BaseModel] = ClusterSpec
    if path[0] in _BY_NAME:
        section = _BY_NAME[str(path[0])]
    else:
        for key in path[:-1]:
            section = cast("type[BaseModel]", section.model_fields[str(key)].annotation)
    known = sorted(section.model_fields)
    close = get_close_matches(str(path[-1]), known, 1)
    return f"unknown key; did you mean {close[0]}?" if close else f"unknown key; known: {', '.join(known)}"


def _resolve_model(data: dict[str, Any], folder: Path) -> list[Problem]:
    """Make the model's path in ``data`` absolute, and see that it is a directory."""
    section = data.get("model")
    name = section.get("path") if isinstance(section, dict) else None
    if not isinstance(section, dict) or not isinstance(name, str) or not name:
        return []  # the models say it better
    where = ("model", "path")
    if name.startswith(PSEUDO_PATHS):
        return [] if name.partition(":")[2].strip() else [Problem(where, f"names no shape after {name!r}")]
    try:
        model = (folder / Path(name).expanduser()).resolve()
        if not model.is_dir():
            return [Problem(where, f"{str(model)!r} is {'no directory' if model.exists() else 'not there'}")]
    except (OSError, RuntimeError, ValueError) as error:
        return [Problem(where, f"{name!r} cannot be read: {error}")]
    section["path"] = str(model)
    return []


def _resolve_profile(data: dict[str, Any], folder: Path) -> list[Problem]:
    """Make the profile's path in ``data`` absolute, and see that it is a file."""
    section = data.get("router")
    name = section.get("profile") if isinstance(section, dict) else None
    if not isinstance(section, dict) or not isinstance(name, str) or not name:
        return []  # the models say it better
    where = ("router", "profile")
    try:
        profile = (folder / Path(name).expanduser()).resolve()
        if not profile.is_file():
            return [Problem(where, f"{str(profile)!r} is {'no file' if profile.exists() else 'not there'}")]
    except (OSError, RuntimeError, ValueError) as error:
        return [Problem(where, f"{name!r} cannot be read: {error}")]
    section["profile"] = str(profile)
    return []


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise SpecError(f"{path}: is over {MAX_FILE_BYTES // 1024} KiB, which no cluster needs")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}:{data[: error.start].count(10) + 1}: is not UTF-8 text") from None


def _read_tree(text: str, path: Path) -> tuple[dict[str, Any], dict[KeyPath, int], list[Problem]]:
    """Plain values, the line of each key, and what YAML allows and we do not."""
    try:
        _check_bounds(text, path)
        root = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f":{error.problem_mark.line + 1}"
        raise SpecError(f"{path}{line}: is not YAML: {error.problem or error.context}") from None
    except YAMLError as error:
        raise SpecError(f"{path}: is not YAML: {str(error).splitlines()[0]}") from None
    if root is None:
        raise SpecError(f"{path}: is empty")
    line = root.start_mark.line + 1
    if not isinstance(root, MappingNode) or str(root.tag) != f"{_TAG}map":
        raise SpecError(f"{path}:{line}: must be a mapping of keys to values")
    tree = _Tree()
    tree.lines[()] = line
    return tree.mapping(root, ()), tree.lines, tree.problems


def _check_bounds(text: str, path: Path) -> None:
    """Refuse aliases, which can make a small file huge, and nesting that recursion would not survive."""
    depth = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        where = f"{path}:{event.start_mark.line + 1}"
        if isinstance(event, AliasEvent) or getattr(event, "anchor", None) is not None:
            raise SpecError(f"{where}: YAML anchors and aliases are not supported")
        if depth > MAX_DEPTH:
            raise SpecError(f"{where}: is nested over {MAX_DEPTH} deep")


class _Tree:
    """Turns nodes into plain values, keeping lines and problems on the way."""

    def __init__(self) -> None:
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []
        self._scalars = YAML(typ="safe", pure=True).constructor

    def value(self, node: Node, path: KeyPath) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        kind = str(node.tag).removeprefix(_TAG)
        if kind == "timestamp":
            return node.value
        if kind not in _KINDS:
            self.problems.append(Problem(path, f"YAML tag {shown(str(node.tag))} is not supported"))
            return None
        if isinstance(node, MappingNode):
            return self.mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        try:
            return self._scalars.construct_object(node)
        except (KeyError, ValueError, OverflowError):
            self.problems.append(Problem(path, f"{shown(node.value)} cannot be read as {kind}"))
            return None

    def mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                self.problems.append(Problem(path, f"the key in line {line} is not a word"))
                continue
            key = key_node.value  # as spelled: a key that looks like a number is still a word
            if key in values:
                self.problems.append(Problem((*path, key), f"is given again in line {line}"))
                continue
            self.lines[*path, key] = line
            values[key] = self.value(value_node, (*path, key))
        return values


def _raise(path: Path, lines: Mapping[KeyPath, int], problems: Iterable[Problem]) -> None:
    found = sorted((_line(lines, problem.path), dotted(problem.path), problem.what) for problem in problems)
    if not found:
        return
    texts = [f"{path}:{line}: {keys}: {what}" if keys else f"{path}:{line}: {what}" for line, keys, what in found]
    if len(texts) > MAX_PROBLEMS:
        texts[MAX_PROBLEMS:] = [f"{path}: and {len(texts) - MAX_PROBLEMS} more problems"]
    raise SpecError("\n".join(texts))


def _line(lines: Mapping[KeyPath, int], path: KeyPath) -> int:
    """The line of a key, or of the nearest section around it when the key is not there."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)
