"""Every field that the installed OpenAI client can send is known here: read, ignored as a hint, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import (
    completion_create_params,
    embedding_create_params,
    image_edit_params,
    image_generate_params,
)
from openai.types.audio import speech_create_params, transcription_create_params
from openai.types.chat import completion_create_params as chat_create_params

from octonode.api.openai_images import FILES
from octonode.api.schema import audio, chat, completions, embeddings, images
from octonode.api.schema.fields import Served
from octonode.errors import OctonodeError

KINDS: list[tuple[Served, tuple[Any, ...], frozenset[str]]] = [
    (chat.SERVED, (chat_create_params.CompletionCreateParamsBase,), frozenset()),
    (completions.SERVED, (completion_create_params.CompletionCreateParamsBase,), frozenset()),
    (embeddings.SERVED, (embedding_create_params.EmbeddingCreateParams,), frozenset()),
    (images.SERVED, (image_generate_params.ImageGenerateParamsBase, image_edit_params.ImageEditParamsBase), FILES),
    (audio.TRANSCRIPTION, (transcription_create_params.TranscriptionCreateParamsBase,), frozenset({"file"})),
    (audio.SPEECH, (speech_create_params.SpeechCreateParams,), frozenset()),
]


@pytest.mark.parametrize(
    ("served", "kinds", "files"), KINDS, ids=["chat", "text", "embeddings", "images", "transcription", "speech"]
)
def test_no_field_of_the_openai_client_is_unknown(
    served: Served, kinds: tuple[Any, ...], files: frozenset[str]
) -> None:
    fields = {name for kind in kinds for name in kind.__annotations__}
    assert len(fields) > 3
    unknown = []
    for name in sorted(fields - files):
        try:
            served.check({name: object()})  # a value that is neutral to nobody
        except OctonodeError as error:
            if error.code != "UNSUPPORTED":
                unknown.append(name)
    assert unknown == []
