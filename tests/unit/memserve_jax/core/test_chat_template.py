"""Chat templates render as Hugging Face renders them, in a sandbox."""

import pytest

from memserve_jax.core.chat_template import ChatTemplate, load_chat_template
from memserve_jax.core.errors import CheckpointError, InvalidRequestError

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "héllo & <b>"},
    {"role": "assistant", "content": "hi"},
]


def render(source, messages=CHAT):
    return ChatTemplate(source, TOKENS, where="test").render(messages)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}|{{ eos_token }}|{{ unk_token }}", "<s>|</s>|"),
        ("{% if add_generation_prompt %}yes{% endif %}", "yes"),
        ("{{ messages[1] | tojson }}", '{"role": "user", "content": "héllo & <b>"}'),
        ("{{ messages[1].content | tojson(indent=2) }}", '"héllo & <b>"'),
        ("{{ messages[1].content }}", "héllo & <b>"),
        ("  {% for m in messages %}\n{{ m.role[0] }},\n  {% endfor %}\nend", "s,\nu,\na,\nend"),
        ("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}", "system"),
        ("{% generation %}{{ messages[2]['content'] }}{% endgeneration %}", "hi"),
        ("{{ tools is none }} {{ documents is none }}", "True True"),
        ("{{ strftime_now('%d') | length }}", "2"),
    ],
)
def test_renders(source, text):
    assert render(source) == text


def test_what_the_template_refuses_is_the_requests_fault():
    with pytest.raises(InvalidRequestError, match="roles must alternate") as failure:
        render("{{ raise_exception('roles must\nalternate') }}")
    assert failure.value.field == "chat"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% set _ = messages.append(1) %}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
    ],
)
def test_neither_escape_nor_crash(source):
    with pytest.raises(InvalidRequestError):
        render(source)


def test_broken_templates_name_file_and_line():
    with pytest.raises(CheckpointError, match="test: line 2"):
        render("ok\n{% for %}")


def load(tmp_path, template):
    return load_chat_template(tmp_path, {"chat_template": template}, TOKENS)


def test_the_file_goes_before_the_config(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("file")
    template = load(tmp_path, "config")
    assert template is not None
    assert template.render(CHAT) == "file"


@pytest.mark.parametrize(
    ("names", "text"), [(["tool_use", "default"], "default"), (["rag"], "rag")]
)
def test_default_among_named_ones(tmp_path, names, text):
    template = load(tmp_path, [{"name": name, "template": name} for name in names])
    assert template is not None
    assert template.render(CHAT) == text


def test_no_template(tmp_path):
    assert load(tmp_path, None) is None
    assert load(tmp_path, [{"name": name, "template": ""} for name in "ab"]) is None


@pytest.mark.parametrize("template", [[1], [{"name": "x"}], 3])
def test_malformed_lists(tmp_path, template):
    with pytest.raises(CheckpointError, match="chat_template: allowed"):
        load(tmp_path, template)


def test_an_unreadable_file(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="cannot read"):
        load(tmp_path, None)
