"""Ring 2, in .venv-engines: the fixtures of `tests/engines` over engines that need torch or a compiler.

`any_engine` and `any_maker` are others here: `test_heavy_conformance.py` takes the tests of `tests/engines` that ask
for them and runs them over the engines of HEAVY and the makers of `torch_cases`. To add an engine that writes text,
write a fixture that makes its load requests, and name it in HEAVY.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.register_assert_rewrite(
    "tests.engines.test_engine_conformance", "tests.engines.test_engine_faults", "tests.engines.test_maker_conformance"
)

from octonode.engines.contract import LoadRequest  # noqa: E402
from tests.engines.conftest import (  # noqa: E402
    ROOT,
    MakeLoad,
    Options,
    ask,
    generate,
    model_folder,
    scripted,
    settle,
    supervise,
)
from tests.engines.makers import MakerCase  # noqa: E402
from tests.engines_heavy.torch_cases import CASES  # noqa: E402

__all__ = ["ask", "generate", "model_folder", "scripted", "settle", "supervise"]

HEAVY = ("llama_cpp_python", "transformers")
"""Fixtures, one an engine that writes text."""


@pytest.fixture
def llama_cpp_python(smollm2: Path) -> MakeLoad:
    def make(
        *, context_tokens: int = 512, parallel: int = 2, path: Path = smollm2, own: Options | None = None, **_: object
    ) -> LoadRequest:
        """`own`: options of llama.cpp itself."""
        options: Options = {"prefill_chunk_tokens": 32, **(own or {})}
        return LoadRequest("llama-cpp-python", path, ROOT, context_tokens, parallel, 1, options)

    return make


@pytest.fixture
def transformers(model_folder: Callable[[str], Path]) -> MakeLoad:
    def make(*, context_tokens: int = 512, parallel: int = 2, **_: object) -> LoadRequest:
        folder = model_folder("smollm2-safetensors")
        return LoadRequest("transformers", folder, ROOT, context_tokens, parallel, 1, {"prefill_chunk_tokens": 32})

    return make


@pytest.fixture(params=HEAVY)
def any_engine(request: pytest.FixtureRequest) -> MakeLoad:
    """Makes load requests for one adapter of this ring after the other."""
    make: MakeLoad = request.getfixturevalue(request.param)
    return make


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def any_maker(request: pytest.FixtureRequest) -> MakerCase:
    """One maker of this ring after the other."""
    case: MakerCase = request.param
    return case


@pytest.fixture
def any_llama(llama_cpp_python: MakeLoad) -> MakeLoad:
    """As in `tests/engines`."""
    return llama_cpp_python
