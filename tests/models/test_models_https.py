"""Fetching from trustless gateways and from a Kubo node: stand-ins of ours, right ones and every kind of wrong one."""

from __future__ import annotations

import datetime
import ipaddress
import random
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from octonode.errors import ConfigError, NotFound, OctonodeError, RemoteProtocolError, Unreachable, VerificationFailed
from octonode.ipfs import outside
from octonode.ipfs.cid import RAW, Cid
from octonode.ipfs.gateway_client import Stalled
from octonode.ipfs.layout import Leaf
from octonode.ipfs.outside import OutsideTimeouts
from octonode.ipfs.unixfs import import_file
from octonode.models.fetch import FetchLimits, fetch
from octonode.models.library import Library
from octonode.models.sources.https import HttpsSource, gateway_base
from octonode.models.sources.kubo import KuboSource
from octonode.testing.kubo_rpc import KuboStandIn
from octonode.testing.trustless import Cars, Fault, TrustlessGateway

MIB = 1024 * 1024
FAST = OutsideTimeouts(connect_seconds=1, head_seconds=0.5, stall_seconds=0.5, bytes_per_second_min=10**9)
LIMITS = FetchLimits(retry_seconds=0.05, give_up_seconds=60.0, nobody_seconds=0.5, failures_max=2)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(random.Random(8).randbytes(9 * MIB + 5))
    return path


def leaves_of(path: Path) -> tuple[Cid, list[Leaf]]:
    result = import_file(path)
    size = path.stat().st_size
    leaves = [
        Leaf(number, 0, number * MIB, min(MIB, size - number * MIB), digest)
        for number, digest in enumerate(result.leaves)
    ]
    return result.root, leaves


async def taken(source: HttpsSource | KuboSource, path: Path, first: int = 0, last: int = 99) -> bytes:
    """The bytes of some leaves through one lane, put together as they came."""
    root, leaves = leaves_of(path)
    lane, came = source.open(), []

    def arrived(found: list[tuple[Leaf, memoryview]]) -> None:
        came.extend((leaf.number, bytes(data)) for leaf, data in found)

    try:
        await lane.leaves(root, leaves[first : last + 1], arrived)
    finally:
        lane.close()
    assert [number for number, _ in came] == [leaf.number for leaf in leaves[first : last + 1]]
    return b"".join(data for _, data in came)


@pytest.mark.parametrize("suffix", ["", "/", "/ipfs", "/ipfs/"])
async def test_run_is_one_car_from_a_gateway_that_gives_them(file: Path, suffix: str) -> None:
    async with TrustlessGateway(file) as gateway:
        source = HttpsSource(gateway.url + suffix)
        assert source.name == gateway.url
        assert await taken(source, file, 2, 7) == file.read_bytes()[2 * MIB : 8 * MIB]
        assert await taken(source, file, 8, 9) == file.read_bytes()[8 * MIB :]
        root = leaves_of(file)[0]
        asked = [
            f"/ipfs/{root}?format=car&dag-scope=entity&entity-bytes={span}"
            for span in ("2097152:8388607", "8388608:9437188")
        ]
        assert gateway.targets == asked


@pytest.mark.parametrize("cars", ["no", "page", "whole", "swapped", "short", "garbage", "endless"])
async def test_gateway_that_gives_no_right_car_is_asked_block_by_block(file: Path, cars: Cars) -> None:
    """Nothing is lost, and the next run does not try again."""
    async with TrustlessGateway(file, cars=cars) as gateway:
        source = HttpsSource(gateway.url)
        assert await taken(source, file, 1, 5) == file.read_bytes()[MIB : 6 * MIB]
        assert await taken(source, file, 6, 9) == file.read_bytes()[6 * MIB :]
        assert sum("format=car" in target for target in gateway.targets) == 1


async def test_leaf_alone_is_a_raw_block(file: Path) -> None:
    async with TrustlessGateway(file) as gateway:
        assert await taken(HttpsSource(gateway.url), file, 3, 3) == file.read_bytes()[3 * MIB : 4 * MIB]
        assert [target.partition("?")[2] for target in gateway.targets] == ["format=raw"]


@pytest.mark.parametrize("cars", ["right", "once"])
async def test_repeated_leaves_come_though_the_gateway_sends_them_once(tmp_path: Path, cars: Cars) -> None:
    path = tmp_path / "zeros"
    path.write_bytes(bytes(3 * MIB) + random.Random(1).randbytes(MIB) + bytes(2 * MIB))
    async with TrustlessGateway(path, cars=cars) as gateway:
        assert await taken(HttpsSource(gateway.url), path) == path.read_bytes()
        assert len(gateway.targets) == 1


async def test_one_connection_a_lane_is_kept_for_all_its_blocks(file: Path) -> None:
    async with TrustlessGateway(file, cars="no") as gateway:
        lane = HttpsSource(gateway.url).open()
        root, leaves = leaves_of(file)
        try:
            await lane.block(root)
            for first in range(0, 9, 3):
                await lane.leaves(root, leaves[first : first + 3], lambda _: None)
        finally:
            lane.close()
        assert gateway.service.connections == 1


RAW_FAULTS: list[tuple[Fault, type[OctonodeError], str]] = [
    ("long", RemoteProtocolError, "more than the"),
    ("short", Unreachable, "http://127"),
    ("drip", Stalled, "too slow"),
    ("silent", Stalled, "does not answer"),
    ("gzip", RemoteProtocolError, "compresses"),
    ("absent", NotFound, "does not have"),
    ("busy", Unreachable, "answered 429"),
]


@pytest.mark.parametrize(("fault", "kind", "words"), RAW_FAULTS)
async def test_faults_of_raw_blocks_have_names(file: Path, fault: Fault, kind: type[OctonodeError], words: str) -> None:
    async with TrustlessGateway(file, cars="no", fault=fault) as gateway:
        with pytest.raises(kind, match=words) as caught:
            await taken(HttpsSource(gateway.url, FAST), file, 0, 0)
        assert gateway.url in caught.value.message
        if fault == "busy":
            assert caught.value.retry_after_seconds == 7.0


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("http://other.example/x", "to another host, other.example"),
        ("https://bafy.ipfs.127.0.0.1/", "a subdomain of its own"),
        ("/ipfs/elsewhere", "to /ipfs/elsewhere"),
    ],
)
async def test_redirect_is_refused_and_says_whither(file: Path, location: str, words: str) -> None:
    async with TrustlessGateway(file, redirect=location) as gateway:
        with pytest.raises(RemoteProtocolError, match=words) as caught:
            await taken(HttpsSource(gateway.url), file)
        assert gateway.url in caught.value.message
        assert len(gateway.targets) == 1


@pytest.mark.parametrize("url", ["", "ipfs.example", "ftp://ipfs.example", "https://", "https://a.example?x=1"])
def test_url_that_is_no_gateway(url: str) -> None:
    with pytest.raises(ConfigError, match=r"https://ipfs\.example"):
        gateway_base(url)


@pytest.mark.parametrize("cars", ["right", "no", "swapped"])
async def test_model_comes_whole_from_a_gateway(file: Path, make_library: Callable[..., Library], cars: Cars) -> None:
    library = make_library("a")
    root = import_file(file).root
    async with TrustlessGateway(file, cars=cars) as gateway:
        report = await fetch(root, library.store, sources=[HttpsSource(gateway.url)], limits=LIMITS)
    assert report.bytes_by_source == {gateway.url: file.stat().st_size}
    assert library.store.require(root).paths[0].read_bytes() == file.read_bytes()


BAD: list[dict[str, str]] = [
    {"fault": "lie"},
    {"fault": "lie", "cars": "no"},
    {"fault": "long", "cars": "no"},
    {"fault": "short", "cars": "no"},
    {"fault": "drip", "cars": "no"},
    {"fault": "silent"},
    {"fault": "gzip", "cars": "page"},
    {"redirect": "http://other.example/"},
]


@pytest.mark.parametrize("bad", BAD, ids=lambda each: "-".join(each.values()).replace("/", ""))
async def test_bad_gateway_beside_a_good_one_does_no_harm(
    file: Path, make_library: Callable[..., Library], bad: dict[str, str]
) -> None:
    library = make_library("a")
    root = import_file(file).root
    async with TrustlessGateway(file) as good, TrustlessGateway(file, **bad) as wrong:  # type: ignore[arg-type]
        sources = [HttpsSource(wrong.url, FAST), HttpsSource(good.url)]
        report = await fetch(root, library.store, sources=sources, limits=LIMITS)
    assert library.store.require(root).paths[0].read_bytes() == file.read_bytes()
    if bad.get("fault") in ("lie", "long", "gzip") or "redirect" in bad:
        assert wrong.url in report.banned


async def test_gateways_that_all_lie_are_an_error(file: Path, make_library: Callable[..., Library]) -> None:
    library = make_library("a")
    async with TrustlessGateway(file, fault="lie") as gateway:
        with pytest.raises(VerificationFailed, match="not that block"):
            await fetch(import_file(file).root, library.store, sources=[HttpsSource(gateway.url)], limits=LIMITS)


async def test_model_comes_whole_from_kubo(file: Path, make_library: Callable[..., Library]) -> None:
    library = make_library("a")
    async with KuboStandIn() as kubo:
        result = import_file(file)
        kubo.blocks |= {cid.digest: block for cid, block in result.nodes}
        data = file.read_bytes()
        kubo.blocks |= {digest: data[n * MIB : (n + 1) * MIB] for n, digest in enumerate(result.leaves)}
        source = KuboSource(kubo.url)
        assert (source.label, source.rank) == (f"kubo:{kubo.url}", 2)
        report = await fetch(result.root, library.store, sources=[source], limits=LIMITS)
        assert report.bytes_by_source == {source.name: len(data)}
        assert library.store.require(result.root).paths[0].read_bytes() == data


async def test_kubo_that_lies_is_banned(file: Path, make_library: Callable[..., Library]) -> None:
    library = make_library("a")
    result = import_file(file)
    async with KuboStandIn() as kubo, TrustlessGateway(file) as gateway:
        data = file.read_bytes()
        kubo.blocks |= {cid.digest: block for cid, block in result.nodes}
        kubo.blocks |= {digest: data[n * MIB : (n + 1) * MIB] for n, digest in enumerate(result.leaves)}
        kubo.lying = True
        sources = [KuboSource(kubo.url), HttpsSource(gateway.url)]
        report = await fetch(result.root, library.store, sources=sources, limits=LIMITS)
        assert f"kubo:{kubo.url}" in report.banned
        assert library.store.require(result.root).paths[0].read_bytes() == data


async def test_kubo_that_has_it_not_says_so(file: Path) -> None:
    async with KuboStandIn() as kubo:
        with pytest.raises(NotFound, match="could not find"):
            await taken(KuboSource(kubo.url), file)


async def test_lane_closes_at_once_in_the_middle_of_an_answer(file: Path) -> None:
    """As a fetch does that is cancelled: nothing is awaited after the cancel."""
    async with TrustlessGateway(file, cars="no", fault="drip") as gateway:
        lane = HttpsSource(gateway.url).open()
        with trio.move_on_after(0.3) as scope:
            try:
                await lane.block(Cid(RAW, import_file(file).leaves[0]))
            finally:
                lane.close()
        assert scope.cancelled_caught


def a_certificate(directory: Path) -> Path:
    """A certificate of its own for 127.0.0.1, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = directory / "certificate.pem"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(certificate.public_bytes(Encoding.PEM) + secret)
    return path


async def test_gateway_over_tls_and_one_that_proves_nothing(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = a_certificate(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    outside._tls.cache_clear()
    async with TrustlessGateway(file, tls=tls) as gateway:
        assert gateway.url.startswith("https://")
        with pytest.raises(Unreachable, match="certificate"):
            await taken(HttpsSource(gateway.url), file)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        outside._tls.cache_clear()
        assert await taken(HttpsSource(gateway.url), file) == file.read_bytes()
        slow = HttpsSource(gateway.url).open()
        gateway.cars, gateway.fault = "no", "drip"
        with trio.move_on_after(0.3):
            try:
                await slow.block(Cid(RAW, import_file(file).leaves[0]))
            finally:
                slow.close()
    outside._tls.cache_clear()
