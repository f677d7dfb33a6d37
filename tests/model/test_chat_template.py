import pytest

from twinpool.core.errors import InvalidRequest, SpecError
from twinpool.model.chat_template import MAX_RENDERED_CHARS, ChatTemplate

MESSAGES = [{"role": "user", "content": "<b>7 & 8</b>"}, {"role": "assistant", "content": "15"}]


def render(source: str, messages: list[dict[str, str]] = MESSAGES) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}, "here").render(messages)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{{ eos_token }}", "<s>"),
        ("{{ messages[0].content }}", "<b>7 & 8</b>"),
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "<b>7 & 8</b>"}'),
        ("{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}", "user\n"),
        ("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}", "user"),
        ("{% generation %}{{ messages[1].content }}{% endgeneration %}", "15"),
        ("{{ tools is none and documents is none and add_generation_prompt }}", "True"),
    ],
)
def test_templates_see_what_those_of_hugging_face_see(source: str, text: str) -> None:
    assert render(source) == text


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "can only concatenate str"),
        ("{{ messages[5].content }}", "list object has no element 5"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% for i in range(9999) %}{{ 'x' * 999 }}{% endfor %}", f"over {MAX_RENDERED_CHARS} characters"),
    ],
)
def test_a_template_that_fails_is_the_requests_error_with_its_cause(source: str, cause: str) -> None:
    with pytest.raises(InvalidRequest, match=cause) as raised:
        render(source)
    assert raised.value.field == "chat"


def test_a_template_that_is_none_is_named_with_its_line() -> None:
    with pytest.raises(SpecError, match="here: chat template, line 2: "):
        ChatTemplate("\n{% for %}", {}, "here")


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "chat"),
        ([{"role": "user"}], "chat[0].content"),
        ([*MESSAGES, {"role": "user", "content": None}], "chat[2].content"),
        ([{"content": "x"}], "chat[0].role"),
    ],
)
def test_what_is_no_message_is_refused_by_its_place(messages: list[dict[str, str]], field: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        render("", messages)
    assert raised.value.field == field
