"""One line of JSON for each request: what it was, how it ended, how long it took; never what was asked or answered."""

from __future__ import annotations

import json
import logging
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .server_metrics import ServerMetrics

LOG = logging.getLogger("lensmith.access")
OTHER = "other"  # paths that are none of ours, so that a stranger cannot make figures without end


class AccessLog:
    """Counts and logs what passes."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics, paths: frozenset[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, name = time.monotonic(), 499, uuid.uuid4().hex  # 499: the client left before an answer
        path = scope["path"] if scope["path"] in self.paths else OTHER

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", name.encode())]}
            await send(message)

        try:
            await self.app(scope, receive, send_on)
        finally:
            self.metrics.requests.labels(path, str(status)).inc()
            ms = round(1000 * (time.monotonic() - started), 1)
            LOG.info(json.dumps({"id": name, "method": scope["method"], "path": path, "status": status, "ms": ms}))
