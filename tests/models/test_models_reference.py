"""What people type to name a model, and which version they get."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octonode.errors import NotFound
from octonode.identity import NodeKey
from octonode.ipfs.cid import dag_cbor_cid, dag_pb_cid, raw_cid
from octonode.models.reference import (
    BadReference,
    BareName,
    FileReference,
    HubReference,
    ManifestReference,
    NameReference,
    RootReference,
    choose_publisher,
    parse,
    publisher_of,
)
from octonode.models.version import Version, VersionRange, best

A, B = NodeKey(bytes(32)).peer_id, NodeKey(b"b" * 32).peer_id


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{A}/smollm2", NameReference(A, "smollm2")),
        ("alice/smollm2@^1.2.0", NameReference("alice", "smollm2", VersionRange("^1.2.0"))),
        ("smollm2-135m.q4_1", BareName("smollm2-135m.q4_1")),
        ("smollm2@1.0.0", BareName("smollm2", VersionRange("1.0.0"))),
        (f"cid:{dag_pb_cid(b'')}", RootReference(dag_pb_cid(b""))),
        (str(raw_cid(b"")), RootReference(raw_cid(b""))),
        (f"cid:{dag_cbor_cid(b'x')}", ManifestReference(dag_cbor_cid(b"x"))),
        (str(dag_cbor_cid(b"x")), ManifestReference(dag_cbor_cid(b"x"))),
        ("QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn", RootReference(dag_pb_cid(bytes.fromhex("0a020801")))),
        ("file:/models/a b.gguf", FileReference(PurePosixPath("/models/a b.gguf"))),
        ("file:///models/a.gguf", FileReference(PurePosixPath("/models/a.gguf"))),
        ("hf:org/repo", HubReference("org/repo")),
        ("hf:org/repo/q4/model.gguf", HubReference("org/repo", "q4/model.gguf")),
    ],
)
def test_forms(text: str, expected: object) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "cid:",
        "cid:bafynope",
        "file:relative",
        "hf:only",
        "a/b/c",
        "Upper",
        "x@newest",
        "x@",
        "-x",
        "a b",
        "x" * 2000,
    ],
)
def test_bad_references_say_what_is_possible(text: str) -> None:
    if text == "x@":
        assert parse(text) == BareName("x")
        return
    with pytest.raises(BadReference) as caught:
        parse(text)
    assert caught.value.message


@given(st.text(max_size=100) | st.from_regex(r"(cid:|hf:|file:)?[a-z0-9/@^~>=.*-]{0,40}", fullmatch=True))
def test_any_text_is_a_reference_or_a_bad_reference(text: str) -> None:
    try:
        parse(text)
    except BadReference as error:
        assert error.code == "BAD_REQUEST"  # noqa: PT017


def test_publishers_by_alias_and_by_key() -> None:
    assert publisher_of(NameReference("alice", "m"), {"alice": A}) == A
    assert publisher_of(NameReference(B, "m"), {"alice": A}) == B
    with pytest.raises(NotFound, match="trust"):
        publisher_of(NameReference("bob", "m"), {"alice": A})


def test_bare_names_among_trusted_publishers() -> None:
    assert choose_publisher("m", {A: "alice"}) == A
    with pytest.raises(NotFound):
        choose_publisher("m", {})
    with pytest.raises(BadReference) as caught:
        choose_publisher("m", {A: "alice", B: ""})
    assert f"{A}/m (alice)" in caught.value.message
    assert f"{B}/m" in caught.value.message


ORDER = [
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.beta",
    "1.0.0-beta",
    "1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0.0-rc.1",
    "1.0.0",
]


def test_the_order_of_semver_org() -> None:
    assert sorted(ORDER, key=Version.parse) == ORDER
    assert Version.parse("1.10.0") > Version.parse("1.9.9")


VERSIONS = ["0.2.1", "0.2.3", "0.3.0", "1.0.0", "1.2.0", "1.2.5", "1.3.0", "2.0.0-rc.1", "2.0.0"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("*", "2.0.0"),
        ("", "2.0.0"),
        ("1.2.0", "1.2.0"),
        ("^1.0.0", "1.3.0"),
        ("^0.2.1", "0.2.3"),
        ("^0.2.9", None),
        ("~1.2.0", "1.2.5"),
        (">=1.3.0", "2.0.0"),
        (">=2.0.1", None),
        ("2.0.0-rc.1", "2.0.0-rc.1"),
        ("3.0.0", None),
        ("latest", "2.0.0"),
        ("x", "2.0.0"),
        ("1", "1.3.0"),
        ("1.x", "1.3.0"),
        ("1.2", "1.2.5"),
        ("1.2.*", "1.2.5"),
        ("^1.2", "1.3.0"),
        ("^0", "0.3.0"),
        ("^0.2", "0.2.3"),
        ("^0.0", None),
        ("^0.0.3", None),
        ("~1.2", "1.2.5"),
        ("~1", "1.3.0"),
        (">1.2", "2.0.0"),
        (">1.2.0 <1.3", "1.2.5"),
        (">=1.2 <2", "1.3.0"),
        (">= 1.2, < 1.3", "1.2.5"),
        ("<=1.2", "1.2.5"),
        ("<=1.2.0", "1.2.0"),
        ("<1", "0.3.0"),
        ("=1.2.5", "1.2.5"),
        ("^2.0.0-rc.1", "2.0.0"),
        ("<2.0.0 >=2.0.0-alpha", "2.0.0-rc.1"),
        (">1 <1", None),
    ],
)
def test_ranges(text: str, expected: str | None) -> None:
    assert best(VersionRange.parse(text), VERSIONS) == expected


def test_what_is_to_be_avoided_is_taken_only_where_it_is_all_there_is() -> None:
    assert best(VersionRange.parse("^1.2"), VERSIONS, avoid={"1.3.0"}) == "1.2.5"
    assert best(VersionRange.parse("1.3.0"), VERSIONS, avoid={"1.3.0"}) == "1.3.0"
    assert best(VersionRange.parse("latest"), ["1.0.0", "1.1.0"], avoid={"1.0.0", "1.1.0"}) == "1.1.0"
    assert best(VersionRange.parse("latest"), ["1.0.0", "2.0.0-rc.1"], avoid={"1.0.0"}) == "2.0.0-rc.1"


def test_exact_is_one_version() -> None:
    exact = {text: VersionRange.parse(text).exact for text in ("1.2.3", "=1.2.3", "1.2", "^1.2.3", "*", "latest")}
    assert exact == {"1.2.3": True, "=1.2.3": True, "1.2": False, "^1.2.3": False, "*": False, "latest": False}


numbers = st.integers(0, 12)
releases = st.builds(lambda a, b, c: f"{a}.{b}.{c}", numbers, numbers, numbers)
versions = st.builds(lambda release, pre: release + pre, releases, st.sampled_from(["", "", "", "-rc.1", "-alpha"]))
partials = st.one_of(
    versions,
    st.builds(lambda a: f"{a}", numbers),
    st.builds(lambda a, b: f"{a}.{b}", numbers, numbers),
    st.builds(lambda a: f"{a}.x", numbers),
)
operators = st.sampled_from(["", "=", "^", "~", ">=", "<=", ">", "<"])
ranges = st.lists(st.builds(lambda o, p: o + p, operators, partials), min_size=1, max_size=3).map(" ".join)


@given(ranges, versions)
def test_a_range_of_several_is_what_each_of_them_allows(text: str, version: str) -> None:
    """But for pre-releases, which one of them may name for all."""
    parsed = Version.parse(version)
    whole = VersionRange.parse(text).allows(parsed)
    each = [VersionRange.parse(part).allows(parsed) for part in text.split()]
    if not parsed.pre:
        assert whole == all(each)
    elif all(each):
        assert whole


@given(operators, versions, versions)
def test_operators_are_the_order_they_are_written_as(operator: str, bound: str, version: str) -> None:
    low, high = Version.parse(bound), Version.parse(version)
    allowed = VersionRange.parse(operator + bound).allows(high)
    if high.pre and not (low.pre and bound.partition("-")[0] == version.partition("-")[0]):
        assert not allowed
        return
    same_major, same_minor = high.major == low.major, (high.major, high.minor) == (low.major, low.minor)
    unbroken = low.major > 0 or (same_minor and (low.minor > 0 or high.patch == low.patch))
    expected = {
        "": high == low, "=": high == low, ">=": high >= low, "<=": high <= low, ">": high > low, "<": high < low,
        "~": high >= low and same_minor,
        "^": high >= low and same_major and unbroken,
    }[operator]  # fmt: skip
    assert allowed == expected


@given(st.text(max_size=140) | st.from_regex(r"[0-9x*.^~<>=, |a-z-]{0,140}", fullmatch=True), versions)
def test_any_text_is_a_range_or_a_value_error(text: str, version: str) -> None:
    try:
        parsed = VersionRange.parse(text)
    except ValueError:
        return
    assert parsed.allows(Version.parse(version)) in (True, False)
    assert VersionRange.parse(parsed.text) == parsed


def test_any_takes_a_pre_release_only_when_there_is_nothing_else() -> None:
    assert best(VersionRange("*"), ["1.0.0-rc.1", "0.9.0"]) == "0.9.0"
    assert best(VersionRange("*"), ["1.0.0-rc.1"]) == "1.0.0-rc.1"


@pytest.mark.parametrize(
    "text",
    ["^", "~", "1.2.3.4", "1.2.3-", "x.1", "1.x.3", "<*", ">x", "1.2-rc", "1.2.3-01", "^^1", ">=1<2", ">=1,", "1 ,",
     "v1", "01", "1..2", "latest 1", "1 latest", "1 || 2", "1.0.0 - 2.0.0", " ".join(["1"] * 9), "1" * 200],
)  # fmt: skip
def test_bad_ranges(text: str) -> None:
    with pytest.raises(ValueError):
        VersionRange.parse(text)
