"""OpenAI's face: `/v1/audio/transcriptions` and `/v1/audio/speech`. Spec: protocols/http.md."""

from __future__ import annotations

import io
import wave

from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from octonode.api.answering import proof_headers
from octonode.api.body import BodyLimits, privacy_header, read_json
from octonode.api.multipart import FormRoom, read_form
from octonode.api.ports import Ports
from octonode.api.schema import AnswerFacts, to_json
from octonode.api.schema.audio import parse_speech, parse_transcription, transcription_json, transcription_text
from octonode.api.work import answer_work
from octonode.errors import OctonodeError
from octonode.protocol.work.audio import Sound, Transcription


def routes(ports: Ports, limits: BodyLimits, uploads: BodyLimits, room: FormRoom) -> list[BaseRoute]:
    return [
        Route("/v1/audio/transcriptions", _Transcriptions(ports, uploads, room), methods=["POST"]),
        Route("/v1/audio/speech", _Speech(ports, limits), methods=["POST"]),
    ]


class _Transcriptions:
    def __init__(self, ports: Ports, uploads: BodyLimits, room: FormRoom) -> None:
        self._ports = ports
        self._uploads = uploads
        self._room = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._room.enter():
            form = await read_form(
                scope, receive, self._uploads, files=frozenset({"file"}), numbers=frozenset({"temperature"})
            )
            request = parse_transcription(form.fields, form.file("file"), privacy_header(scope))

            def render(found: Transcription, facts: AnswerFacts) -> Response:
                if request.form in ("json", "verbose_json"):
                    return JSONResponse(transcription_json(request, found, to_json(facts)))
                media_type = "text/vtt" if request.form == "vtt" else "text/plain"
                return Response(
                    transcription_text(request.form, found), media_type=media_type, headers=proof_headers(facts)
                )

            await answer_work(
                self._ports, scope, receive, send,
                terms=request.terms, work=request.work, result=Transcription, render=render,
            )  # fmt: skip


class _Speech:
    def __init__(self, ports: Ports, limits: BodyLimits) -> None:
        self._ports = ports
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = parse_speech(await read_json(scope, receive, self._limits), privacy_header(scope))

        def render(sound: Sound, facts: AnswerFacts) -> Response:
            headers = {**proof_headers(facts), "x-octonode-sample-rate-hz": str(sound.sample_rate_hz)}
            if request.form == "pcm":
                return Response(pcm_of(sound.audio), media_type="audio/pcm", headers=headers)
            return Response(sound.audio, media_type=sound.media_type, headers=headers)

        await answer_work(
            self._ports, scope, receive, send,
            terms=request.terms, work=request.work, result=Sound, render=render,
        )  # fmt: skip


def pcm_of(audio: bytes) -> bytes:
    """The samples of a WAV file, 16 bits each, little-endian. Raises PROVIDER_LOST for what is none."""
    try:
        with wave.open(io.BytesIO(audio)) as file:
            return bytes(file.readframes(file.getnframes()))
    except (wave.Error, EOFError) as error:
        raise OctonodeError(f"the provider sent no WAV file ({error}); ask again", code="PROVIDER_LOST") from None
