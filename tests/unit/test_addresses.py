"""Addresses of clients: one key for each client, whatever the notation."""

from ipaddress import ip_network

import pytest

from mlapi.domain.addresses import is_in_any, is_loopback, parse_address, rate_limit_key


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:0:1::7", "2001:db8:0:1::/64"),
        ("2001:0DB8:0000:0001:ffff::", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
        ("", ""),
        ("1" * 100, "1" * 100),
    ],
)
def test_address_in_any_notation_has_the_same_key(text: str, key: str) -> None:
    assert rate_limit_key(text) == key


@pytest.mark.parametrize("text", ["", "localhost", "192.0.2.256", "192.0.2.1:80", "[::1]", "0" * 65])
def test_other_text_is_not_an_address(text: str) -> None:
    assert parse_address(text) is None
    assert not is_loopback(text)
    assert not is_in_any(text, [ip_network("0.0.0.0/0"), ip_network("::/0")])


def test_unix_stands_for_unix_sockets_only() -> None:
    assert is_in_any("unix", [ip_network("192.0.2.0/24"), "unix"])
    assert is_in_any("192.0.2.7", ["unix", ip_network("192.0.2.0/24")])
    assert not is_in_any("unix", [ip_network("0.0.0.0/0")])
    assert not is_in_any("192.0.2.7", ["unix"])


def test_mapped_address_is_converted_to_ipv4() -> None:
    assert is_loopback("::ffff:127.0.0.1")
    assert is_in_any("::ffff:192.0.2.7", [ip_network("192.0.2.0/24")])
