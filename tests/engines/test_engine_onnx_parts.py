"""What the engines on ONNX Runtime share: devices, cancelling in a run, files of a folder, and drawing tokens."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from octonode.engines.adapters import onnx_session
from octonode.engines.adapters.onnx_folder import ModelFolder
from octonode.engines.adapters.onnx_session import Graph
from octonode.engines.adapters.onnx_text import Held, OnnxText
from octonode.engines.adapters.sampling import MIN_P, TOP_K, Sampler, likeliest, log_chances
from octonode.engines.adapters.stoppable import Stop, Stopped, run_stoppable
from octonode.engines.contract import GenerateRequest, LoadRequest
from octonode.engines.slots import Slot
from octonode.errors import ConfigError, OctonodeError
from tests.engines.makers import ROOT


def loading(path: Path | None = None, **options: bool) -> LoadRequest:
    return LoadRequest("onnx", path, ROOT, threads=1, options=dict(options))


# -- Devices and runs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        (["CPU"], ["CPU"]),
        (["Azure", "CPU"], ["CPU"]),
        (["Tensorrt", "CUDA", "CPU"], ["CUDA", "CPU"]),
        (["MIGraphX", "ROCM", "CPU"], ["MIGraphX", "ROCM", "CPU"]),
        (["CoreML", "CPU"], ["CoreML", "CPU"]),
    ],
)
def test_the_best_device_that_the_runtime_offers_is_asked_for(there, wanted):
    module = SimpleNamespace(get_available_providers=lambda: [f"{name}ExecutionProvider" for name in there])
    assert onnx_session._providers(module, loading()) == [f"{name}ExecutionProvider" for name in wanted]
    if "Tensorrt" in there:  # minutes of compiling are not begun unasked
        assert onnx_session._providers(module, loading(tensorrt=True))[0] == "TensorrtExecutionProvider"


@pytest.mark.model
async def test_a_run_is_stopped_between_two_nodes(model_folder):
    """The longest text that MiniLM takes, many times over: seconds, of which few pass."""
    graph = Graph(model_folder("minilm") / "model.onnx", loading())
    ids = np.ones((64, 256), np.int64)
    runs: list[str] = []

    def work(stop: Stop) -> None:
        try:
            graph.run(dict.fromkeys(graph.inputs, ids), stop)
            runs.append("ended")
        except Stopped:
            runs.append("stopped")
            raise

    with trio.move_on_after(0.2) as scope:
        await run_stoppable(work)
    assert scope.cancelled_caught
    assert runs == ["stopped"]
    assert len(graph.run(dict.fromkeys(graph.inputs, ids[:1, :4]), Stop())) == 1, "the next runs as ever"
    with pytest.raises(OctonodeError) as caught:
        graph.run({"input_ids": ids}, Stop())
    assert caught.value.code == "ENGINE_FAILED"


async def test_work_that_fails_is_raised_and_work_that_ends_is_given():
    assert await run_stoppable(lambda stop: 7) == 7
    with pytest.raises(OctonodeError):
        await run_stoppable(lambda stop: (_ for _ in ()).throw(OctonodeError("no", code="BAD_REQUEST")))
    stop = Stop()
    told: list[int] = []
    with stop.telling(lambda: told.append(1)):
        stop.ask()
    with stop.telling(lambda: told.append(2)):
        pass
    stop.ask()
    assert told == [1, 2], "told while it lasts, and at once when it was asked before"


def test_what_is_not_installed_is_named():
    with pytest.raises(ConfigError) as caught:
        onnx_session.library("no_such_module_of_anybody", "onnx")
    assert "pip install 'octonode[onnx]'" in caught.value.message


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "ENGINE_FAILED"), (b"\x08\x07\x12\x02xx" * 9, "FORMAT_REFUSED"), (b"GGUF", "FORMAT_REFUSED")],
)
def test_a_file_that_is_no_graph_is_refused_with_its_name(tmp_path, content, code):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(OctonodeError) as caught:
        Graph(path, loading())
    assert caught.value.code in (code, "FORMAT_REFUSED")
    assert "model.onnx" in caught.value.message


# -- Folders ----------------------------------------------------------------------------------------------------------


def test_the_graph_of_a_folder_is_found(tmp_path):
    def make(*names: str) -> ModelFolder:
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"x" * len(name))
        return ModelFolder(tmp_path, "onnx")

    with pytest.raises(OctonodeError, match="no ONNX graph"):
        make().graph("model.onnx")
    assert make("other.onnx").graph("model.onnx").name == "other.onnx"
    assert make("a_longer_name.onnx").graph("model.onnx").name == "a_longer_name.onnx", "the largest"
    assert make("onnx/model.onnx").graph("model.onnx") == tmp_path / "onnx" / "model.onnx"
    assert make("model.onnx").graph("model.onnx") == tmp_path / "model.onnx"
    named = make("PP-OCRv6_det_small.onnx", "direction.onnx")
    assert named.graph_like(("det",)) == tmp_path / "PP-OCRv6_det_small.onnx"
    assert named.graph_like(("rec",)) is None, "direction has other letters around these three"


def test_json_beside_a_graph_is_read_within_the_folder_alone(tmp_path):
    inner = tmp_path / "model"
    inner.mkdir()
    (tmp_path / "config.json").write_text("{}", "utf-8")
    folder = ModelFolder(inner, "onnx")
    assert folder.map("config.json") == {}
    assert folder.json("../config.json") == {}
    for bad in ("{", "[" * 10_000, "[]"):
        (inner / "config.json").write_text(bad, "utf-8")
        with pytest.raises(OctonodeError) as caught:
            folder.map("config.json")
        assert caught.value.code == "FORMAT_REFUSED"
    (inner / "model.onnx").touch()
    alone = ModelFolder(inner / "model.onnx", "onnx")
    assert alone.map("config.json") == {}, "one file has nothing beside it"
    assert alone.graph("other.onnx") == inner / "model.onnx"
    with pytest.raises(ConfigError):
        ModelFolder(None, "onnx")


# -- Drawing tokens ---------------------------------------------------------------------------------------------------


def drawing(**fields: float | int) -> GenerateRequest:
    return GenerateRequest((), 1, **fields)  # type: ignore[arg-type]


def test_rules_of_drawing_are_those_of_llama_cpp():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.02, 0.03], np.float32))
    assert likeliest(logits, 1.0)[0].tolist() == [0, 1, 2, 4], "0.02 is below MIN_P of the best"
    assert likeliest(logits, 0.6)[0].tolist() == [0, 1], "the first that reach it"
    assert likeliest(logits, 0.0001)[0].tolist() == [0]
    assert len(likeliest(np.zeros(1000, np.float32), 1.0)[0]) == TOP_K
    assert MIN_P == 0.05
    assert Sampler(drawing(temperature=0.0)).draw(logits) == 0
    counts = np.bincount([Sampler(drawing(seed=seed)).draw(logits) for seed in range(2000)], minlength=5) / 2000
    assert counts == pytest.approx([0.51, 0.306, 0.153, 0, 0.03], abs=0.05)
    cold = [Sampler(drawing(seed=seed, temperature=0.1)).draw(logits) for seed in range(200)]
    assert cold.count(0) > 180


@given(st.integers(-(2**63), 2**63 - 1), st.floats(0.01, 5), st.floats(0.01, 1))
def test_a_seed_draws_alike_and_only_what_may_come(seed, temperature, top_p):
    logits = np.random.default_rng(5).normal(0, 4, 300).astype(np.float32)
    request = drawing(seed=seed, temperature=temperature, top_p=top_p)
    first, second = Sampler(request), Sampler(request)
    drawn = [first.draw(logits) for _ in range(8)]
    assert drawn == [second.draw(logits) for _ in range(8)]
    assert set(drawn) <= set(likeliest(logits, top_p)[0].tolist())


def test_what_a_schema_forbids_is_never_drawn():
    class OnlyThree:
        def allowed(self) -> np.ndarray:
            return np.arange(5) == 3

        def take(self, token: int) -> bool:
            return token == 3

    logits = np.array([9, 9, 9, -9, 9], np.float32)
    for temperature in (0.0, 1.0):
        sampler = Sampler(drawing(temperature=temperature), OnlyThree())
        assert sampler.draw(logits) == 3
        assert sampler.done(3)


def test_logits_that_are_no_numbers_end_an_answer_and_empty_its_slot():
    held = Held(SimpleNamespace(append_tokens=lambda ids: None, get_logits=lambda: np.array([[[1, np.nan, 2]]])), [5])
    text = object.__new__(OnnxText)
    text.vocabulary, text._slots = 3, [held]
    with pytest.raises(OctonodeError) as caught:
        text.compute(Slot(0, False), [7])
    assert caught.value.code == "ENGINE_FAILED"
    assert "no numbers" in caught.value.message
    assert text._slots[0] == Held(), "what lies in it now nobody knows"


def test_a_slot_that_cannot_go_back_is_begun_anew_and_not_lost():
    def rewind_to(tokens: int) -> None:
        raise RuntimeError("this cache cannot be cut")

    text = object.__new__(OnnxText)
    old, new = SimpleNamespace(rewind_to=rewind_to), SimpleNamespace(rewind_to=rewind_to)
    text._slots, text._new_generator = [Held(old, [1, 2, 3])], lambda: new
    for reuse in (True, False):
        assert text.start(Slot(0, reuse), [1, 2, 4]) == 0
        assert text._slots[0] == Held(new, [])
        text._slots[0].tokens.extend([1, 2, 3])


def test_log_chances_add_up_to_one():
    chances = log_chances(np.array([1000.0, 999.0, -1000.0], np.float32))
    assert np.exp(chances).sum() == pytest.approx(1)
    assert chances[0] == pytest.approx(-0.3133, abs=1e-3)
