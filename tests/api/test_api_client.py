"""`octonode.client` against the real faces, both of its forms, and the examples as a user would run them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from octonode.api.schema import AddModel, FetchModel, ModelProgress, PublishModel, ServeModel, VerifyModel
from octonode.api.schema.engines import measure_model
from octonode.client import AsyncClient, Client, daemon_running, find_daemon
from octonode.errors import TABLE, ConfigError, ExitCode, OctonodeError, VerificationFailed, from_wire
from octonode.node.engines import MEASURE_WAIT_SECONDS
from octonode.tasks.asking import Ask, AskEvent, Pieces
from octonode.testing.faces import (
    MODEL,
    PROVIDER,
    ROOT,
    TASK,
    TOKEN,
    PlayedAsking,
    PlayedModels,
    Stage,
    a_model,
    home_of,
)

HELLO = [{"role": "user", "content": "Hello"}]
EXAMPLES = Path(__file__).parents[2] / "examples"


async def blocking(stage: Stage, act: Callable[[Client], Any]) -> Any:
    """`act` with a blocking client, in a thread of its own."""

    def run() -> Any:
        with Client(stage.url, TOKEN) as client:
            return act(client)

    return await trio.to_thread.run_sync(run)


async def test_every_verb_of_the_blocking_client() -> None:
    def use(client: Client) -> None:
        assert client.node().join == "octonode:secret"
        assert client.peers()[0].peer_id == PROVIDER
        assert client.join(f"/ip4/192.0.2.1/tcp/1/p2p/{PROVIDER}").peer_id == PROVIDER
        assert client.models()[0].servers == (PROVIDER,)
        assert client.model(MODEL).root == ROOT
        assert client.trust(PROVIDER, note="me")[0].note == "me"
        assert client.publishers()[0].peer_id == PROVIDER
        assert client.trust(PROVIDER, trusted=False) == ()
        assert client.tasks(limit=1)[0].task == TASK.hex()
        assert [each.accepted for each in client.explain(MODEL)] == [True, False]
        assert client.doctor()[1].fix == "free some space"
        seen: list[ModelProgress] = []
        assert client.add_model(AddModel("/x.gguf", name="tiny"), seen.append).records == 3
        assert client.fetch_model(FetchModel(MODEL)).bytes_by_source == {"gateway": 1_000_000}
        assert client.publish_model(PublishModel(MODEL)).model.root == ROOT
        assert client.serve_model(ServeModel(MODEL)).seconds == 0.5
        assert client.verify_model(VerifyModel(MODEL)).model.reference == MODEL
        assert client.remove_model("tiny").root == ROOT
        client.stop()

    async with Stage().run() as stage:
        await blocking(stage, use)
        assert stage.node.stopped.is_set()
        assert [type(verb) for verb in stage.models.verbs] == [
            AddModel,
            FetchModel,
            PublishModel,
            ServeModel,
            VerifyModel,
        ]


async def test_every_verb_of_the_trio_client() -> None:
    async with Stage().run() as stage, AsyncClient(stage.url, TOKEN) as client:
        assert (await client.node()).peer_id == PROVIDER
        assert (await client.peers())[0].connected
        assert (await client.join(f"/ip4/192.0.2.1/tcp/1/p2p/{PROVIDER}")).peer_id == PROVIDER
        assert (await client.models())[0].reference == MODEL
        assert (await client.model(f"cid:{ROOT}")).reference == MODEL
        assert (await client.trust(PROVIDER))[0].peer_id == PROVIDER
        assert (await client.publishers())[0].peer_id == PROVIDER
        assert (await client.tasks())[0].role == "asker"
        assert (await client.explain(MODEL))[0].tokens_per_second == 80.0
        assert (await client.doctor())[0].status == "ok"
        assert (await client.work(FetchModel(MODEL, trust=True))).records == 3
        assert stage.models.verbs == [FetchModel(MODEL, trust=True)]
        stage.node.played = [{"event": "x", "at_ms": 1}]
        async with client.events() as events:
            async for event in events:
                assert event == {"event": "x", "at_ms": 1}
                await client.stop()
        assert (await client.remove_model(MODEL)).root == ROOT


async def test_chat_streams_and_keeps_what_it_amounts_to() -> None:
    def use(client: Client) -> Any:
        with client.chat("tiny", HELLO, max_tokens=5, temperature=0, stop=["x"], peer=PROVIDER, explain=True) as stream:
            return list(stream), stream.result

    async with Stage().run() as stage:
        texts, answer = await blocking(stage, use)
        (ask,) = stage.asking.asked
    assert texts == ["Hello", ",", " world", "."]
    assert (answer.text, answer.finish_reason, answer.tokens_in, answer.tokens_out) == ("Hello, world.", "stop", 7, 4)
    assert (answer.facts.receipt, answer.facts.verified) == (b"a receipt", True)
    assert len(answer.facts.candidates) == 2
    assert (ask.max_tokens, ask.temperature, ask.stop, ask.peer) == (5, 0.0, ("x",), PROVIDER)


async def test_leaving_a_chat_early_cancels_it() -> None:
    async def script(_: Ask) -> AsyncIterator[AskEvent]:
        yield Pieces(("first",))
        await trio.sleep_forever()

    with trio.fail_after(30):
        async with Stage(asking=PlayedAsking(script)).run() as stage, AsyncClient(stage.url) as client:
            async with client.chat("tiny", HELLO) as stream:
                assert await anext(aiter(stream)) == "first"
            await stage.asking.left.wait()


async def read_chat(client: AsyncClient) -> list[str]:
    async with client.chat("tiny", HELLO) as stream:
        return [text async for text in stream]


async def test_errors_come_back_as_they_were_raised() -> None:
    for after in ((), ("so far",)):
        for code in TABLE:

            async def script(_: Ask, code: str = code, after: tuple[str, ...] = after) -> AsyncIterator[AskEvent]:
                if after:
                    yield Pieces(after)
                raise from_wire(code, "what to do")

            async with Stage(asking=PlayedAsking(script)).run() as stage, AsyncClient(stage.url) as client:
                with pytest.raises(OctonodeError, match="what to do") as raised:
                    await read_chat(client)
            assert raised.value.code == code
            assert raised.value.row.exit_code == TABLE[code].exit_code


async def test_a_verb_that_fails_later_raises_what_it_failed_of() -> None:
    async with Stage(models=PlayedModels(failure=VerificationFailed("leaf 3"))).run() as stage:
        async with AsyncClient(stage.url, TOKEN) as client:
            with pytest.raises(OctonodeError, match="leaf 3") as raised:
                await client.work(VerifyModel(MODEL))
            assert raised.value.row.exit_code == ExitCode.VERIFICATION_FAILED
            with pytest.raises(OctonodeError) as unknown:
                await client.work(FetchModel("unknown/model"))
            assert (unknown.value.code, unknown.value.detail["publisher"]) == ("NOT_TRUSTED", PROVIDER)
        async with AsyncClient(stage.url) as stranger:
            with pytest.raises(OctonodeError, match=r"api\.token") as refused:
                await stranger.stop()
            assert refused.value.row.exit_code == ExitCode.REFUSED


async def test_the_daemon_is_found_by_its_home(tmp_path: Path) -> None:
    with pytest.raises(OctonodeError, match="octonode start") as absent:
        find_daemon(tmp_path)
    assert (absent.value.code, absent.value.row.exit_code) == ("NOT_RUNNING", ExitCode.UNREACHABLE)
    assert not daemon_running(tmp_path)
    async with Stage().run() as stage:
        home = home_of(stage, tmp_path)
        assert find_daemon(home) == (stage.url, TOKEN)
        assert await trio.to_thread.run_sync(daemon_running, home)
    with Client.from_home(home) as client, pytest.raises(OctonodeError, match="octonode start") as gone:
        client.node()
    assert gone.value.code == "NOT_RUNNING"
    (home / "daemon.json").write_text("{")
    with pytest.raises(ConfigError, match="start the node again"):
        find_daemon(home)


@asynccontextmanager
async def answers(answer: bytes) -> AsyncIterator[AsyncClient]:
    """A client of something that is no daemon, which says `answer` to everything."""

    async def page(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(4096)
            await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, page, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        async with AsyncClient(f"http://127.0.0.1:{port}") as client:
            yield client
        nursery.cancel_scope.cancel()


async def test_what_is_no_daemon_is_said_to_be_none() -> None:
    async with answers(b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\nhtml") as client:
        with pytest.raises(OctonodeError, match="HTTP 500"):
            await client.node()
    async with answers(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>") as client:
        with pytest.raises(OctonodeError, match="no octonode node"):
            await client.node()
        with pytest.raises(OctonodeError, match="no octonode node"):
            await client.work(FetchModel(MODEL))
    async with answers(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") as client:
        with pytest.raises(OctonodeError, match="no list of peers"):
            await client.peers()


async def test_what_no_json_can_hold_is_named_before_it_is_sent() -> None:
    async with Stage().run() as stage, AsyncClient(stage.url, TOKEN) as client:
        for told, temperature, text in (("surrogate", 0.0, "\udcff"), ("NaN", float("nan"), "x")):
            asked = [{"role": "user", "content": text}]
            with pytest.raises(OctonodeError, match=told) as refused:
                async with client.chat(MODEL, asked, temperature=temperature):
                    pass
            assert refused.value.code == "BAD_REQUEST"
        with pytest.raises(OctonodeError, match="surrogate"):
            await client.embed(MODEL, ["\udcff"])
        with pytest.raises(OctonodeError, match="no model"):  # the command line hands on what is no UTF-8
            await client.model("a\udcff")
    assert stage.asking.asked == []


async def test_a_call_that_works_long_in_silence_is_waited_for() -> None:
    """A model in use is tried for two minutes, longer than the silence of anything else."""
    timeouts = []

    async def note(request: httpx.Request) -> None:
        timeouts.append(request.extensions["timeout"]["read"])

    async with Stage().run() as stage, AsyncClient(stage.url, TOKEN) as client:
        client._http.event_hooks = {"request": [note]}
        with pytest.raises(OctonodeError, match="not loaded"):
            await client.do(measure_model("none"))
        await client.node()
    assert timeouts[0] > MEASURE_WAIT_SECONDS > timeouts[1]


@pytest.mark.parametrize("example", ["ask.py", "openai_client.py"])
async def test_the_examples_run(example: str, tmp_path: Path) -> None:
    async with Stage().run() as stage:
        stage.models.held = [
            a_model(reference="cid:other", root="bafyother", skills=("classify",)),
            a_model(skills=("chat",)),
        ]
        home = home_of(stage, tmp_path)
        environ = {**os.environ, "OCTONODE_HOME": str(home)}
        done = await trio.run_process(
            [sys.executable, str(EXAMPLES / example)],
            env=environ,
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
        )
    said = done.stdout.decode()
    assert done.returncode == 0, said
    assert said.startswith("Hello, world.")
    assert f"answered by {PROVIDER}" in said
    assert "verified" in said


async def test_the_example_says_what_to_do_without_a_daemon(tmp_path: Path) -> None:
    done = await trio.run_process(
        [sys.executable, str(EXAMPLES / "ask.py")],
        env={**os.environ, "OCTONODE_HOME": str(tmp_path)},
        capture_stderr=True,
        check=False,
    )
    assert done.returncode == ExitCode.UNREACHABLE
    assert b"octonode start" in done.stderr
