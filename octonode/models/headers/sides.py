"""What stands beside the weights: tokenizers, configs, templates, texts. Code never does.

Every function raises FormatRefused that names the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from octonode.models.headers import config_json, pickles
from octonode.models.headers.description import FileBytes, FormatInfo, clean
from octonode.models.headers.families import named, refuse, with_config
from octonode.models.headers.strict_json import JsonRefused, read_object
from octonode.models.headers.templates import TEMPLATE_BYTES_MAX, TemplateRefused, check_template
from octonode.models.manifest import WEIGHT_FORMATS

__all__ = ["check", "check_name", "check_weights", "joined", "named"]

SIDE_BYTES_MAX: Final = 256 * 1024 * 1024
JSON_BYTES_MAX: Final = 32 * 1024 * 1024
SUFFIXES: Final = (
    *(".json", ".jsonl", ".txt", ".md", ".model", ".jinja", ".yaml", ".yml", ".tiktoken", ".proto", ".vocab", ".bpe"),
    *(".npy", ".csv", ".tsv"),
)
_PICTURES: Final = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".pdf")
BARE_NAMES: Final = ("LICENSE", "LICENCE", "NOTICE", "README", "USE_POLICY", "COPYING")
NATIVE_SUFFIXES: Final = (".so", ".dll", ".dylib", ".pyd", ".exe", ".cubin", ".ptx")
_CODE_SUFFIXES: Final = (".py", ".pyc", ".sh", ".bat", ".ps1", ".js", ".lua", ".ipynb")
_SOUND_PIPELINES: Final = ("Audio", "Music")
_CONFIGS_CHECKED: Final = ("config.json", "tokenizer_config.json", "generation_config.json", "model_index.json")


@dataclass(frozen=True, slots=True)
class Sides:
    """What the files beside the weights say."""

    config: FileBytes | None = None
    template: str = ""
    diffusion: bool = False
    pipeline: str = ""
    """The class that Diffusers would load."""
    embeddings: bool = False
    own: FileBytes | None = None
    """What onnxruntime-genai or Piper keeps beside an ONNX graph in place of a `config.json`."""
    notes: tuple[str, ...] = ()


def check_name(path: str) -> None:
    """Libraries and programs are refused by name already: no engine is to find one beside a model."""
    name = path.rpartition("/")[2].lower()
    if name.endswith(NATIVE_SUFFIXES) or any(f"{suffix}." in name for suffix in (".so", ".dylib")):
        refuse(
            path, "a library of native code; a model brings no code, so leave it out (custom operators are not loaded)"
        )
    if name.endswith(_CODE_SUFFIXES):
        refuse(path, "a program; a model brings no code, so leave it out (code of a model is never run here)")


def check_weights(file: FileBytes) -> None:
    """Raw weights of an ONNX model may be any bytes, but none that a pickle reader would act on."""
    with file.open() as opened:
        reason = pickles.opcodes_refusal(opened.read(pickles.HEAD_BYTES), file.size_bytes)
    if reason:
        refuse(file.path, reason)


def check(files: Sequence[FileBytes], *, alone: bool) -> Sides:
    """All of them; `alone`: there is one file, and it has to be the model."""
    found = Sides()
    template_from = ""
    for file in files:
        _check_content(file, alone=alone)
        name = file.path.rpartition("/")[2]
        if name.endswith(".jinja"):
            text = _text(file, TEMPLATE_BYTES_MAX)
            _template(file.path, text)
            if name == "chat_template.jinja":
                found, template_from = replace(found, template=text), name
        elif name in _CONFIGS_CHECKED or name == "chat_template.json":
            value = _object(file)
            for text in _templates_in(file.path, value):
                if template_from != "chat_template.jinja":
                    found = replace(found, template=text)
            if name == "tokenizer_config.json" and "auto_map" in value:
                found = replace(
                    found, notes=(*found.notes, f"{file.path} asks for code of its own (auto_map), never run")
                )
            if file.path == "config.json":
                found = replace(found, config=file)
            if file.path == "model_index.json":
                pipeline = clean(value.get("_class_name"), 64)
                found = replace(found, diffusion="_diffusers_version" in value or pipeline != "", pipeline=pipeline)
        elif file.path in ("config_sentence_transformers.json", "modules.json"):
            found = replace(found, embeddings=True)
        elif file.path == "genai_config.json" or file.path.endswith(".onnx.json"):
            found = replace(found, own=file)
    return found


def _check_content(file: FileBytes, *, alone: bool) -> None:
    with file.open() as opened:
        head = opened.read(pickles.HEAD_BYTES)
    reason = pickles.refusal(head, file.size_bytes)
    if reason:
        refuse(file.path, reason)
    name = file.path.rpartition("/")[2]
    known = name.lower().endswith((*SUFFIXES, *_PICTURES)) or name.partition(".")[0].upper() in BARE_NAMES
    if alone or not known:
        refuse(file.path, "the content is not GGUF, SafeTensors or ONNX, whatever the file is called")
    if file.size_bytes > SIDE_BYTES_MAX:
        refuse(file.path, f"{file.size_bytes} bytes beside the weights; at most {SIDE_BYTES_MAX} are taken")


def _text(file: FileBytes, bytes_max: int) -> str:
    if file.size_bytes > bytes_max:
        refuse(file.path, f"it has {file.size_bytes} bytes; at most {bytes_max} are read")
    with file.open() as opened:
        return opened.read(bytes_max).decode("utf-8", errors="replace")


def _object(file: FileBytes) -> dict[str, Any]:
    try:
        with file.open() as opened:
            return read_object(opened.read(JSON_BYTES_MAX + 1), JSON_BYTES_MAX)
    except JsonRefused as error:
        refuse(file.path, f"{error}; download it again")


def _templates_in(path: str, value: Mapping[str, Any]) -> list[str]:
    """Checked, the default one last."""
    said = value.get("chat_template")
    several = [each for each in said if isinstance(each, dict)] if isinstance(said, list) else []
    several.sort(key=lambda each: each.get("name") == "default")
    texts = [said] if isinstance(said, str) else [each.get("template") for each in several]
    found = [text for text in texts if isinstance(text, str)]
    for text in found:
        _template(path, text)
    return found


def _template(path: str, text: str) -> None:
    try:
        check_template(text)
    except TemplateRefused as error:
        refuse(path, f"its chat template is not taken: {error}; use another copy of this model")


def joined(found: Sequence[FormatInfo], side: Sides, kinds: Mapping[str, str], *, alone: bool) -> FormatInfo:
    """One description of it all: the format that engines here prefer, with what configs and templates add."""
    info = min(found, key=lambda each: WEIGHT_FORMATS.index(each.format))
    if info.format in ("safetensors", "onnx") and side.config is not None:
        info = with_config(info, side.config)
    if info.format == "onnx" and side.own is not None:
        info = replace(info, **config_json.facts_of_own(_object(side.own), info.architecture))
    if side.diffusion:
        category = "audio" if any(mark in side.pipeline for mark in _SOUND_PIPELINES) else "diffusion"
        info = replace(info, category=category, architecture=side.pipeline or info.architecture)
    elif side.embeddings:
        info = replace(info, category="embeddings")
    if side.template and not info.chat_template_sha256:
        info = replace(info, chat_template_sha256=hashlib.sha256(side.template.encode()).digest())
    others = [each.format for each in found if each is not info and each.format != info.format]
    notes = (*info.notes, *side.notes)
    if others:
        notes += (f"the same model as {' and '.join(others)} is there as well and is not opened",)
    return replace(info, notes=notes, files=dict(kinds))
