"""`twinpool demo`: a small cluster, a few streamed completions, and a table of where their time went."""

import os
import sys
import textwrap
import time
from pathlib import Path

import twinpool
from twinpool.client.client import Client
from twinpool.client.results import GenerationResult
from twinpool.cluster.own_cluster import own_cluster, read_values
from twinpool.cluster.show import print_timings, status_as_dict
from twinpool.cluster.state import StateFolder
from twinpool.core.errors import SpecError

PROMPTS = (
    "def read_file(",
    "class Stack:\n    def __init__(self",
    "import os\nimport sys\n\ndef main(",
)
QUESTION = "Who are you?"
LONG_PROMPT_CHARACTERS = 3300  # over a thousand tokens: several chunks, whose KV leaves while the next is computed


def run_demo(folder: StateFolder) -> None:
    """Bring `examples/demo.yaml` up on free ports, stream, show, and take it down again."""
    spec_path = Path(twinpool.__file__).resolve().parents[2] / "examples" / "demo.yaml"
    if not spec_path.exists():
        raise SpecError(f"{spec_path}: the demo runs from a clone of the repository")
    started = time.monotonic()
    with own_cluster(read_values(spec_path), f"demo-{os.getpid()}", folder) as state:
        with Client(list(state.grpc)) as client:
            _say(f"{state.name} is up after {time.monotonic() - started:.1f} s:")
            for worker in status_as_dict(client.status())["workers"]:
                _say(f"  {worker['id']}: pid {worker['pid']}, {worker['total_blocks']} KV blocks, {worker['link']}")
            results = [_stream(client, prompt) for prompt in PROMPTS]
            results += [_chat(client), _long(client)]
        _say("\nwhere each request's time went:")
        print_timings(results)
    _say("\nthe cluster is down again")


def _stream(client: Client, prompt: str) -> GenerationResult:
    _say(f"\n--- {prompt!r}, temperature 0.3, seed 7\n{prompt}", end="")
    with client.stream(prompt, max_tokens=64, temperature=0.3, seed=7) as stream:
        for event in stream:
            _say(event.text, end="")
        return _ended(stream.result)


def _chat(client: Client) -> GenerationResult:
    _say(f"\n--- chat, greedy\nuser: {QUESTION}\nassistant: ", end="")
    messages = [{"role": "user", "content": QUESTION}]
    with client.stream(messages, max_tokens=96, temperature=0.0) as stream:
        for event in stream:
            _say(event.text, end="")
        return _ended(stream.result)


def _long(client: Client) -> GenerationResult:
    source = Path(textwrap.__file__).read_text()[:LONG_PROMPT_CHARACTERS]
    source = source[: source.rindex("\n") + 1]
    _say(f"\n--- the first {len(source)} characters of textwrap.py, greedy\n[...]\n{source[-80:]}", end="")
    with client.stream(source, max_tokens=32, temperature=0.0) as stream:
        for event in stream:
            _say(event.text, end="")
        return _ended(stream.result)


def _ended(result: GenerationResult) -> GenerationResult:
    _say("")
    return result


def _say(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()
