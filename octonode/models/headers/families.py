"""The files of one format taken together: one GGUF or a split set, shards with their index, ONNX with its data.

Every function raises FormatRefused that names the file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from typing import BinaryIO, Final, NoReturn, TypeVar

from octonode.models.headers import config_json, gguf_shape
from octonode.models.headers import ctranslate2 as ct2
from octonode.models.headers import onnx as onnx_file
from octonode.models.headers import safetensors as st
from octonode.models.headers import tensorrt as trt
from octonode.models.headers.description import FileBytes, FormatInfo, FormatRefused, clean
from octonode.models.headers.gguf import GgufError, GgufHeader, read_gguf
from octonode.models.headers.strict_json import JsonRefused, read_object
from octonode.models.headers.templates import TemplateRefused, check_template

T = TypeVar("T")

TEMPLATE_KEY: Final = "tokenizer.chat_template"
_SPLIT_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf\Z")
_EMBEDDING_ARCHITECTURES: Final = (
    *("bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert"),
    *("gemma-embedding", "eurobert"),
)
_OTHER_CATEGORIES: Final = {"clip": "vision", "whisper": "audio", "wavtokenizer-dec": "audio"} | dict.fromkeys(
    ("flux", "sd1", "sdxl", "sd3", "wan", "qwen_image", "ltxv", "lumina2", "hidream", "aura"), "diffusion"
)


def refuse(path: str, reason: str) -> NoReturn:
    raise FormatRefused(named(path, reason), detail={"file": path})


def named(path: str, reason: str) -> str:
    """A file alone needs no name in the sentence: whoever asks names it."""
    return reason if path == "model" else f"{path}: {reason}"


def _read(file: FileBytes, reader: Callable[[BinaryIO, int], T], title: str) -> T:
    try:
        with file.open() as opened:
            return reader(opened, file.size_bytes)
    except (GgufError, st.SafetensorsError, onnx_file.OnnxError, ct2.Ctranslate2Error) as error:
        refuse(file.path, f"the {title} is damaged: {error}; download or convert it again")


# -- GGUF ---------------------------------------------------------------------------------------------------------


def gguf(files: Sequence[FileBytes]) -> FormatInfo:
    """One model: a file, or a set that llama.cpp split. Others beside it are noted."""
    headers = {file.path: _read(file, read_gguf, "GGUF") for file in files}
    for path, header in headers.items():
        for key, text in header.values.items():
            if key == TEMPLATE_KEY or key.startswith(TEMPLATE_KEY + "."):
                _check_template(path, text)
    parts = {path: header for path, header in headers.items() if header.split[1] > 1}
    sets = _split_sets(parts)
    alone = [path for path in headers if path not in parts and headers[path].architecture != "clip"]
    first = min([*alone, *sets] or list(headers))
    together = sets.get(first, (first,))
    info = _gguf_info(headers[first], [headers[path] for path in together])
    others = len(headers) - len(together)
    notes = (f"{others} more GGUF files are there; engines open {first}",) if others else ()
    return replace(info, opens=first, notes=notes)


def _split_sets(parts: Mapping[str, GgufHeader]) -> dict[str, tuple[str, ...]]:
    """First file of each split set -> its files in order. Raises FormatRefused for a set that is not whole."""
    sets: dict[str, tuple[str, ...]] = {}
    for path, header in parts.items():
        number, files = header.split
        match = _SPLIT_NAME.match(path)
        if not match or (int(match[2]), int(match[3])) != (number + 1, files):
            refuse(
                path,
                f"it says it is part {number + 1} of {files} of a split GGUF; add the directory with all of them, each "
                f"named NAME-{number + 1:05}-of-{files:05}.gguf",
            )
        together = tuple(f"{match[1]}-{each:05}-of-{files:05}.gguf" for each in range(1, files + 1))
        for other in together:
            if other not in parts:
                refuse(path, f"{other} of this split GGUF is missing; download it, and add the directory again")
        sets[together[0]] = together
    for together in sets.values():
        promised = parts[together[0]].number("split.tensors.count")
        there = sum(parts[path].tensor_count for path in together)
        if promised and promised != there:
            refuse(together[0], f"its parts have {there} tensors and should have {promised}; download them again")
    return sets


def _gguf_info(header: GgufHeader, parts: Sequence[GgufHeader]) -> FormatInfo:
    template = header.text(TEMPLATE_KEY)
    name = header.architecture
    category = "embeddings" if name in _EMBEDDING_ARCHITECTURES else _OTHER_CATEGORIES.get(name, "llm")
    kinds: dict[str, int] = {}
    for part in parts:
        for kind, size_bytes in part.type_bytes.items():
            kinds[kind] = kinds.get(kind, 0) + size_bytes
    whole = replace(header, type_bytes=kinds)
    return FormatInfo(
        "gguf",
        architecture=clean(name),
        quantization=whole.quantization,
        context_tokens=header.number(f"{name}.context_length"),
        chat_template_sha256=hashlib.sha256(template.encode()).digest() if template else b"",
        name=clean(header.text("general.name")),
        licence=clean(header.text("general.license")),
        category=category,
        shape=replace(gguf_shape.shape_of(header), parameters=sum(part.parameters for part in parts)),
        weights_bytes=sum(part.weights_bytes for part in parts),
        made_with=f"GGUF {header.version}",
    )


def _check_template(path: str, text: object) -> None:
    if not isinstance(text, str):
        return
    try:
        check_template(text)
    except TemplateRefused as error:
        refuse(path, f"its chat template is not taken: {error}; use another conversion of this model")


# -- SafeTensors --------------------------------------------------------------------------------------------------


def safetensors(files: Sequence[FileBytes], rest: Sequence[FileBytes]) -> FormatInfo:
    """Single files, or sets with an index; `rest` holds indexes and configs."""
    headers = {file.path: _read(file, st.read_safetensors, "SafeTensors file") for file in files}
    notes: list[str] = []
    for file in rest:
        if st.is_index(file.path):
            notes += _check_index(file, headers)
    lost = st.missing_numbers(headers)
    if lost:
        refuse(lost, "this shard of the model is missing; download it, and add the directory again")
    kinds: dict[str, int] = {}
    for header in headers.values():
        for dtype, size_bytes in header.dtype_bytes.items():
            kinds[dtype] = kinds.get(dtype, 0) + size_bytes
    dtype = max(kinds, key=lambda kind: kinds[kind], default="")
    architecture = next((header.architecture for header in headers.values() if header.architecture), "")
    return FormatInfo(
        "safetensors",
        architecture=clean(architecture),
        quantization=dtype,
        compute_capability="8.9" if dtype.startswith("F8_E") else "",
        weights_bytes=sum(header.weights_bytes for header in headers.values()),
        shape=replace(FormatInfo("").shape, parameters=sum(header.parameters for header in headers.values())),
        opens=files[0].path if len(files) == 1 and not rest else "",
        notes=tuple(notes),
    )


def _check_index(file: FileBytes, headers: Mapping[str, st.SafetensorsHeader]) -> list[str]:
    try:
        with file.open() as opened:
            weight_map, total = st.shards_of(opened.read(st.INDEX_BYTES_MAX + 1), file.path)
        unnamed = st.check_set(weight_map, total, headers)
    except st.SafetensorsError as error:
        refuse(file.path, f"the index and its shards do not belong together: {error}; download the model again")
    return [f"{file.path} does not name {unnamed} tensors of its shards"] if unnamed > 0 else []


# -- CTranslate2, ONNX, TensorRT ----------------------------------------------------------------------------------


def ctranslate2(files: Sequence[FileBytes]) -> FormatInfo:
    """One `model.bin`, as every engine of this format names it; more of them would be more models."""
    if len(files) > 1:
        refuse(files[1].path, f"a second CTranslate2 model beside {files[0].path}; add each directory by itself")
    file = files[0]
    if file.path not in ("model.bin", "model"):
        refuse(file.path, "a CTranslate2 model is opened by its directory and has to be called model.bin there")
    model = _read(file, ct2.read_ctranslate2, "CTranslate2 model")
    return FormatInfo(
        "ctranslate2",
        architecture=clean(model.architecture),
        quantization=model.dtype,
        category=model.category,
        shape=replace(FormatInfo("").shape, parameters=model.parameters),
        weights_bytes=model.weights_bytes,
        opens=file.path,
        made_with=model.made_with,
    )


def onnx(files: Sequence[FileBytes], sizes: Mapping[str, int], domains: Set[str]) -> tuple[FormatInfo, set[str]]:
    """(what they are, paths of the files that hold their weights)."""
    external: set[str] = set()
    models: list[tuple[FileBytes, onnx_file.OnnxModel]] = []
    for file in files:
        model = _read(file, lambda opened, size: onnx_file.read_onnx(opened, size, domains), "ONNX file")
        try:
            external |= onnx_file.check_external(model, file.path.rpartition("/")[0], sizes)
        except onnx_file.OnnxError as error:
            refuse(file.path, f"it keeps {error}; nothing outside of the model is ever read")
        models.append((file, model))
    file, model = max(models, key=lambda pair: pair[1].weights_bytes)
    info = FormatInfo(
        "onnx",
        quantization=model.quantization,
        category="other",
        shape=replace(FormatInfo("").shape, parameters=model.parameters),
        weights_bytes=model.weights_bytes,
        opens=file.path,
        made_with=model.versions[:128],
    )
    return info, external


def tensorrt(files: Sequence[FileBytes], rest: Sequence[FileBytes], *, signed: bool) -> FormatInfo:
    """A directory of TensorRT-LLM, and only from a publisher who is trusted."""
    if not signed:
        refuse(files[0].path, trt.UNSIGNED)
    folders = {file.path.rpartition("/")[0] for file in files}
    folder = min(folders)
    path = f"{folder}/config.json" if folder else "config.json"
    config = next((file for file in rest if file.path == path), None)
    if len(folders) > 1 or config is None:
        refuse(
            files[0].path, "a TensorRT engine comes as one directory with its config.json, as trtllm-build writes it"
        )
    try:
        with config.open() as opened:
            said = opened.read(trt.CONFIG_BYTES_MAX + 1)
        engine = trt.read_engine(said, {file.path.rpartition("/")[2]: file.size_bytes for file in files})
    except trt.TensorrtError as error:
        refuse(path, f"the engine directory is not whole: {error}; build it again with trtllm-build")
    return FormatInfo(
        "tensorrt",
        architecture=engine.architecture,
        quantization=engine.quantization,
        context_tokens=engine.context_tokens,
        shape=engine.shape,
        weights_bytes=sum(file.size_bytes for file in files),
        made_with=f"TensorRT-LLM {engine.version}",
    )


def with_config(info: FormatInfo, file: FileBytes) -> FormatInfo:
    """SafeTensors or ONNX with what the `config.json` beside them says."""
    try:
        with file.open() as opened:
            config = read_object(opened.read(config_json.CONFIG_BYTES_MAX + 1), config_json.CONFIG_BYTES_MAX)
    except JsonRefused as error:
        refuse(file.path, f"{error}; download it again")
    notes = info.notes
    if "auto_map" in config:
        notes += (f"{file.path} asks for code of its own (auto_map), which is never run",)
    shape = replace(config_json.shape_of(config), parameters=info.shape.parameters)
    quantization = config_json.quantization_of(config)
    return replace(
        info,
        architecture=config_json.architecture_of(config) or info.architecture,
        quantization=quantization or info.quantization,
        compute_capability="8.9" if quantization.startswith(("fp8", "fbgemm_fp8")) else info.compute_capability,
        context_tokens=config_json.context_of(config),
        category=config_json.category_of(config),
        shape=shape,
        notes=notes,
    )
