"""Failures as OpenAI's clients read them: an object with a message, a type and a code."""

from __future__ import annotations

from typing import Any

from ..server_errors import Refusal

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def openai_error(refusal: Refusal) -> dict[str, Any]:
    """The body of the response."""
    usual = "server_error" if refusal.status >= 500 else "invalid_request_error"
    kind = TYPES.get(refusal.status, usual)
    return {"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}}
