import pytest

from fednode.net.scrape import EngineDoor, ScrapeError, root_of


@pytest.mark.parametrize("url", ["http://box:8000", "http://box:8000/", "http://box:8000/v1", "http://box:8000/v1/"])
def test_the_root_of_an_engine_is_its_address_without_what_people_add(url: str) -> None:
    assert root_of(url) == "http://box:8000"


def test_a_path_before_v1_stays() -> None:
    assert root_of("http://box/engines/a/v1") == "http://box/engines/a"


async def test_a_door_that_was_never_opened_says_so() -> None:
    with pytest.raises(ScrapeError, match="closed"):
        await EngineDoor(timeout_s=1, bytes_max=1).get("http://127.0.0.1:9", "/")
