"""Where webhooks may go: no spelling of an address that is not public gets past the rule."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from octonode.errors import ConfigError, OctonodeError
from octonode.tasks.webhook_rule import WebhookRule, is_public

RULE = WebhookRule()
PRIVATE = [
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/29"),
    *("192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4"),
    *("240.0.0.0/4", "255.255.255.255/32"),
]
PRIVATE_6 = [
    *("::/128", "::1/128", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8", "2001:db8::/32", "2001::/32"),
    *("64:ff9b:1::/48", "100::/64", "::/96"),
]


def _in(networks: list[str]) -> st.SearchStrategy[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    return st.sampled_from([ipaddress.ip_network(each) for each in networks]).flatmap(
        lambda network: st.integers(0, network.num_addresses - 1).map(lambda at: network[at])
    )


HIDDEN = _in(PRIVATE)
HIDDEN_6 = _in(PRIVATE_6)


def _code(url: str, rule: WebhookRule = RULE) -> str:
    with pytest.raises(OctonodeError) as caught:
        rule.target(url)
    return caught.value.code


@given(HIDDEN)
def test_no_ipv4_address_that_is_not_public_passes_in_any_wrapping(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    mapped = ipaddress.IPv6Address((0xFFFF << 32) | number)
    nat64 = ipaddress.IPv6Address((0x64FF9B << 96) | number)
    six_to_four = ipaddress.IPv6Address((0x2002 << 112) | (number << 80) | 1)
    compatible = ipaddress.IPv6Address(number)
    for each in (address, mapped, nat64, six_to_four, compatible):
        assert not is_public(each), each
        assert _code(f"https://{f'[{each}]' if each.version == 6 else each}/hook") in ("FORBIDDEN", "BAD_REQUEST")
        with pytest.raises(OctonodeError) as caught:
            RULE.choose(RULE.target("https://example.org/"), [str(each)])
        assert caught.value.code == "FORBIDDEN"


@given(HIDDEN)
def test_odd_spellings_that_resolvers_understand_are_refused(address: ipaddress.IPv4Address) -> None:
    parts, number = list(address.packed), int(address)
    spellings = [
        str(number),
        hex(number),
        ".".join(hex(part) for part in parts),
        ".".join(f"0{part:o}" for part in parts),
        f"{parts[0]}.{int.from_bytes(address.packed[1:])}",
        f"{parts[0]}.{parts[1]}.{int.from_bytes(address.packed[2:])}",
        f"{address}.",
    ]
    for each in spellings:
        assert socket.inet_aton(each.rstrip(".")) == address.packed  # it does mean that address to a resolver
        assert _code(f"http://{each}/") == "BAD_REQUEST"


@given(HIDDEN_6)
def test_no_ipv6_address_that_is_not_public_passes(address: ipaddress.IPv6Address) -> None:
    assert not is_public(address)
    assert _code(f"https://[{address}]/") == "FORBIDDEN"
    assert _code(f"https://[{address}%25eth0]/") == "BAD_REQUEST"


@given(st.ip_addresses())
@example(ipaddress.ip_address("8.8.8.8"))
@example(ipaddress.ip_address("2606:4700:4700::1111"))
@example(ipaddress.ip_address("64:ff9b::808:808"))
def test_what_passes_is_global_and_is_what_is_connected_to(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    target = RULE.target("https://example.org/")
    try:
        chosen = RULE.choose(target, [str(address)])
    except OctonodeError:
        assert not is_public(address)
        return
    assert chosen == str(address)
    assert is_public(address)
    assert not address.is_multicast
    assert not address.is_loopback


def test_of_several_addresses_the_first_public_one_is_taken() -> None:
    target = RULE.target("https://example.org:8443/a/b?c=d")
    assert (target.host, target.port, target.path, target.secure) == ("example.org", 8443, "/a/b?c=d", True)
    assert RULE.choose(target, ["127.0.0.1", "fe80::1%eth0", "8.8.4.4", "8.8.8.8"]) == "8.8.4.4"
    with pytest.raises(OctonodeError, match="no address"):
        RULE.choose(target, [])


def test_what_the_settings_allow_passes() -> None:
    rule = WebhookRule(("hooks.internal", "10.1.0.0/16", "127.0.0.1", "fd00::/8"))
    assert rule.choose(rule.target("http://Hooks.Internal/x"), ["192.168.1.1"]) == "192.168.1.1"
    assert rule.choose(rule.target("http://any.example/x"), ["10.2.0.1", "10.1.2.3"]) == "10.1.2.3"
    assert rule.target("http://127.0.0.1:9000/x").port == 9000
    assert rule.target("http://[::ffff:127.0.0.1]:9000/x").host == "::ffff:127.0.0.1"
    assert rule.target("http://[fd00::5]/").path == "/"
    assert _code("http://127.0.0.2/", rule) == "FORBIDDEN"
    with pytest.raises(OctonodeError):
        rule.choose(rule.target("http://other.internal/x"), ["192.168.1.1"])


@pytest.mark.parametrize("entry", ["10.1.0.1/16", "a/b", "not a host", "0x7f.1", "-x", ""])
def test_settings_that_are_neither_host_nor_network_are_an_error(entry: str) -> None:
    with pytest.raises(ConfigError):
        WebhookRule((entry,))


@pytest.mark.parametrize(
    "url",
    [
        *("", "ftp://example.org/", "file:///etc/passwd", "//example.org/", "example.org", "javascript:alert(1)"),
        *(
            "https://",
            "https:///x",
            "https://user@example.org/",
            "https://user:pw@example.org/",
            "https://@example.org/",
        ),
        *("https://example.org/#x", "https://example.org:0/", "https://example.org:99999/", "https://example.org:x/"),
        *(
            "https://exa mple.org/",
            "https://example.org\\@127.0.0.1/",
            "https://example.org/\r\nHost: x",
            "https://ex\n/",
        ),
        *("https://bücher.example/", "https://[::1/", "https://[127.0.0.1]/", "https://-a.example/", "https://a..b/"),
        f"https://example.org/{'x' * 2048}",
    ],
)
def test_what_is_no_webhook_is_a_bad_request(url: str) -> None:
    assert _code(url) == "BAD_REQUEST"


@given(st.text(max_size=60))
def test_any_text_is_a_target_or_a_typed_error(text: str) -> None:
    for url in (text, f"https://{text}", f"http://{text}/x"):
        try:
            target = RULE.target(url)
        except OctonodeError:
            continue
        assert target.path.startswith("/")
        assert 0 < target.port < 65536
        assert target.host
