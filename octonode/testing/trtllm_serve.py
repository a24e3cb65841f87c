"""A stand-in for TensorRT-LLM's `trtllm-serve`, which needs an NVIDIA GPU: its command line and HTTP, and no model.

It takes only the options of the release it plays and only the fields of requests that TensorRT-LLM has, so that what we
send is held against what is documented. Like the real one it has its port before it has loaded, answers 503 under load,
and starts a process in a session of its own, as MPI does. Its words are a function of the request and the seed.

`python -m octonode.testing.trtllm_serve --release 1.2 [--fault NAME=NUMBER]... -- ARGUMENTS OF trtllm-serve`
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

WORDS: Final = "copper evening salt bridge lantern river naïve 世界 🦉 home stone wide".split()  # noqa: SIM905 - prose


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_OLD: Final = _names(
    "tokenizer host port backend max_beam_width max_batch_size max_num_tokens max_seq_len tp_size pp_size "
    "kv_cache_free_gpu_memory_fraction trust_remote_code"
)
_NEW: Final = _names(
    "tokenizer custom_tokenizer host port backend custom_module_dirs log_level max_beam_width max_batch_size "
    "max_num_tokens max_seq_len tensor_parallel_size tp_size pipeline_parallel_size pp_size context_parallel_size "
    "cp_size moe_expert_parallel_size ep_size moe_cluster_parallel_size cluster_size gpus_per_node "
    "free_gpu_memory_fraction kv_cache_free_gpu_memory_fraction num_postprocess_workers trust_remote_code revision "
    "config extra_llm_api_options reasoning_parser tool_parser metadata_server_config_file server_role "
    "fail_fast_on_attention_window_too_large otlp_traces_endpoint disagg_cluster_uri enable_chunked_prefill "
    "media_io_kwargs chat_template"
)
RELEASES: Final = {"0.18.2": _OLD, "1.2": _NEW}
"""0.18.2: its page of commands. 1.2: `commands/serve.py` as of early 2026."""
_FLAGS: Final = frozenset({"trust_remote_code", "fail_fast_on_attention_window_too_large", "enable_chunked_prefill"})
_SHARED_FIELDS: Final = _names(
    "model frequency_penalty logit_bias logprobs max_tokens n presence_penalty response_format seed stop stream "
    "stream_options temperature top_p user lora_request best_of use_beam_search top_k top_p_min min_p "
    "repetition_penalty length_penalty early_stopping stop_token_ids include_stop_str_in_output ignore_eos min_tokens "
    "skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens add_special_tokens"
)
FIELDS: Final = {
    "/v1/completions": _SHARED_FIELDS | {"prompt", "echo", "suffix", "return_context_logits", "detokenize"},
    "/v1/chat/completions": _SHARED_FIELDS
    | {"messages", "top_logprobs", "max_completion_tokens", "tools", "tool_choice", "reasoning_effort", "echo"}
    | {"add_generation_prompt", "documents", "chat_template", "chat_template_kwargs", "cache_salt"},
}
"""`serve/openai_protocol.py`, which forbids others; without those of 2026 alone."""


@dataclass
class Stand:
    """What it was told, and what it counts."""

    release: str
    faults: dict[str, float]
    """`load_seconds`, `busy` (requests answered 503 first), `die_at` (SIGKILL before this piece), `break_at` (the
    connection ends before this piece), `token_seconds`, `answer_tokens`."""
    model: str
    options: dict[str, str]
    ready: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    running: int = 0
    iterations: int = 0
    told: int = 0
    """Iterations that `/metrics` has told already."""


def read_command(release: str, arguments: list[str]) -> tuple[str, dict[str, str]]:
    """(model, options). Exits as click does: 0 after help, 2 for what the release does not know."""
    known = RELEASES[release]
    grouped = release != "0.18.2"
    if grouped and arguments[:1] == ["--help"]:
        print("Usage: trtllm-serve [OPTIONS] COMMAND [ARGS]...\n\nCommands:\n  serve\n  disaggregated")
        sys.exit(0)
    rest = arguments[1:] if grouped and arguments[:1] == ["serve"] else list(arguments)
    if "--help" in rest:
        lines = "\n".join(f"  --{name}{'' if name in _FLAGS else ' TEXT'}" for name in sorted(known))
        print(f"Usage: trtllm-serve [OPTIONS] MODEL\n\nOptions:\n{lines}\n  --help")
        sys.exit(0)
    options: dict[str, str] = {}
    models: list[str] = []
    while rest:
        word = rest.pop(0)
        name = word.removeprefix("--")
        if not word.startswith("--"):
            models.append(word)
        elif name not in known:
            _exit(f"Error: No such option: {word}")
        elif name in _FLAGS:
            options[name] = "true"
        elif not rest:
            _exit(f"Error: Option {word!r} requires an argument.")
        else:
            options[name] = rest.pop(0)
    if len(models) != 1:
        _exit(f"Error: one MODEL is needed, not {models}")
    return models[0], options


def _exit(text: str) -> None:
    print(text, file=sys.stderr)
    sys.exit(2)


class Handler(BaseHTTPRequestHandler):
    """Answers on one connection; `stand` is set before the first."""

    protocol_version = "HTTP/1.1"
    stand: Stand

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.stand.ready.wait()
        if self.path == "/health":
            self._answer(200, "")
        elif self.path == "/version":
            self._answer(200, {"version": self.stand.release})
        elif self.path == "/v1/models":
            entry = {"id": os.path.basename(self.stand.model), "object": "model", "owned_by": "tensorrt_llm"}
            self._answer(200, {"object": "list", "data": [entry]})
        elif self.path == "/metrics":
            self._answer(200, self._metrics())
        else:
            self._error(404, "Not Found")

    def _metrics(self) -> list[dict[str, Any]]:
        stand = self.stand
        with stand.lock:
            cache = {"maxNumBlocks": 100, "usedNumBlocks": stand.running, "freeNumBlocks": 100 - stand.running}
            rows = [
                {"iter": number, "numActiveRequests": stand.running, "numQueuedRequests": 0, "kvCacheStats": cache}
                for number in range(stand.told + 1, stand.iterations + 1)
            ]
            stand.told = stand.iterations
        return rows

    def do_POST(self) -> None:
        stand = self.stand
        stand.ready.wait()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path not in FIELDS:
            self._error(404, "Not Found")
            return
        unknown = set(body) - FIELDS[self.path]
        if unknown:
            self._error(400, f"Extra inputs are not permitted: {', '.join(sorted(unknown))}")
            return
        with stand.lock:
            busy = stand.faults.get("busy", 0) > 0
            stand.faults["busy"] = stand.faults.get("busy", 0) - 1
        if busy:
            self._error(503, "Service is overloaded")
            return
        tokens_in = len(_text_of(body).split())
        if tokens_in >= int(stand.options["max_seq_len"]):
            limit = stand.options["max_seq_len"]
            self._error(400, f"The prompt length ({tokens_in}) should not exceed max_seq_len ({limit})")
            return
        with stand.lock:
            stand.running += 1
        try:
            self._stream(body, tokens_in)
        except OSError:
            pass  # the client left
        finally:
            with stand.lock:
                stand.running -= 1

    def _stream(self, body: dict[str, Any], tokens_in: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        chat = self.path == "/v1/chat/completions"
        pieces, reason = _answer_to(body, tokens_in, self.stand)
        if chat:
            self._event(_choice({"role": "assistant", "content": ""}, None, chat), tokens_in, 0)
        for place, piece in enumerate(pieces):
            time.sleep(self.stand.faults.get("token_seconds", 0.0))
            if place == self.stand.faults.get("die_at", -1):
                print("[MpiSession] rank 0: the engine has died", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            if place == self.stand.faults.get("break_at", -1):
                self.close_connection = True
                return
            end = reason if place == len(pieces) - 1 else None
            self._event(_choice({"content": piece} if chat else piece, end, chat), tokens_in, place + 1)
            with self.stand.lock:
                self.stand.iterations += 1
        self._event([], tokens_in, len(pieces))
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, choices: list[dict[str, Any]], tokens_in: int, tokens_out: int) -> None:
        usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}
        event = {"id": "x", "object": "chat.completion.chunk", "model": "m", "choices": choices, "usage": usage}
        self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _answer(self, status: int, document: Any) -> None:
        data = json.dumps(document).encode() if document != "" else b""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _error(self, status: int, message: str) -> None:
        self._answer(status, {"object": "error", "message": message, "type": "error", "param": None, "code": status})


def _choice(content: Any, reason: str | None, chat: bool) -> list[dict[str, Any]]:
    return [{"index": 0, "delta" if chat else "text": content, "logprobs": None, "finish_reason": reason}]


def _text_of(body: dict[str, Any]) -> str:
    if "prompt" in body:
        return str(body["prompt"])
    return " ".join(str(message["content"]) for message in body["messages"])


def _answer_to(body: dict[str, Any], tokens_in: int, stand: Stand) -> tuple[list[str], str]:
    """Pieces and finish reason. A greedy answer is a function of the text alone."""
    seed = "greedy" if body.get("temperature") == 0 else str(body.get("seed", os.urandom(8)))
    ground = sha256(f"{_text_of(body)}|{seed}".encode()).digest()
    room = int(stand.options["max_seq_len"]) - tokens_in
    most = min(body.get("max_tokens", room), room)
    count = min(most, int(stand.faults.get("answer_tokens", 10_000)))
    pieces = [WORDS[sha256(ground + place.to_bytes(4)).digest()[0] % len(WORDS)] + " " for place in range(count)]
    text = "".join(pieces)
    found = min((text.find(stop) for stop in body.get("stop", ()) if stop in text), default=-1)
    if found < 0:
        return pieces, "length" if count == most else "stop"
    kept: list[str] = []
    for piece in pieces:
        left = found - len("".join(kept))
        if left <= 0:
            break
        kept.append(piece[:left])
    return kept or [""], "stop"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--release", choices=RELEASES, required=True)
    parser.add_argument("--fault", action="append", default=[])
    place = sys.argv.index("--")
    own = parser.parse_args(sys.argv[1:place])
    model, options = read_command(own.release, sys.argv[place + 1 :])
    faults = {name: float(value) for name, _, value in (each.partition("=") for each in own.fault)}
    stand = Stand(own.release, faults, model, options)
    Handler.stand = stand
    server = ThreadingHTTPServer((options["host"], int(options["port"])), Handler)
    # a rank of MPI: in a session of its own, so that no signal to our group reaches it
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True)
    threading.Timer(faults.get("load_seconds", 0.0), stand.ready.set).start()
    server.serve_forever()


if __name__ == "__main__":
    main()
