"""Chat templates of Hugging Face checkpoints: Jinja, rendered in a sandbox."""

import datetime
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from memserve_jax.core.errors import CheckpointError, InvalidRequestError


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}`, which marks the assistant's text for training."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 reads a plain set

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Returns the body as it stands."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class ChatTemplate:
    """One compiled template with the special tokens it may name."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], *, where: str):
        """Compiles `source`.

        Args:
          source: Jinja text.
          special_tokens: `bos_token`, `eos_token`, … as the template sees them.
          where: The file, for errors.

        Raises:
          CheckpointError: `source` is no Jinja template.
        """
        environment: Any = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, "jinja2.ext.loopcontrols"],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise CheckpointError(f"{where}: line {error.lineno}: {error.message}") from None
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Returns the text of `messages`, ending where the assistant is to speak.

        Raises:
          InvalidRequestError: the template refuses these messages.
        """
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as error:
            roles = [message.get("role", "") for message in messages]
            reason = " ".join(str(error).split())
            raise InvalidRequestError(
                "chat", roles, f"roles the chat template takes ({reason})"
            ) from None


def load_chat_template(
    folder: pathlib.Path, tokenizer_config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> ChatTemplate | None:
    """Returns the template of a model directory, None where it has none.

    `chat_template.jinja` goes before the key `chat_template` of `tokenizer_config.json`, a
    string or a list of named ones, of which `default` is taken, or the only one.

    Raises:
      CheckpointError: a template that is unreadable or no Jinja.
    """
    file = folder / "chat_template.jinja"
    if file.exists():
        try:
            source = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{file}: cannot read: {error}") from None
        return ChatTemplate(source, special_tokens, where=str(file))
    where = f"{folder / 'tokenizer_config.json'}: chat_template"
    source = _default_source(tokenizer_config.get("chat_template"), where)
    return None if source is None else ChatTemplate(source, special_tokens, where=where)


def _default_source(value: Any, where: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    try:
        by_name = {str(entry["name"]): str(entry["template"]) for entry in value}
    except (TypeError, KeyError):
        raise CheckpointError(f"{where}: allowed: a string or a list of name, template") from None
    if len(by_name) == 1:
        return next(iter(by_name.values()))
    return by_name.get("default")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as the templates expect it: not escaped for HTML, unlike Jinja's own filter."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
