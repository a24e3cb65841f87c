"""Everything that is said on the wire has a page and golden bytes; decisions are numbered and complete."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from octonode import ids
from tests.tidy import tree

PAGES = tree.ROOT / "protocols"
NAMED = ("agent", "announcement", "attacks", "discovery", "fanout", "gateway", "hello", "manifest", "receipt")
SECTIONS = ("Context", "Options", "Choice", "Cost")


def pages() -> dict[str, str]:
    return {path.name: tree.text(path) for path in tree.files() if path.parent == PAGES and path.suffix == ".md"}


def vectors() -> list[Path]:
    return [path for path in tree.files() if path.parent == PAGES / "vectors" and path.suffix == ".json"]


def decisions() -> list[Path]:
    found = [path for path in tree.files() if path.parent == PAGES / "decisions" and path.suffix == ".md"]
    return [path for path in found if path.name != "template.md"]


def constants(suffix: tuple[str, ...]) -> dict[str, str | bytes]:
    return {name: value for name, value in vars(ids).items() if name.endswith(suffix) and not name.startswith("_")}


@pytest.mark.parametrize("page", NAMED)
def test_the_page_is_there_and_in_the_index(page: str) -> None:
    assert f"{page}.md" in pages()
    assert f"({page}.md)" in pages()["README.md"]


@pytest.mark.parametrize("name", sorted(constants(("_PROTOCOL", "_TOPIC"))))
def test_every_protocol_id_has_a_page_with_vectors(name: str) -> None:
    protocol_id = str(getattr(ids, name))
    about = [text for page, text in pages().items() if protocol_id in text and page not in ("README.md", "attacks.md")]
    assert about, f"no page in protocols/ names {protocol_id}"
    linked = {link for text in about for link in re.findall(r"\(vectors/([\w.-]+\.json)\)", text)}
    assert linked, f"no page about {protocol_id} links golden vectors"


@pytest.mark.parametrize("name", sorted(constants(("_DOMAIN",))))
def test_every_signing_domain_is_in_a_page(name: str) -> None:
    domain = getattr(ids, name).rstrip(b"\0").decode()
    assert any(domain in text for text in pages().values()), f"no page in protocols/ names the domain {domain}"


def test_every_link_to_vectors_leads_to_one() -> None:
    there = {path.name for path in vectors()}
    linked = {link for text in pages().values() for link in re.findall(r"\(vectors/([\w.-]+)\)", text)}
    assert linked - there == set()


@pytest.mark.parametrize("path", vectors(), ids=lambda path: path.stem)
def test_vectors_are_json_name_their_page_and_are_checked_by_a_test(path: Path) -> None:
    content = json.loads(tree.text(path))
    assert isinstance(content, dict)
    page = str(content.get("page", ""))
    assert Path(page).name in pages(), f"{path.name} must say which page it belongs to"
    readers = [p for p in tree.python_files("tests") if path.stem in tree.text(p) and "vectors" in tree.text(p)]
    assert readers, f"no test reads {path.name}"


def test_decisions_are_numbered_once() -> None:
    numbers = [match[1] for path in decisions() if (match := re.match(r"(\d{4})-[a-z0-9-]+\.md", path.name))]
    assert len(numbers) == len(decisions()), "a decision is named NNNN-in-a-few-words.md"
    assert sorted(set(numbers)) == sorted(numbers)
    assert "0001" in numbers


@pytest.mark.parametrize("path", decisions(), ids=lambda path: path.stem)
def test_a_decision_says_what_was_weighed_and_what_it_costs(path: Path) -> None:
    text = tree.text(path)
    assert re.match(rf"# (Decision )?{path.name[:4]}\b", text)
    missing = [section for section in SECTIONS if not re.search(rf"^## {section}", text, re.M)]
    assert missing == []


def test_relative_links_between_pages_lead_somewhere() -> None:
    broken = []
    for path in tree.files():
        if path.suffix != ".md":
            continue
        text = re.sub(r"^```.*?^```", "", tree.text(path), flags=re.M | re.S)
        for link in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", text):
            if "://" not in link and not link.startswith("mailto:") and not (path.parent / link).exists():
                broken.append(f"{tree.name(path)} -> {link}")
    assert broken == []


def test_tests_that_pages_name_exist() -> None:
    gone = []
    for page, text in pages().items():
        for file, test in re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", text):
            path = tree.ROOT / file
            if not path.exists() or (test and f"def {test}(" not in tree.text(path)):
                gone.append(f"{page}: {file}::{test}")
    assert gone == []
