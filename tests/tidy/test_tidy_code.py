"""The style of the house where a machine can check it: sizes, names, docstrings, nothing of one machine in the tree."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tidy import tree

LINES_MAX = 400
FUNCTION_LINES_MAX = 70
BANNED_WORDS = {"utils", "util", "helpers", "helper", "manager", "misc", "common"}
DATA_BASES = {"Exception", "Protocol", "Enum", "IntEnum", "StrEnum", "NamedTuple", "TypedDict"}

CODE = tree.python_files("octonode", "scripts", "tests")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(tree.text(path)))


def too_long(path: Path) -> list[str]:
    lines = len(tree.text(path).splitlines())
    found = [f"{tree.name(path)} has {lines} lines"] if lines > LINES_MAX else []
    for node in nodes(path):
        if isinstance(node, Function) and node.end_lineno and node.end_lineno - node.lineno >= FUNCTION_LINES_MAX:
            found.append(f"{tree.name(path)}: {node.name} has {node.end_lineno - node.lineno + 1} lines")
    return found


def banned(path: Path) -> list[str]:
    found = [
        f"{tree.name(path)}" for part in path.relative_to(tree.ROOT).parts if _words(part.split(".")[0]) & BANNED_WORDS
    ]
    for node in nodes(path):
        # Who extends a library's PeerManager keeps its word.
        inherited = _words(" ".join(map(ast.unparse, node.bases))) if isinstance(node, ast.ClassDef) else set()
        if isinstance(node, ast.ClassDef) and _words(node.name) & BANNED_WORDS - inherited:
            found.append(f"{tree.name(path)}: class {node.name}")
    return found


def _words(identifier: str) -> set[str]:
    """{"engine", "manager"} of EngineManager and of engine_manager."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", identifier)}


def undocumented(path: Path) -> list[str]:
    """Modules, and public classes that do something: rows of data, errors and Protocols speak by their fields."""
    source = ast.parse(tree.text(path))
    found = [] if ast.get_docstring(source) or not source.body else [f"{tree.name(path)}: the module"]
    for node in ast.walk(source):
        if not isinstance(node, ast.ClassDef) or node.name.startswith("_") or ast.get_docstring(node):
            continue
        does = any(isinstance(each, Function) and not each.name.startswith("_") for each in node.body)
        data = any("dataclass" in ast.unparse(each) for each in node.decorator_list)
        data = data or any(ast.unparse(base).split(".")[-1].split("[")[0] in DATA_BASES for base in node.bases)
        if does and not data:
            found.append(f"{tree.name(path)}: class {node.name}")
    return found


def test_files_and_functions_keep_their_bounds() -> None:
    assert [each for path in CODE for each in too_long(path)] == []


def test_nothing_is_named_after_what_it_is_not() -> None:
    assert [each for path in CODE for each in banned(path)] == []


def test_modules_and_classes_that_do_something_say_what() -> None:
    assert [each for path in tree.python_files("octonode", "scripts") for each in undocumented(path)] == []


def test_every_module_has_postponed_annotations() -> None:
    missing = []
    for path in CODE:
        body = ast.parse(tree.text(path)).body
        if len(body) > 1 and "from __future__ import annotations" not in tree.text(path):
            missing.append(tree.name(path))
    assert missing == []


def test_nothing_of_one_machine_is_committed() -> None:
    """Absolute paths of a workplace, which work for nobody else. Written in parts here, or this file would be found."""
    pattern = re.compile(r"(?<![\w.:>/-])/" + r"(?:work|tmp/octo\w*|opt/pypi[\w-]*)" + r"(?=[/\s\"'`),;:]|$)", re.M)
    found = []
    for path in tree.files():
        try:
            content = tree.text(path)
        except UnicodeDecodeError:
            continue  # vectors and pictures
        found += [f"{tree.name(path)}: {match[0]}" for match in pattern.finditer(content)]
    assert found == []


def test_no_large_file_is_committed() -> None:
    assert [tree.name(path) for path in tree.files() if path.stat().st_size > 1_000_000] == []


def test_no_test_is_skipped_or_expected_to_fail() -> None:
    """A check that does not run proves nothing; platform conditions belong into the test's own words."""
    marks = {"skip", "skipif", "xfail", "importorskip"}
    found = []
    for path in tree.python_files("tests"):
        for node in nodes(path):
            if isinstance(node, ast.Attribute) and node.attr in marks and "pytest" in ast.unparse(node.value):
                found.append(f"{tree.name(path)}:{node.lineno}")
    assert found == []


def test_no_test_asserts_a_time() -> None:
    """Machines differ: figures belong to `make bench`. Trio's clock is free where a test brings a virtual one."""
    found = []
    for path in tree.python_files("tests"):
        for function in nodes(path):
            if not isinstance(function, Function):
                continue
            virtual = any("clock" in each.arg for each in function.args.args)
            clock = r"\btime\.(time|monotonic|perf_counter)\b" + ("" if virtual else r"|\btrio\.current_time\b")
            for node in ast.walk(function):
                if isinstance(node, ast.Assert) and re.search(clock, ast.unparse(node.test)):
                    found.append(f"{tree.name(path)}:{node.lineno}")
    assert found == []


@pytest.mark.parametrize(
    ("source", "check", "count"),
    [
        ('"""Doc."""\n' + "x = 1\n" * 400, too_long, 1),
        ('"""Doc."""\ndef f():\n' + "    x = 1\n" * 70, too_long, 1),
        ('"""Doc."""\ndef f():\n' + "    x = 1\n" * 69, too_long, 0),
        ('"""Doc."""\nclass PeerManager: ...\n', banned, 1),
        ('"""Doc."""\nclass Permission: ...\n', banned, 0),
        ("class Peers:\n    def run(self): ...\n", undocumented, 2),
        ('"""Doc."""\n@dataclass(frozen=True)\nclass Row:\n    def total(self): ...\n', undocumented, 0),
    ],
)
def test_the_checks_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, check, count: int) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(tree, "ROOT", tmp_path)
    path = tmp_path / "sample.py"
    path.write_text(source, encoding="utf-8")
    assert len(check(path)) == count
