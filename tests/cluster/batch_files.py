"""Small batch files for tests: lines of input, and what is read back of an output."""

import json
from pathlib import Path
from typing import Any

Fields = dict[str, Any]


def completion(custom_id: str, prompt: object = (1, 2, 3), **body: Any) -> Fields:
    """A line of a batch: token ids by default, which every model takes."""
    fields = {"prompt": list(prompt) if isinstance(prompt, tuple) else prompt, "max_tokens": 4} | body
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": fields}


def chat(custom_id: str, content: str = "Who are you?", **body: Any) -> Fields:
    fields = {"messages": [{"role": "user", "content": content}], "max_tokens": 4} | body
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": fields}


def write_lines(path: Path, lines: list[Fields | str]) -> Path:
    """Write lines; texts as they are."""
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def read_lines(path: Path) -> list[Fields]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_id(path: Path) -> dict[str | None, Fields]:
    """An output's lines, each custom_id once."""
    lines = read_lines(path)
    found = {line["custom_id"]: line for line in lines}
    assert len(found) == len(lines), "a custom_id has two answers"
    return found
