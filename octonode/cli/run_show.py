"""What `octonode run` leaves: files that are never written over unasked, tables and times; and its progress bar."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from octonode.cli.ask import show_facts
from octonode.cli.output import emit, shown, size, table
from octonode.errors import OctonodeError

if TYPE_CHECKING:
    from octonode.api.schema import ModelProgress
    from octonode.api.schema.work import Made
    from octonode.protocol.work.audio import Sound, Transcription, VoiceActivity
    from octonode.protocol.work.image import Images
    from octonode.protocol.work.text import Embeddings
    from octonode.protocol.work.vision import Box, Classification, Detection, ReadText

NAME_CHARACTERS_MAX: Final = 48
FREE_NAMES_TRIED: Final = 10_000


@dataclass(frozen=True, slots=True)
class Shown:
    """Where the result goes."""

    out: Path | None
    force: bool
    as_json: bool

    def check(self, count: int = 1) -> None:
        """Raises before any work is done for files, `count` of them, that could not be written at its end."""
        if self.out is None:
            return
        folder = self.out.absolute().parent
        if not folder.is_dir():
            raise OctonodeError(f"{folder} is no folder; make it first", code="BAD_REQUEST")
        if self.out.is_dir():
            raise OctonodeError(f"{self.out} is a folder; name a file in it", code="BAD_REQUEST")
        for path in _numbered(self.out, count):
            if path.exists() and not self.force:
                raise OctonodeError(f"{path} exists; choose another name, or --force", code="BAD_REQUEST")
            _check_writable(path if path.exists() else folder)

    def check_skill(self, skill: str) -> None:
        """Raises before any work is done for a result that goes to no file, or to one that cannot be made."""
        if self.out is not None and skill in _WORDS:
            message = f"--out means nothing to {skill}: its result is printed; send that to a file with >"
            raise OctonodeError(message, code="BAD_REQUEST")
        if self.out is None and skill in _FILES:
            _check_writable(Path.cwd())


def show(skill: str, made: Made[Any], where: Shown, *, name: str) -> None:
    """Saves what is a file, prints what is words, and says who did it. `name` is what files are named after."""
    from octonode.api.schema import to_json

    result = made.result
    files, text = _RENDER[skill](result, where, name)
    if where.as_json:
        told = {key: value for key, value in to_json(result).items() if key not in ("images", "audio", "vectors")}
        if skill == "embed":
            told["vectors"] = _vectors(result)
        saved = {"files": [str(file) for file in files]} if files else {}
        emit({"skill": skill, "result": told, **saved, "octonode": to_json(made.facts)}, as_json=True, text="")
        return
    emit({}, as_json=False, text=shown(text))
    show_facts(made.facts, skill)


# --- What each skill leaves: (files, text) --------------------------------------------------------------------------


def _images(result: Images, where: Shown, name: str) -> tuple[list[Path], str]:
    files = _save(result.images, where, name, ".png")
    pixels = f"{result.width_pixels}x{result.height_pixels}"
    return files, "\n".join(f"{file}  {pixels}  {result.steps} steps  seed {result.seed + index}"
                            for index, file in enumerate(files))  # fmt: skip


def _sound(result: Sound, where: Shown, name: str) -> tuple[list[Path], str]:
    files = _save([result.audio], where, name, ".wav")
    return files, f"{files[0]}  {result.seconds:.1f} s  {result.sample_rate_hz} Hz  {size(len(result.audio))}"


def _transcription(result: Transcription, where: Shown, name: str) -> tuple[list[Path], str]:
    from octonode.api.schema.audio import clock, transcription_text

    lines = [
        f"[{clock(each.start_seconds)} - {clock(each.end_seconds)}]  {each.text.strip()}" for each in result.segments
    ]
    words = [f"  {clock(word.start_seconds)}  {word.text.strip()}" for each in result.segments for word in each.words]
    text = "\n".join([*lines, *words]) or result.text.strip()
    if where.out is None:
        return [], text
    suffix = where.out.suffix
    said = transcription_text("srt" if suffix == ".srt" else "vtt" if suffix == ".vtt" else "text", result)
    return _save([said.encode()], where, name, ".txt"), f"{text}\n{where.out}"


def _voice_activity(result: VoiceActivity, where: Shown, name: str) -> tuple[list[Path], str]:
    from octonode.api.schema.audio import clock

    spans = [(clock(each.start_seconds), clock(each.end_seconds)) for each in result.spans]
    return [], f"{table(('FROM', 'TO'), spans)}\nof {clock(result.seconds)}"


def _embeddings(result: Embeddings, where: Shown, name: str) -> tuple[list[Path], str]:
    vectors = _vectors(result)
    files = [] if where.out is None else _save([json.dumps(vectors).encode()], where, name, ".json")
    begun = ", ".join(f"{number:.4f}" for number in vectors[0][:4]) if vectors else ""
    cut = f", {result.texts_cut} cut" if result.texts_cut else ""
    return files, f"[{begun}, ...]  {result.dimensions} dimensions, {result.tokens_in} tokens{cut}" + (
        f"\n{files[0]}" if files else ""
    )


def _classification(result: Classification, where: Shown, name: str) -> tuple[list[Path], str]:
    return [], table(("LABEL", "SCORE"), [(each.name, f"{each.score:.3f}") for each in result.labels])


def _detection(result: Detection, where: Shown, name: str) -> tuple[list[Path], str]:
    rows = [(each.label, f"{each.score:.3f}", _corners(each.box)) for each in result.objects]
    return [], table(("LABEL", "SCORE", "BOX"), rows)


def _read(result: ReadText, where: Shown, name: str) -> tuple[list[Path], str]:
    if where.out is not None:
        text = "".join(f"{each.text}\n" for each in result.lines)
        return _save([text.encode()], where, name, ".txt"), f"{where.out}  {len(result.lines)} lines"
    return [], table(("SCORE", "BOX", "TEXT"), [(f"{each.score:.3f}", _corners(each.box), each.text)
                                                for each in result.lines])  # fmt: skip


def _corners(box: Box) -> str:
    return f"{box.left:.0f},{box.top:.0f} {box.right:.0f},{box.bottom:.0f}"


def _vectors(result: Embeddings) -> list[list[float]]:
    from octonode.api.schema.embeddings import vectors_of

    return vectors_of(result)


_RENDER: Final[dict[str, Callable[[Any, Shown, str], tuple[list[Path], str]]]] = {
    "image": _images,
    "speak": _sound,
    "sound": _sound,
    "transcribe": _transcription,
    "voice_activity": _voice_activity,
    "embed": _embeddings,
    "classify": _classification,
    "detect": _detection,
    "read": _read,
}


_FILES: Final = frozenset({"image", "speak", "sound"})
"""Skills whose result is a file, whether it was named or not."""
_WORDS: Final = frozenset({"classify", "detect", "voice_activity"})
"""Skills whose result is only shown."""


# --- Files ----------------------------------------------------------------------------------------------------------


def _save(parts: Sequence[bytes], where: Shown, name: str, suffix: str) -> list[Path]:
    """Each part as a file: that of --out, numbered where there are several, else a free name after the prompt."""
    files = []
    named = _numbered(where.out, len(parts)) if where.out is not None else []
    for index, part in enumerate(parts):
        path, fresh = (named[index], not where.force) if named else (_free(name, suffix), True)
        try:
            with path.open("xb" if fresh else "wb") as file:
                file.write(part)
        except FileExistsError:
            raise OctonodeError(f"{path} exists; choose another name, or --force", code="BAD_REQUEST") from None
        except OSError as error:
            message = f"{path} cannot be written ({error.strerror}); name another place with --out"
            raise OctonodeError(message, code="READ_ONLY") from None
        files.append(path)
    return files


def _numbered(out: Path, count: int) -> list[Path]:
    """`a.png`, or `a-1.png`, `a-2.png` for several."""
    return [out] if count == 1 else [out.with_stem(f"{out.stem}-{number}") for number in range(1, count + 1)]


def _check_writable(path: Path) -> None:
    if not os.access(path, os.W_OK):
        raise OctonodeError(f"{path} cannot be written; name another place with --out", code="READ_ONLY")


def _free(name: str, suffix: str) -> Path:
    """`a-lighthouse.png`, or with a number after it where that is taken, in the folder we are in."""
    words = "".join(each if each.isalnum() else " " for each in name.lower()).split()
    stem = "-".join(words)[:NAME_CHARACTERS_MAX].strip("-") or "out"
    for number in range(1, FREE_NAMES_TRIED):
        path = Path(f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}")
        if not path.exists():
            return path
    raise OctonodeError(f"{stem}-*{suffix} are all taken; name a file with --out", code="BAD_REQUEST")


# --- Progress -------------------------------------------------------------------------------------------------------


@contextmanager
def steps(title: str, *, quiet: bool) -> Iterator[Callable[[ModelProgress], None]]:
    """A bar of steps on stderr; silent where that is no terminal, or `quiet`."""
    if quiet or not sys.stderr.isatty():
        yield lambda progress: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(title, total=None)

        def tell(progress: ModelProgress) -> None:
            total = progress.total or None
            bars.update(bar, description=f"{title}: {progress.stage}", completed=progress.done, total=total)

        yield tell
