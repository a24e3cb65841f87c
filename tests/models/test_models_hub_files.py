"""How a model of a hub is named, and which of a repository's files it is."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octonode.errors import NotFound, OctonodeError
from octonode.models.formats import FormatRefused
from octonode.models.manifest import safe_path
from octonode.models.reference import BadReference, HubReference, parse
from octonode.models.sources.hub_files import PICKLES, HubFile, choose


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("hf:a/b", HubReference("a/b")),
        ("hf:a/b/", HubReference("a/b")),
        ("hf:a/b@main", HubReference("a/b", "", "main")),
        ("hf:a/b@v1.0/x/y.gguf", HubReference("a/b", "x/y.gguf", "v1.0")),
        ("hf:a/b@refs%2Fpr%2F1/f", HubReference("a/b", "f", "refs/pr/1")),
    ],
)
def test_references(text: str, reference: HubReference) -> None:
    assert parse(text) == reference
    assert parse(str(reference)) == reference


@pytest.mark.parametrize("text", ["hf:a", "hf:a/", "hf:/b", "hf:a/b@", "hf:a/b/../x", "hf:a/b//x", "hf:a/b@x@y"])
def test_references_that_are_none(text: str) -> None:
    with pytest.raises(BadReference, match="organisation/repository"):
        parse(text)


def files(*paths: str) -> list[HubFile]:
    return [HubFile(path, 1_000_000_000) for path in paths]


def paths(reference: str, listed: Sequence[HubFile], patterns: Sequence[str] = ()) -> list[str]:
    parsed = parse(reference)
    assert isinstance(parsed, HubReference)
    return [file.path for file in choose(parsed, listed, patterns).files]


def test_one_gguf_is_the_model() -> None:
    listed = files("a.gguf", "README.md", "config.json", "mmproj-a.gguf")
    assert paths("hf:o/r", listed) == ["a.gguf"]


def test_several_quantizations_are_listed() -> None:
    listed = files("m-Q4.gguf", "m-Q8.gguf", "big/m-F16-00001-of-00002.gguf", "big/m-F16-00002-of-00002.gguf")
    with pytest.raises(OctonodeError, match="several quantizations") as caught:
        paths("hf:o/r@v1", listed)
    assert "hf:o/r@v1/m-Q4.gguf  1.00 GB" in caught.value.message
    assert "hf:o/r@v1/big/m-F16-00001-of-00002.gguf  2.00 GB" in caught.value.message
    assert caught.value.code == "BAD_REQUEST"
    assert paths("hf:o/r/m-Q8.gguf", listed) == ["m-Q8.gguf"]
    assert paths("hf:o/r/big/m-F16-00001-of-00002.gguf", listed) == [
        "big/m-F16-00001-of-00002.gguf",
        "big/m-F16-00002-of-00002.gguf",
    ]
    assert len(paths("hf:o/r/big", listed)) == 2


def test_safetensors_with_what_stands_beside() -> None:
    listed = files(
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
        "config.json", "tokenizer.model", "pytorch_model.bin", "consolidated.safetensors", ".gitattributes",
        "figure.png",
    )  # fmt: skip
    assert paths("hf:o/r", listed) == [
        "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json", "tokenizer.model",
    ]  # fmt: skip


def test_onnx_by_folder_or_alone() -> None:
    listed = files("onnx/model.onnx", "onnx/model.onnx_data", "onnx/model_q4.onnx", "config.json")
    with pytest.raises(OctonodeError, match="several ONNX graphs"):
        paths("hf:o/r", listed)
    assert paths("hf:o/r/onnx", listed) == ["onnx/model.onnx", "onnx/model.onnx_data", "onnx/model_q4.onnx"]
    assert paths("hf:o/r/onnx/model_q4.onnx", listed) == ["onnx/model_q4.onnx"]
    assert paths("hf:o/r", listed[:2]) == ["onnx/model.onnx", "onnx/model.onnx_data"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pt", "x.PTH", "x.ckpt", "x.pkl", "x.tar", "x.so"])
def test_pickles_are_never_chosen(name: str) -> None:
    for reference, listed in (("hf:o/r", files(name)), (f"hf:o/r/{name}", files(name, "a.gguf"))):
        with pytest.raises(FormatRefused):
            paths(reference, listed)
    assert paths("hf:o/r", files(name, "a.gguf"), ["*"]) == ["a.gguf"]


def test_patterns_replace_the_default() -> None:
    listed = files("a.gguf", "b.gguf", "README.md")
    assert paths("hf:o/r", listed, ["b.*", "*.md"]) == ["README.md", "b.gguf"]
    with pytest.raises(NotFound, match="hub_patterns"):
        paths("hf:o/r", listed, ["c.*"])


@pytest.mark.parametrize("reference", ["hf:o/r/none", "hf:o/r/a.ggu", "hf:o/r/.git"])
def test_file_that_is_not_there_shows_those_that_are(reference: str) -> None:
    with pytest.raises(NotFound, match=r"it has a\.gguf"):
        paths(reference, files("a.gguf", ".git/x"))


NAMES = st.sampled_from(
    ["a", "b", "model", "x-00001-of-00002", "x-00002-of-00002", "..", ".h", "consolidated", "mmproj"]
)
ENDS = st.sampled_from([".gguf", ".safetensors", ".onnx", ".json", ".bin", ".pkl", "", "/x.gguf", "/y.bin"])


@given(
    st.lists(st.builds(lambda name, end: HubFile(name + end, 5), NAMES, ENDS), max_size=12, unique=True),
    st.sampled_from(["", "a.gguf", "model", "a", "x-00001-of-00002.gguf", "b.bin"]),
)
def test_whatever_is_listed_only_safe_files_that_are_no_pickles_are_chosen(listed: list[HubFile], named: str) -> None:
    try:
        choice = choose(HubReference("o/r", named), listed)
    except (NotFound, FormatRefused):
        return
    except OctonodeError as error:
        if error.code != "BAD_REQUEST":
            raise
        return
    assert choice.files
    for file in choice.files:
        assert file in listed
        assert safe_path(file.path)
        assert not file.path.lower().endswith(PICKLES)
        assert file.path.startswith(choice.folder)
