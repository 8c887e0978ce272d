import pytest

from router.listeners.guard import cross_site, foreign_host, host_name, is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "LocalHost"])
def test_loopback_addresses_are_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "0.0.0.0", "::", "192.168.1.4", "localhost.evil.example", "127.0.0.1.nip.io", "7"]
)
def test_nothing_else_passes_for_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("authority", "name"),
    [
        ("localhost:8801", "localhost"),
        ("LOCALHOST", "localhost"),
        ("[::1]:8801", "::1"),
        ("[::1]", "::1"),
        ("::1", "::1"),
        ("127.0.0.1:9000", "127.0.0.1"),
    ],
)
def test_the_port_is_no_part_of_a_hosts_name(authority: str, name: str) -> None:
    assert host_name(authority) == name


@pytest.mark.parametrize("host", ["localhost:8801", "127.0.0.1", "[::1]:1", "localhost:9999", "box.lan:8801"])
def test_own_hosts_pass_whatever_port_a_tunnel_gave_them(host: str) -> None:
    assert foreign_host({"host": host}, frozenset({"box.lan"})) == ""


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8801", "localhost.evil.example", "192.168.1.4:8801", ""]
)
def test_a_foreign_host_is_refused(host: str) -> None:
    assert foreign_host({"host": host}) != ""


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "none"},
        {"sec-fetch-site": "same-origin", "origin": "http://localhost:8801"},
        {"origin": "HTTP://LOCALHOST:8801"},
        {"origin": "https://localhost:8801"},
    ],
)
def test_programs_and_the_own_page_pass(headers: dict[str, str]) -> None:
    assert cross_site({"host": "localhost:8801"} | headers) == ""


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "Cross-Site"},
        {"origin": "null"},
        {"origin": "http://evil.example"},
        {"origin": "http://localhost:3000"},
        {"origin": "file://localhost:8801"},
        {"origin": "localhost:8801"},
        {"sec-fetch-site": "same-origin", "origin": "http://evil.example"},
    ],
)
def test_another_sites_page_is_refused(headers: dict[str, str]) -> None:
    assert cross_site({"host": "localhost:8801"} | headers) != ""
