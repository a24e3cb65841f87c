"""A JSON schema held to while a model writes, token by token, by llguidance where it is installed."""

from __future__ import annotations

import json
from typing import Any, Final

from octonode.errors import OctonodeError

SCHEMA_BYTES_MAX: Final = 256 * 1024
_LIMITS: Final[dict[str, Any]] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "max_lexer_states": 50_000,
}
"""Of the library's work on one schema: a pattern that explodes ends in an error, in less than a second."""
_ANY_OBJECT: Final = {"type": "object"}


class Grammars:
    """Makes constraints for one tokenizer; its own form of it is built for the first of them (about a second)."""

    def __init__(self, tokenizer: Any, vocabulary: int, ends: frozenset[int], *, extra: str = "transformers") -> None:
        """`tokenizer`: of transformers, or the text of a tokenizer.json. `extra`: what brings llguidance."""
        self._extra = extra
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._ends = sorted(ends)
        self._built: Any = None

    def constraint(self, schema: str) -> Constraint:
        """Blocks. Raises OctonodeError: UNSUPPORTED without llguidance or for a keyword it does not know, BAD_REQUEST
        for what is no schema, TOO_LARGE."""
        value = _read(schema)
        try:
            import llguidance
        except ImportError:
            text = f"answers by a schema need llguidance; run: pip install 'octonode[{self._extra}]'"
            raise OctonodeError(text, code="UNSUPPORTED") from None
        if self._built is None:
            self._built = self._build(llguidance)
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(value, overrides={"whitespace_flexible": False})
        except ValueError as error:
            raise OctonodeError(f"the schema cannot be used: {str(error)[:200]}", code="BAD_REQUEST") from None
        matcher = llguidance.LLMatcher(
            self._built, grammar, log_level=0, limits=llguidance.LLParserLimits(**_LIMITS, verbose_errors=False)
        )
        if matcher.is_error():
            raise _refused(matcher.get_error())
        return Constraint(matcher, self._vocabulary)

    def _build(self, library: Any) -> Any:
        try:
            if isinstance(self._tokenizer, str):
                return library.LLTokenizer(self._tokenizer, self._vocabulary, self._ends or None)
            import llguidance.hf

            return llguidance.hf.from_tokenizer(self._tokenizer, self._vocabulary, self._ends or None)
        except ValueError as error:
            text = f"this model's tokenizer cannot be held to a schema: {str(error)[:200]}"
            raise OctonodeError(text, code="UNSUPPORTED") from None


class Constraint:
    """The state of one answer."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def allowed(self) -> Any:
        """Bool array over the vocabulary: tokens that may come next. Raises OctonodeError when the work is too much."""
        import numpy as np

        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        mask = np.unpackbits(bits, bitorder="little")[: self._vocabulary].astype(bool)
        return np.pad(mask, (0, self._vocabulary - len(mask)))

    def take(self, token: int) -> bool:
        """Whether the answer is whole with this token, which was allowed."""
        self._matcher.consume_token(token)
        self._check()
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _refused(self._matcher.get_error())


def _read(schema: str) -> dict[str, Any]:
    if len(schema) > SCHEMA_BYTES_MAX:
        raise OctonodeError(f"the schema has more than {SCHEMA_BYTES_MAX} characters", code="TOO_LARGE")
    try:
        value = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise OctonodeError(f"the schema is no JSON ({type(error).__name__})", code="BAD_REQUEST") from None
    if not isinstance(value, dict):
        raise OctonodeError("the schema is no JSON object", code="BAD_REQUEST")
    return value or _ANY_OBJECT


def _refused(why: str) -> OctonodeError:
    lowered = why.lower()
    code = "UNSUPPORTED" if "unimplemented" in lowered or "not supported" in lowered else "BAD_REQUEST"
    first = why.strip().partition("\n")[0][:200]
    return OctonodeError(f"the schema cannot be held to: {first}; make it simpler", code=code)
