"""One version in the place of another: no gap where memory allows, the old one back where the new one fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from octonode.api.ports import Report
from octonode.errors import OctonodeError
from octonode.models.manifest import SignedManifest
from octonode.node.switching import Switcher
from octonode.tasks.residency import ModelStatus, ResolvedModel
from tests.node.test_node_resolving import PUBLISHER, manifest

OLD, NEW = manifest(PUBLISHER, "1.0.0", content=b"old"), manifest(PUBLISHER, "1.1.0", seq=2, content=b"new")
NAME = f"{PUBLISHER.peer_id}/m"


def root(signed: SignedManifest) -> str:
    return signed.manifest.root.text


@dataclass
class Residency:
    """Stands in for `tasks.residency`: what is desired, and the order in which that changed."""

    desired: dict[str, str] = field(default_factory=dict)
    """{reference: root}"""
    steps: list[str] = field(default_factory=list)

    def model(self, root: str) -> ModelStatus | None:
        found = [reference for reference, each in self.desired.items() if each == root]
        return ModelStatus(found[0], "serving", ResolvedModel(root, "gguf")) if found else None

    def status(self) -> list[ModelStatus]:
        return [ModelStatus(reference, "serving") for reference in self.desired]

    def add(self, reference: str) -> None:
        self.steps.append(f"add {reference}")
        self.desired[reference] = root(NEW if reference == f"cid:{NEW.cid}" else OLD)

    def remove(self, name: str) -> bool:
        gone = [reference for reference, each in self.desired.items() if name in (reference, each)]
        self.steps += [f"remove {reference}" for reference in gone]
        for reference in gone:
            del self.desired[reference]
        return bool(gone)

    def rename(self, reference: str, to: str) -> None:
        self.desired[to] = self.desired.pop(reference)


@dataclass
class Models:
    """Stands in for `node.models`: waits until a model is served, or fails."""

    residency: Residency
    failure: OctonodeError | None = None
    served_meanwhile: list[str] = field(default_factory=list)

    async def until_serving(self, reference: str, root: str, report: Report) -> None:
        self.served_meanwhile = list(self.residency.desired.values())
        if self.failure is not None:
            raise self.failure


@dataclass
class Wishes:
    wished: dict[str, str] = field(default_factory=dict)

    def all(self) -> Mapping[str, str]:
        return self.wished

    async def add(self, reference: str, engine: str = "") -> None:
        self.wished[reference] = engine

    async def remove(self, *references: str) -> None:
        for reference in references:
            self.wished.pop(reference, None)


class World:
    def __init__(self, reference: str = f"{NAME}@^1", *, memory: int = 10**9, wished: bool = True) -> None:
        self.residency = Residency({reference: root(OLD)})
        self.models = Models(self.residency)
        self.wishes = Wishes({reference: "llama"} if wished else {})
        self.switcher = Switcher(
            self.models,  # type: ignore[arg-type]
            self.residency,  # type: ignore[arg-type]
            self.wishes,  # type: ignore[arg-type]
            available_bytes=lambda: memory,
        )

    async def switch(self, reference: str = f"{NAME}@^1") -> str:
        return await self.switcher.switch(OLD, NEW, reference, lambda _: None)


async def test_the_old_one_serves_until_the_new_one_does() -> None:
    world = World()
    assert await world.switch() == ""
    assert set(world.models.served_meanwhile) == {root(OLD), root(NEW)}
    assert world.residency.desired == {f"{NAME}@^1": root(NEW)}
    assert world.wishes.wished == {f"{NAME}@^1": "llama"}


async def test_another_range_is_wished_for_with_the_same_engine() -> None:
    world = World()
    await world.switch(f"{NAME}@^2")
    assert world.residency.desired == {f"{NAME}@^2": root(NEW)}
    assert world.wishes.wished == {f"{NAME}@^2": "llama"}


async def test_what_does_not_fit_beside_is_unloaded_first_and_that_is_said() -> None:
    world = World(memory=1)
    assert "memory" in await world.switch()
    assert world.models.served_meanwhile == [root(NEW)]
    assert world.residency.steps == [f"remove {NAME}@^1", f"add cid:{NEW.cid}"]
    assert world.residency.desired == {f"{NAME}@^1": root(NEW)}


@pytest.mark.parametrize("memory", [1, 10**9])
async def test_where_the_new_one_fails_the_old_one_serves(memory: int) -> None:
    world = World(memory=memory)
    world.models.failure = OctonodeError("it crashes", code="ENGINE_CRASHED")
    with pytest.raises(OctonodeError, match="it crashes"):
        await world.switch()
    assert list(world.residency.desired.values()) == [root(OLD)]
    assert world.wishes.wished == {f"{NAME}@^1": "llama"}


async def test_what_the_configuration_names_is_not_written_down_as_a_wish_unless_it_changes() -> None:
    world = World(wished=False)
    await world.switch()
    assert world.wishes.wished == {}
    other = World(wished=False)
    await other.switch(f"{NAME}@^2")
    assert other.wishes.wished == {f"{NAME}@^2": ""}
