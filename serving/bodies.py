"""Bodies of requests: bounded in bytes and in time, before anything reads them as JSON."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .answer_writer import as_json
from .apis.api_table import error_body
from .server_errors import Refusal


class BoundedBodies:
    """Reads each body whole and hands it on, or answers 413 and 408 itself."""

    def __init__(self, app: ASGIApp, most_bytes: int, seconds: float) -> None:
        self.app, self.most_bytes, self.seconds = app, most_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        try:
            body = await asyncio.wait_for(self._read(scope, receive), self.seconds)
        except TimeoutError:
            await refuse(
                scope, send, Refusal(408, f"the body did not come within {self.seconds:g} seconds; send it faster")
            )
        except Refusal as refusal:
            await refuse(scope, send, refusal)
        else:
            if body is not None:
                await self.app(scope, _once(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body; None where the client went away in the middle of it."""
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.most_bytes:
            raise self._too_large()
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self.most_bytes:
                raise self._too_large()
            if not message.get("more_body"):
                return bytes(body)

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the body has more than the limit of {self.most_bytes} bytes; send smaller images")


def _once(body: bytes, receive: Receive) -> Receive:
    """What receives the body, and after it what else comes."""
    given: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return given.pop() if given else await receive()

    return receive_again


async def refuse(scope: Scope, send: Send, refusal: Refusal) -> None:
    """Answer a request with a refusal, in the words of its API."""
    content = as_json(error_body(scope["path"], refusal))
    more = [(name.lower().encode(), value.encode()) for name, value in refusal.headers.items()]
    headers = [(b"content-type", b"application/json"), (b"connection", b"close"), *more]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
