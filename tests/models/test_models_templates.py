"""Chat templates: those of real models are taken; what wants a renderer without a sandbox is refused by parsing it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octonode.models.formats import FormatRefused
from octonode.models.headers.gguf import read_gguf
from octonode.models.headers.templates import (
    NODES_MAX,
    TEMPLATE_BYTES_MAX,
    TemplateRefused,
    check_template,
)
from tests.models.samples import gguf, inspect, shard

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
    "+ '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{{ '<|start_header_id|>assistant"
    "<|end_header_id|>\n\n' }}"
)
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("Roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}{%- else %}
                    {{- '"' + key + '": ' + val|tojson }}{%- endif %}
                {%- endfor %}
            {%- endfor %}
        {%- endif %}
        {{- "[INST] " + message["content"] + "[/INST]" }}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- endif %}
{%- endfor %}
"""
QWEN = """{%- macro render(content) %}{%- if content is string %}{{- content }}{%- endif %}{%- endmacro %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and not(message.content.startswith('<tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = render(message.content) %}
    {%- if '</think>' in content %}
        {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {%- if loop.first or (not loop.last and message.tool_calls) %}{%- break %}{%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}
    {{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
"""
MARKED = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
DATED = "{{ strftime_now('%d %b %Y') }}{% set _unused = messages | map(attribute='content') | join %}"
MACROS = (
    "{% macro string_type(p) %}{{ p }}{% endmacro %}{% set ms = [string_type] %}{% for i in range(ms|length) %}"
    "{{ ms[i](*[messages]) }}{% endfor %}"
)


@pytest.mark.parametrize("text", [CHATML, LLAMA3, MISTRAL, QWEN, MARKED, DATED, MACROS, "", "plain text { } % #"])
def test_templates_as_models_have_them_are_taken(text: str) -> None:
    check_template(text)


@pytest.mark.model
def test_the_template_of_the_real_model_is_taken(smollm2: Path) -> None:
    with open(smollm2, "rb") as file:
        text = read_gguf(file, smollm2.stat().st_size).text("tokenizer.chat_template")
    assert "<|im_start|>" in text
    check_template(text)


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages['__class__'] }}",
        "{{ messages[0]['__init__']['__globals__'] }}",
        "{{ lipsum.__globals__['os'].popen('id').read() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self._TemplateReference__context }}",
        "{{ __builtins__ }}",
        "{{ messages | attr('content') }}",
        "{{ ''|attr('__cl' ~ 'ass__') }}",
        "{{ messages | map(attribute='__class__') | list }}",
        "{{ messages | map('attr', 'x') | list }}",
        "{{ messages | selectattr('content.__class__') | list }}",
        "{{ messages | groupby('__class__') }}",
        "{{ messages | sort(attribute='_x') }}",
        "{% import 'os' as os %}",
        "{% from 'x' import y %}",
        "{% include '/etc/passwd' %}",
        "{% extends 'base' %}",
        "{{ os.system('id') }}",
        "{{ os.popen('id').read() }}",
        "{{ subprocess.check_output('id') }}",
        "{{ open('/etc/passwd').read() }}",
        "{{ eval('1') }}",
        "{{ (messages.pop or x)() }}",
        "{{ x['a']() }}",
        "{{ lipsum() }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ '{0[__class__]}'.format(messages) }}",
        "{{ '{a.b}'.format_map(messages) }}",
        "{% for i in range(10000000000) %}x{% endfor %}",
        "{% for x in messages %}",
        "{{ 1 + }}",
        "{% unknown %}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{% if a %}" * 3000,
        "{{ " + "1" * 10_000 + " }}",
        "{{ a }}" * (NODES_MAX // 4),
        "x" * (TEMPLATE_BYTES_MAX + 1),
    ],
)
def test_templates_that_reach_out_or_are_bombs_are_refused(text: str) -> None:
    with pytest.raises(TemplateRefused):
        check_template(text)


PIECES = (
    *"{}%#-+.|()[]'\"\\~*, \n_a10\x00",
    *("{{", "}}", "{%", "%}", "for", "in", "if", "set", "raw", "endraw", "not", "0x", "1e", "macro", "call", "filter"),
    *("endfor", "é", "__x__", "generation", "break"),
)


@settings(max_examples=300)
@given(st.lists(st.sampled_from(PIECES), max_size=60))
def test_any_text_is_taken_or_refused_by_name(pieces: list[str]) -> None:
    with contextlib.suppress(TemplateRefused):
        check_template("".join(pieces))


def test_templates_of_directories() -> None:
    weights = {"model.safetensors": shard("a")}
    plain = inspect({**weights, "chat_template.jinja": CHATML.encode()})
    config = {"chat_template": CHATML, "auto_map": {"AutoTokenizer": ["x.Y", None]}}
    in_config = inspect({**weights, "tokenizer_config.json": json.dumps(config).encode()})
    several = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": MISTRAL}]
    named = inspect({**weights, "tokenizer_config.json": json.dumps({"chat_template": several}).encode()})
    other = inspect({**weights, "chat_template.json": json.dumps({"chat_template": CHATML}).encode()})
    assert len(plain.chat_template_sha256) == 32
    assert {plain.chat_template_sha256} == {each.chat_template_sha256 for each in (in_config, named, other)}
    assert in_config.notes == ("tokenizer_config.json asks for code of its own (auto_map), never run",)


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("chat_template.jinja", b"{{ x.__class__ }}"),
        ("additional_chat_templates/tools.jinja", b"{{ x.__class__ }}"),
        ("chat_template.jinja", b"x" * (TEMPLATE_BYTES_MAX + 1)),
        ("tokenizer_config.json", json.dumps({"chat_template": "{{ x.__class__ }}"}).encode()),
        ("tokenizer_config.json", json.dumps({"chat_template": [{"name": "a", "template": "{{ x.__a }}"}]}).encode()),
        ("chat_template.json", json.dumps({"chat_template": "{% include 'x' %}"}).encode()),
    ],
)
def test_templates_of_directories_that_reach_out_are_refused(path: str, data: bytes) -> None:
    with pytest.raises(FormatRefused) as caught:
        inspect({"model.safetensors": shard("a"), path: data})
    assert caught.value.detail["file"] == path


def test_the_template_of_a_gguf_counts_before_one_beside_it() -> None:
    alone = inspect({"m.gguf": gguf({"tokenizer.chat_template": CHATML})})
    both = inspect({"m.gguf": gguf({"tokenizer.chat_template": CHATML}), "chat_template.jinja": LLAMA3.encode()})
    assert alone.chat_template_sha256 == both.chat_template_sha256
