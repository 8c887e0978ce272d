"""llama.cpp's `/slots`: the load of a server whose metrics are switched off."""

import msgspec

from fednode.health.metrics import Scraped


class _Slot(msgspec.Struct):
    is_processing: bool


_SLOTS = msgspec.json.Decoder(list[_Slot])


def read_slots(body: bytes) -> Scraped:
    """Return how many slots work now; all else is unknown. Never raises: another shape tells nothing."""
    try:
        slots = _SLOTS.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Scraped()
    return Scraped(engines=1, running=sum(slot.is_processing for slot in slots))
