"""Requests that are not answered: a status of HTTP and a sentence, which each API puts in words of its own."""

from __future__ import annotations

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


def as_refusal(error: BaseException) -> Refusal:
    """A failure of the runtime: what a client did is 400, a defect 500 without its inner words."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, InputError):
        return Refusal(400, str(error), code="context_length_exceeded" if isinstance(error, ContextFull) else None)
    if isinstance(error, MemoryError):
        return Refusal(503, "the memory of this machine is full; ask for a shorter answer or smaller images")
    return Refusal(500, f"the server failed ({type(error).__name__}); its log has the traceback", code="internal_error")
