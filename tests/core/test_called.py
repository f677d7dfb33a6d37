"""Fields as callers call them: every kind of prompt is the prompt, and all else keeps its name."""

import pytest

from twinpool.core.called import as_called


@pytest.mark.parametrize(
    ("field", "called"),
    [
        ("text", "prompt"),
        ("token_ids", "prompt"),
        ("token_ids[3]", "prompt[3]"),
        ("chat", "prompt"),
        ("chat[0].content", "prompt[0].content"),
        ("prompt", "prompt"),
        ("sampling.stop_token_ids", "sampling.stop_token_ids"),
        ("text_format", "text_format"),
    ],
)
def test_only_prompts_are_renamed(field: str, called: str) -> None:
    assert as_called(field) == called
