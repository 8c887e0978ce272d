"""Banners for the operator: what is wrong now, in words, until it is not wrong any more."""


class Notes:
    """At most one banner per key; the keys are ours, so their number is small."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def put(self, key: str, text: str) -> None:
        """Put up a banner, or take it down when `text` is empty."""
        if text:
            self._texts[key] = text
        else:
            self._texts.pop(key, None)

    def texts(self) -> tuple[str, ...]:
        """Return the banners, oldest first."""
        return tuple(self._texts.values())
