"""The server as an application of Ray Serve: replicas of it, and in front of them what finds the one for a request.

    serve run lensmith.serving.ray_app:build_app bundles=build/qwen3_vl-int4 replicas=2

Each replica is the whole application over models of its own. A request goes to the replica that holds the states of
what it begins with, as long as that one has a place; the same beginning finds the same replica without any table.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..runtimes.generation.loading import load
from ..runtimes.generation.model import Model
from ..targets.errors import InputError
from .admission import RETRY_SECONDS
from .bodies import BoundedBodies, refuse
from .prefix_key import prefix_key
from .routes import make_app
from .server_errors import Refusal
from .server_options import ServerOptions

TRIES = 3  # of a request whose replica dies before it said a word
LOADING = ("conversations", "threads", "context", "device", "prefix_bytes", "cache_folder", "cache_bytes")  # of `load`
REPLICA_HEADER = b"x-lensmith-replica"  # which one answered
PASSED_ON = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers")


class RayArguments(BaseModel):
    """What `build_app` takes: bundles, replicas, what each replica needs of its machine, and limits of the server.

    num_cpus and num_gpus are what Ray sets aside for a replica. The limits are those of ServerOptions.
    """

    model_config = ConfigDict(extra="forbid")

    bundles: str | list[str]
    replicas: int = Field(default=2, ge=1)
    num_cpus: float = Field(default=1.0, ge=0)
    num_gpus: float = Field(default=0.0, ge=0)
    conversations: int = Field(default=4, ge=1, le=1024)
    threads: int | None = Field(default=None, ge=1)
    context: int | None = Field(default=None, ge=1)
    device: str | None = None
    prefix_bytes: int | None = Field(default=None, ge=0)
    cache_folder: str | None = None
    cache_bytes: int | None = Field(default=None, ge=1)
    api_keys: list[str] = Field(default_factory=list)
    queue: int = Field(default=64, ge=0)
    deadline: float = Field(default=600.0, gt=0)
    most_new_tokens: int = Field(default=4096, ge=1)
    body_bytes: int = Field(default=64 << 20, ge=1)
    image_hosts: list[str] = Field(default_factory=list)

    def options(self) -> ServerOptions:
        """Of each replica, which keeps no conversations for ids of responses: another one might be asked for them."""
        return ServerOptions(
            api_keys=tuple(self.api_keys), queue=self.queue, deadline=self.deadline, body_bytes=self.body_bytes,
            most_new_tokens=self.most_new_tokens, image_hosts=tuple(self.image_hosts), kept_bytes=0,
        )  # fmt: skip


class PrefixRouter(RequestRouter):  # type: ignore[misc]
    """Ranks replicas by a hash of theirs and of the request's beginning; Ray takes the first that has a place."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """See RequestRouter."""
        key = str(pending_request.args[0]) if pending_request is not None and pending_request.args else ""
        if not key:
            return [candidate_replicas]
        return [[replica] for replica in sorted(candidate_replicas, key=lambda each: rank(key, each.replica_id))]


def rank(key: str, replica: ReplicaID) -> bytes:
    """Where a replica stands for a key: each key has an order of its own, which others' coming and going leaves."""
    return hashlib.sha256(f"{key} {replica.unique_id}".encode()).digest()


class ReplicaOfServer:
    """The application over models of its own, asked through Ray instead of a socket."""

    def __init__(self, arguments: RayArguments) -> None:
        paths = [arguments.bundles] if isinstance(arguments.bundles, str) else arguments.bundles
        loading = {name: value for name in LOADING if (value := getattr(arguments, name)) is not None}
        models: dict[str, Model] = {}
        for path in paths:
            model = load(path, **loading)
            if not isinstance(model, Model):
                raise InputError(f"{path} has no decoder and answers nothing; serve bundles that do")
            models[Path(path).resolve().name] = model
        self.app = make_app(models, arguments.options())
        self.named = (REPLICA_HEADER, serve.get_replica_context().replica_id.unique_id.encode())

    async def answer(self, key: str, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        """The messages of ASGI that answer a request; `key` was for the router."""
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        given: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        gone = asyncio.Event()

        async def receive() -> Message:
            if given:
                return given.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        task = asyncio.create_task(self.app(scope, receive, messages.put))
        task.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            while (message := await messages.get()) is not None:
                start = message["type"] == "http.response.start"
                yield {**message, "headers": [*message["headers"], self.named]} if start else message
        finally:
            gone.set()


class AsAsgi(Response):
    """What Ray takes for a response, and calls as an application of ASGI."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__()
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


class Front:
    """Takes requests from Ray's proxy, and hands each to the replica that is best for it."""

    def __init__(self, arguments: RayArguments, replicas: DeploymentHandle) -> None:
        self.replicas = replicas.options(stream=True)
        self.bounded = BoundedBodies(self._forward, arguments.body_bytes, arguments.options().body_seconds)

    async def __call__(self, _: HttpRequest) -> Response:
        """The response to a request, which reads the body itself."""
        return AsAsgi(self.bounded)

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/metrics":
            await refuse(scope, send, Refusal(404, "figures of an application of Ray are Ray's own; see its dashboard"))
            return
        body = b"" if scope["method"] in ("GET", "HEAD", "OPTIONS") else (await receive())["body"]
        passed_on = {name: scope[name] for name in PASSED_ON if name in scope}
        for _ in range(TRIES):
            begun = False
            messages = self.replicas.answer.remote(prefix_key(body), passed_on, body)
            try:
                async for message in messages:
                    begun = True
                    await send(message)
                return
            except RayActorError:
                if begun:
                    raise  # half an answer is with the client
            except BackPressureError:
                await refuse(scope, send, Refusal(429, "all replicas are busy and many requests wait; try again later",
                                                  code="queue_full", retry=RETRY_SECONDS))  # fmt: skip
                return
            finally:
                messages.cancel()
        await refuse(scope, send, Refusal(503, f"{TRIES} replicas were lost over this request; try again later"))


def build_app(arguments: RayArguments) -> serve.Application:
    """The application, for `serve run`, `serve deploy` and `serve.run`."""
    replicas = serve.deployment(
        ReplicaOfServer,
        name="Replica",
        num_replicas=arguments.replicas,
        max_ongoing_requests=arguments.conversations,
        max_queued_requests=arguments.queue,
        ray_actor_options={"num_cpus": arguments.num_cpus, "num_gpus": arguments.num_gpus},
        request_router_config=RequestRouterConfig(request_router_class=PrefixRouter),
        graceful_shutdown_timeout_s=arguments.options().shutdown_seconds,
    )
    front = serve.deployment(Front, max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 0})
    return front.bind(arguments, replicas.bind(arguments))
