"""A local engine as an upstream: the hot path. The body goes out as it is, the answer comes back as it is."""

from typing import Final
from urllib.parse import urlsplit

from router.upstreams.base import Call, Hearing, Order
from router.upstreams.http1 import Authority, EnginePool

_HTTPS_PORT: Final = 443
_HTTP_PORT: Final = 80


class EngineUpstream:
    """One engine. Of the client's headers nothing is sent; the engine's own key is added here and nowhere else."""

    __slots__ = ("_heads", "_pool")

    def __init__(self, url: str, *, api_key: str, connect_s: float) -> None:
        """`url` is the engine's root, without /v1; `api_key` is "" where it wants none."""
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        port = parts.port or (_HTTPS_PORT if tls else _HTTP_PORT)
        host = parts.hostname or ""
        self._pool = EnginePool(Authority(host, port, tls), connect_s=connect_s)
        name = f"[{host}]" if ":" in host else host
        auth = f"authorization: Bearer {api_key}\r\n" if api_key else ""
        self._heads = (
            f"POST {parts.path.rstrip('/')}",
            f" HTTP/1.1\r\nhost: {name}:{port}\r\ncontent-type: application/json\r\n{auth}",
        )

    def __repr__(self) -> str:
        return "EngineUpstream()"  # its head holds a key

    def open(self, order: Order, hearing: Hearing) -> Call:
        """Send the order."""
        before, after = self._heads
        head = (
            f"{before}{order.surface.value}{after}x-request-id: {order.request_id}\r\n"
            f"content-length: {len(order.body)}\r\n\r\n"
        )
        return self._pool.request(head.encode("latin-1") + order.body, hearing)

    async def close(self) -> None:
        """Close idle connections."""
        await self._pool.close()
