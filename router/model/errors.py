"""The error tree of `router`: an error names its culprit and what the client may do next."""

from router.model.events import Culprit


class RouterError(Exception):
    """Base. `str(error)` is one clear line."""


class RequestError(RouterError):
    """A request that gets an error answer: status, type and code in OpenAI's words, and who is at fault."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
        culprit: Culprit = Culprit.CLIENT,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.culprit = culprit
