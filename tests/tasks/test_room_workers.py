"""Two models and memory for one, with real worker processes: whoever is asked for is loaded, and the question waits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import trio

from octonode.config import EnginesConfig
from octonode.engines.contract import LoadRequest
from octonode.engines.placement import RAM, Model, Seat, Shortage, Space
from octonode.engines.supervisor import Supervisor
from octonode.errors import OctonodeError
from octonode.models.requirements import Fit, Need
from octonode.tasks.asking import Progress
from octonode.tasks.resident import ResolvedModel
from octonode.tasks.room import Room
from tests.tasks.nodes import ROOT, Node, answer_of, ask, events_of, nodes, text_of

pytestmark = [pytest.mark.process]
OTHER = ROOT[:-1] + "q"
GB = 10**9
HUGE = ROOT[:-1] + "4"


class OneSeat:
    """Memory for one model."""

    async def spaces(self, seats: Mapping[str, Seat]) -> tuple[Space, ...]:
        return (Space(RAM, 15 * GB),)

    async def need(self, model: ResolvedModel, request: LoadRequest) -> Model:
        return Model(model.root, ram_bytes=(99 if model.root == HUGE else 10) * GB)

    async def fit(self, model: ResolvedModel, request: LoadRequest, short: Shortage) -> Fit:
        return Fit("free", 2048, "ram", Need(0, 0, 0), 0)


async def test_two_models_take_turns_in_one_seat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Node, "room", Room(OneSeat(), evict_idle_seconds=0.05))
    supervisor = Supervisor(EnginesConfig(), directory=tmp_path / "workers")
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            async with nodes(tmp_path, 1, engines=(supervisor,)) as (node,):
                await node.serve(ROOT)
                await trio.sleep(0.1)
                await node.serve(OTHER)
                first = supervisor.status()
                assert [each.model_root for each in first] == [OTHER], "the one that left has no process any more"
                for root in (ROOT, OTHER, ROOT):
                    await trio.sleep(0.1)
                    events = await events_of(node, ask(model_root=root, max_tokens=4))
                    assert answer_of(events).local
                    assert text_of(events)
                    assert any(isinstance(each, Progress) and each.stage == "loading" for each in events)
                    assert [each.model_root for each in supervisor.status()] == [root]
                states = {each.reference: each.state for each in node.residency.status()}
                assert states == {ROOT: "serving", OTHER: "standby"}
            nursery.cancel_scope.cancel()


async def test_a_question_for_a_model_that_has_no_room_is_told_how_much_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Node, "room", Room(OneSeat()))
    async with nodes(tmp_path, 1) as (node,):
        with trio.fail_after(60):
            await node.serve(ROOT)
            node.source.here.add(HUGE)
            node.residency.add(HUGE)
            while (status := node.residency.model(HUGE)) is None or status.state != "failed":
                await node.residency.wait_changed(node.residency.changes)
            with pytest.raises(OctonodeError) as caught:
                await events_of(node, ask(model_root=HUGE))
            assert caught.value.code == "MODEL_UNAVAILABLE"
            assert "it needs 99 GB of memory and 5 GB are free for it: 94 GB are missing" in caught.value.message
            assert answer_of(await events_of(node, ask())).local, "other work is undisturbed"
