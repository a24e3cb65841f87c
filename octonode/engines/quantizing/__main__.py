"""The child's main. See the package."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from octonode.engines import sandbox
from octonode.engines.quantizing import needs
from octonode.engines.quantizing.job import KINDS, Job, Made, Tell
from octonode.errors import OctonodeError

_MAKERS = {
    "gguf": "octonode.engines.quantizing.gguf",
    "onnx": "octonode.engines.quantizing.onnx",
    "safetensors": "octonode.engines.quantizing.safetensors",
}
_PR_SET_PDEATHSIG = 1
NICE = 10
"""Whoever is served goes first."""


def main() -> int:
    """The exit status: 0 when a result was written."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the daemon's terminal is the daemon's to handle
    job = Job(**json.loads(sys.stdin.readline()))
    line = _Line()
    _die_with(job.parent)
    os.nice(NICE)
    try:
        line.say({"type": "progress", "stage": "start", "done": 0, "total": 0})
        _enter(job)
        threading.Thread(target=_end_with_caller, daemon=True).start()  # the sandbox wants to be entered by one thread
        made = _make(job, line)
    except ImportError as error:
        text = f"{error}; run: pip install '{needs.NEEDS[job.format].extra}'"
        line.say({"type": "error", "code": "CONFIG", "message": text})
    except OctonodeError as error:
        line.say({"type": "error", "code": error.code, "message": error.message[:1000]})
    except MemoryError:
        line.say({"type": "error", "code": "ENGINE_FAILED", "message": "there is too little memory for this model"})
    except OSError as error:
        line.say({"type": "error", "code": "DISK_FULL" if _is_full(error) else "ENGINE_FAILED", "message": str(error)})
    except Exception as error:
        text = f"{type(error).__name__}: {error}"[:1000]
        line.say({"type": "error", "code": "ENGINE_FAILED", "message": text})
    else:
        line.say({"type": "result", **dataclasses.asdict(made)})
        return 0
    return 1


def _make(job: Job, line: _Line) -> Made:
    if job.kind not in KINDS.get(job.format, {}):
        raise OctonodeError(f"{job.format} models are not made into {job.kind}", code="UNSUPPORTED")
    quantize: Callable[[Job, Tell], Made] = import_module(_MAKERS[job.format]).quantize
    began = time.monotonic()
    return dataclasses.replace(quantize(job, line.tell), seconds=time.monotonic() - began)


def _enter(job: Job) -> None:
    """The sandbox of an engine worker: it reads the model and the libraries, and writes its own directory."""
    target = Path(job.target)
    print(sandbox.limit_resources(job.file_bytes_max or None), file=sys.stderr)
    if job.sandbox:
        access = sandbox.access_for(Path(job.source), Path.cwd(), ())
        access = dataclasses.replace(access, write=(*access.write, str(target)))
        print("; ".join(sandbox.enter(access)), file=sys.stderr, flush=True)


def _die_with(parent: int) -> None:
    """SIGKILL when the thread that started us ends, even if we hang or are stopped then."""
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(130)


def _end_with_caller() -> None:
    """Standard input ends when the caller does, or cancels."""
    sys.stdin.read()
    os._exit(130)


def _is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Line:
    """Standard output as our protocol has it. What libraries print there goes to standard error from now on."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self._file: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def tell(self, stage: str, done: int, total: int) -> None:
        self.say({"type": "progress", "stage": stage, "done": done, "total": total})

    def say(self, value: dict[str, Any]) -> None:
        self._file.write(json.dumps(value) + "\n")
        self._file.flush()


if __name__ == "__main__":
    sys.exit(main())
