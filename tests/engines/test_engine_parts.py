"""The small pure parts: slots, stop strings, the script, the choice of an engine."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octonode.config import EnginesConfig
from octonode.engines import lora, seccomp, select
from octonode.engines.adapters.completions import refusal
from octonode.engines.adapters.scripted_answers import WordScript
from octonode.engines.adapters.stopping import StopFilter
from octonode.engines.contract import GenerateRequest
from octonode.engines.process import exit_text, worker_environment
from octonode.engines.select import default_threads, engine_for, load_request
from octonode.engines.slots import Slots
from octonode.errors import ConfigError, OctonodeError
from octonode.hardware import cores


@given(st.lists(st.sampled_from(["", "a", "b", "c"]), max_size=30), st.data())
def test_a_slot_is_reused_only_by_the_scope_that_used_it_last(scopes, data):
    slots, held, last = Slots(3), [], {}
    for scope in scopes:
        if not slots.free or (held and data.draw(st.booleans())):
            slots.give_back(held.pop(data.draw(st.integers(0, len(held) - 1))))
        if not slots.free:
            continue
        slot = slots.take(scope)
        assert slot.index not in [other.index for other in held]
        assert slot.reuse == (scope != "" and last.get(slot.index) == scope)
        last[slot.index] = scope
        held.append(slot)


def test_a_running_conversation_keeps_its_slot_while_there_is_choice():
    slots = Slots(2)
    mine = slots.take("mine")
    slots.give_back(mine)
    assert slots.take("").index != mine.index
    assert slots.take("mine").reuse


TEXT = st.text("ab<|>", max_size=4)


@given(st.lists(TEXT.filter(bool), max_size=12), st.lists(st.text("ab<|>", min_size=1, max_size=4), max_size=3))
def test_stop_strings_cut_at_the_first_and_hold_back_no_more_than_needed(pieces, stops):
    filtered, out = StopFilter(stops), []
    for piece in pieces:
        out += filtered.feed(piece)
        if filtered.stopped:
            break
        assert not any(stop in "".join(out) for stop in stops)
    else:
        out += filtered.finish()
    whole, got = "".join(pieces), "".join(out)
    found = [whole.find(stop) for stop in stops if stop in whole]
    assert filtered.stopped == bool(found)
    # with several stop strings the one that is complete first wins; the text before it holds none of them
    assert whole.startswith(got)
    assert not any(stop in got for stop in stops)
    if not found:
        assert out == pieces


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"type": "exceed_context_size_error", "code": 400, "n_prompt_tokens": 9, "n_ctx": 8}, "CONTEXT_EXCEEDED"),
        ({"type": "invalid_request_error", "code": 400, "message": "x" * 999}, "BAD_REQUEST"),
        ({"type": "unavailable_error", "code": 503}, "OVERLOADED"),
        ({"type": "server_error", "code": 500, "message": "boom"}, "ENGINE_FAILED"),
        ("text", "ENGINE_FAILED"),
        (None, "ENGINE_FAILED"),
    ],
)
def test_errors_of_the_server_become_ours(error, code):
    ours = refusal(error)
    assert ours.code == code
    assert len(ours.message) < 300


def words(request: GenerateRequest, root: str = "root") -> str:
    script = WordScript(root, request)
    return "".join(script.piece(index) for index in range(script.remaining))


@given(st.text(max_size=20), st.integers(0, 2**32), st.integers(0, 40))
def test_a_script_joins_byte_for_byte_wherever_it_is_cut(content, seed, cut):
    user = {"role": "user", "content": content}
    whole = words(GenerateRequest((user,), 99, 1.0, seed=seed))
    script = WordScript("root", GenerateRequest((user,), 99, 1.0, seed=seed))
    said = "".join(script.piece(index) for index in range(min(cut, script.remaining)))
    rest = words(GenerateRequest((user, {"role": "assistant", "content": said}), 99, 1.0, seed=seed))
    assert said + rest == whole
    assert words(GenerateRequest((user,), 99, 1.0, seed=seed), root="another") != whole


def test_the_engine_is_chosen_by_format():
    assert engine_for("gguf").name == "llama"
    assert engine_for("gguf", "scripted").name == "scripted"
    with pytest.raises(OctonodeError, match="gguf") as caught:
        engine_for("pickle")
    assert caught.value.code == "UNSUPPORTED"
    with pytest.raises(ConfigError, match=r"engines\.default"):
        engine_for("gguf", "vllm")
    with pytest.raises(ConfigError):
        engine_for("gguf", "probe")


def test_a_missing_library_names_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'octonode\[llama\]'"):
        engine_for("gguf")
    assert select.available_engines() == ("scripted",)


def test_the_second_backend_is_picked_where_only_it_is_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "llama_cpp" or None)
    assert engine_for("gguf").name == "llama-cpp-python"
    settings = EnginesConfig(lora=("us/m=/l/a.gguf:0.5", "other=/l/b.gguf"))
    made = load_request(settings, model_root="r", model_path=Path("/m.gguf"), model_format="gguf", model_name="us/m")
    assert lora.files_of(made.options[lora.OPTION]) == ((Path("/l/a.gguf"), 0.5),)
    assert made.options["speculation"] == "auto"
    with pytest.raises(ConfigError, match=r"engines\.lora"):
        load_request(EnginesConfig(lora=("x",)), model_root="r", model_path=None, model_format="gguf")


def test_a_load_request_follows_the_settings_and_the_model(monkeypatch):
    monkeypatch.setattr(cores.psutil, "cpu_count", lambda logical=True: 8)
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: set(range(16)))
    assert default_threads() == 7
    settings = EnginesConfig(context_tokens=4096, parallel=3, prefill_chunk_tokens=32)
    made = load_request(
        settings, model_root="r", model_path=Path("/m.gguf"), model_format="gguf", context_tokens_max=2048
    )
    assert (made.engine, made.context_tokens, made.parallel, made.threads) == ("llama", 2048, 3, 7)
    assert made.options["prefill_chunk_tokens"] == 32
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: {0})
    assert default_threads() == 1
    settings = EnginesConfig(scripted_tokens_per_second=5.0, scripted_answer_tokens=200)
    made = load_request(settings, model_root="r", model_path=None, model_format="scripted")
    assert (made.options["tokens_per_second"], made.options["answer_tokens"]) == (5.0, 200)


def test_the_environment_of_a_worker_is_a_short_list(tmp_path):
    given_ = {"HOME": "/home/someone", "OCTONODE_TOKEN": "x", "LD_PRELOAD": "x", "PYTHONPATH": "x", "LANG": "C.UTF-8"}
    environment = worker_environment(given_, tmp_path, 3)
    assert environment["HOME"] == environment["TMPDIR"] == str(tmp_path)
    assert environment["LANG"] == "C.UTF-8"
    assert environment["OMP_NUM_THREADS"] == "3"
    assert not {"OCTONODE_TOKEN", "LD_PRELOAD", "PYTHONPATH"} & set(environment)


def test_how_a_process_ended_in_words():
    assert exit_text(3) == ("ended with status 3", "")
    assert exit_text(-11) == ("died of SIGSEGV", "SIGSEGV")
    assert exit_text(-63) == ("died of signal 63", "signal 63")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_has_no_jump_out_of_itself(machine):
    """Whole instructions, forward jumps that land inside, a return at the end: what the kernel checks at install."""
    code = seccomp.program(machine, 4242)
    assert len(code) % 8 == 0
    count = len(code) // 8
    for index in range(count):
        operation, jump_true, jump_false = (
            code[index * 8] + code[index * 8 + 1] * 256,
            code[index * 8 + 2],
            code[index * 8 + 3],
        )
        if operation & 0x07 == 0x05:
            assert index + 1 + max(jump_true, jump_false) < count
    assert code[-8] == 0x06
