"""The chat template of a model, rendered in Jinja's sandbox for engines that do not render it themselves.

Its text was looked at when the model was added (`models.headers.templates`); the sandbox is the other wall.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

from octonode.errors import OctonodeError

CHATML: Final = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""What llama.cpp takes for models without a template."""


class ChatTemplate:
    """Renders conversations to prompts."""

    def __init__(self, template: str, first_token: str = "", end_token: str = "") -> None:
        """Raises OctonodeError FORMAT_REFUSED for a template that is no Jinja."""
        from jinja2 import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals.update(raise_exception=_refuse, strftime_now=_now)
        environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
        try:
            self._template = environment.from_string(template or CHATML)
        except (TemplateError, RecursionError) as error:
            text = f"the chat template of the model is no Jinja: {type(error).__name__}"
            raise OctonodeError(text, code="FORMAT_REFUSED") from None
        self._words = {"bos_token": first_token, "eos_token": end_token}

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt that the assistant goes on from; a last message of its own is gone on with.

        Raises OctonodeError BAD_REQUEST for what the template refuses or cannot render.
        """
        from jinja2 import TemplateError

        asked, said = list(messages), ""
        if asked and asked[-1]["role"] == "assistant":
            said = asked.pop()["content"]
        try:
            prompt = self._template.render(messages=asked, add_generation_prompt=True, **self._words)
        except OctonodeError:
            raise
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            text = f"the model's chat template cannot take these messages ({type(error).__name__})"
            raise OctonodeError(text, code="BAD_REQUEST") from None
        return prompt + said


def _refuse(message: Any = "") -> NoReturn:
    text = f"the model's chat template refuses these messages: {str(message)[:200]}"
    raise OctonodeError(text, code="BAD_REQUEST")


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
