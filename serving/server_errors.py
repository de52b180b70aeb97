"""Failures as OpenAI's clients read them: a status, and an object with a message, a type and a code."""

from __future__ import annotations

from typing import Any

from ..targets.errors import ContextFull, InputError


class Refusal(Exception):
    """A request that is not answered, with its status of HTTP."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None, retry: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry = status, message, code, param, retry

    @property
    def headers(self) -> dict[str, str]:
        """Of the response."""
        return {} if self.retry is None else {"Retry-After": str(self.retry)}


TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def as_refusal(error: BaseException) -> Refusal:
    """A failure of the runtime: what a client did is 400, a defect 500 without its inner words."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, InputError):
        return Refusal(400, str(error), code="context_length_exceeded" if isinstance(error, ContextFull) else None)
    if isinstance(error, MemoryError):
        return Refusal(503, "the memory of this machine is full; ask for a shorter answer or smaller images")
    return Refusal(500, f"the server failed ({type(error).__name__}); its log has the traceback", code="internal_error")


def error_object(refusal: Refusal) -> dict[str, Any]:
    """The body of the response."""
    usual = "server_error" if refusal.status >= 500 else "invalid_request_error"
    kind = TYPES.get(refusal.status, usual)
    return {"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}}
