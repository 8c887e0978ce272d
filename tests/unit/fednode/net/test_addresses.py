import pytest

from fednode.model.errors import LinkError
from fednode.net import addresses


@pytest.mark.parametrize(
    "ip, everywhere, on_a_lan",
    [
        ("8.8.8.8", True, True),
        ("2600::1", True, True),
        ("127.0.0.1", False, True),
        ("::1", False, True),
        ("10.1.2.3", False, True),
        ("192.168.1.9", False, True),
        ("100.64.0.1", False, True),
        ("fd12::1", False, True),
        ("0.0.0.0", False, False),
        ("::", False, False),
        ("169.254.169.254", False, False),
        ("169.254.1.1", False, False),
        ("fe80::1", False, False),
        ("fe80::1%eth0", False, False),
        ("fd12::1%eth0", False, False),
        ("224.0.0.1", False, False),
        ("ff02::1", False, False),
        ("::ffff:127.0.0.1", False, False),
        ("::ffff:8.8.8.8", False, False),
        ("fd00:ec2::254", False, False),
        ("example", False, False),
    ],
)
def test_an_address_may_be_dialled_or_not(ip: str, everywhere: bool, on_a_lan: bool) -> None:
    for allow_private, may in ((False, everywhere), (True, on_a_lan)):
        if may:
            assert addresses.check_ip(ip, allow_private=allow_private) == ip
        else:
            with pytest.raises(LinkError):
                addresses.check_ip(ip, allow_private=allow_private)


async def test_a_name_is_checked_after_it_was_resolved() -> None:
    with pytest.raises(LinkError, match="allow_private"):
        await addresses.resolve("localhost", allow_private=False)
    assert await addresses.resolve("localhost", allow_private=True) in {"127.0.0.1", "::1"}
    assert await addresses.resolve("8.8.8.8", allow_private=False) == "8.8.8.8"


@pytest.mark.parametrize("text", ["", "host", "host:", ":80", "host:x", "host:70000", "host:-1"])
def test_what_is_no_address_is_said(text: str) -> None:
    with pytest.raises(LinkError, match="host:port"):
        addresses.split(text)


def test_host_and_port_come_apart_and_together() -> None:
    assert addresses.split("[2001:db8::7]:8804") == ("2001:db8::7", 8804)
    assert addresses.split("box.example:1") == ("box.example", 1)
    assert addresses.hostport("2001:db8::7", 8804) == "[2001:db8::7]:8804"
    assert addresses.hostport("1.2.3.4", 5) == "1.2.3.4:5"
