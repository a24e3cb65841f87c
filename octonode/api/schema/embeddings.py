"""OpenAI's embeddings. Pure. Source of the format: https://platform.openai.com/docs/api-reference/embeddings."""

from __future__ import annotations

import base64
import json
import sys
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from octonode.api.schema.failures import bad_request
from octonode.api.schema.fields import Served, Terms, body_of, choice_of, flag_of, object_of, terms_of
from octonode.api.schema.shape import text
from octonode.protocol.work.text import TEXT_CHARACTERS_MAX, TEXTS_MAX, Embeddings, EmbedRequest

SERVED: Final = Served(
    read=frozenset({"model", "input", "encoding_format", "privacy_level", "octonode"}),
    ignored=frozenset({"user"}),
    neutral={"dimensions": lambda _: False},
)


@dataclass(frozen=True, slots=True)
class EmbeddingsRequest:
    terms: Terms
    work: EmbedRequest
    encoding: Literal["float", "base64"]


def parse_embeddings(body: Any, privacy_header: str | None = None) -> EmbeddingsRequest:
    """The request in a decoded JSON body. Raises BAD_REQUEST, UNSUPPORTED or PRIVACY_UNAVAILABLE, with `param`."""
    body = body_of(body)
    SERVED.check(body)
    terms = terms_of(body, privacy_header, ("truncate",))
    ours = object_of(body, "octonode")
    truncate = flag_of(ours, "truncate", "octonode.truncate") if ours.get("truncate") is not None else True
    encoding = cast(Literal["float", "base64"], choice_of(body, "encoding_format", ("float", "base64")))
    return EmbeddingsRequest(terms, EmbedRequest(_texts(body), truncate), encoding)


def _texts(body: Mapping[str, Any]) -> tuple[str, ...]:
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise bad_request("input must be a text, or a list of at least one", "input")
    if isinstance(texts[0], (int, list)):
        message = "input takes texts: numbers of tokens differ from model to model, so they are not served"
        raise bad_request(message, "input", code="UNSUPPORTED")
    if len(texts) > TEXTS_MAX:
        raise bad_request(f"input has {len(texts)} texts; at most {TEXTS_MAX} are taken", "input")
    for index, each in enumerate(texts):
        if not isinstance(each, str) or not each:
            raise bad_request(f"input[{index}] must be a text that is not empty", f"input[{index}]")
    return tuple(text(each, f"input[{index}]", TEXT_CHARACTERS_MAX) for index, each in enumerate(texts))


def vectors_of(found: Embeddings) -> list[list[float]]:
    """The vectors as numbers, one a text."""
    numbers = array("f", found.vectors)
    if sys.byteorder == "big":
        numbers.byteswap()
    size = found.dimensions
    return [numbers[at : at + size].tolist() for at in range(0, len(numbers), size)]


def embeddings_json(request: EmbeddingsRequest, found: Embeddings, facts: Mapping[str, Any]) -> bytes:
    """The answer as JSON; `facts` is its `octonode` object.

    Written a vector at a time: all of them in one call would stop every other thread for as long as they take.
    """
    size = 4 * found.dimensions
    if request.encoding == "base64":
        places = range(0, len(found.vectors), size)
        vectors = [b'"' + base64.b64encode(found.vectors[at : at + size]) + b'"' for at in places]
    else:
        vectors = [json.dumps(each).encode() for each in vectors_of(found)]
    data = [b'{"object":"embedding","index":%d,"embedding":%s}' % (index, each) for index, each in enumerate(vectors)]
    rest = {
        "object": "list",
        "model": request.terms.model,
        "usage": {"prompt_tokens": found.tokens_in, "total_tokens": found.tokens_in},
        "octonode": {**facts, "dimensions": found.dimensions, "texts_cut": found.texts_cut},
    }
    return b'{"data":[' + b",".join(data) + b"]," + json.dumps(rest).encode()[1:]
