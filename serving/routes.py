"""The routes of a server over loaded models, as the clients of OpenAI and Anthropic call them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from ..runtimes.generation.model import Model
from ..targets.errors import LensmithError
from .access_log import AccessLog
from .answer_service import AnswerService
from .answer_writer import as_json
from .apis.api import Api
from .apis.api_table import APIS, error_body
from .bodies import BoundedBodies
from .live_answer import ClientGone
from .picture_links import PictureLinks
from .response_shelf import ResponseShelf
from .served import Served
from .server_errors import Refusal, as_refusal
from .server_metrics import ServerMetrics
from .server_options import ServerOptions

NAME = re.compile(r"\w+")  # the other places in an error are pydantic's words for alternatives
PAGE = Path(__file__).with_name("page.html")
POLICY = "default-src 'none'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
PATHS = frozenset(("/", "/health", "/metrics", "/v1/models", *(api.path for api in APIS)))


def make_app(models: Mapping[str, Model], options: ServerOptions) -> FastAPI:
    """The application; `models` by the names that clients use."""
    metrics = ServerMetrics()
    executor = ThreadPoolExecutor(sum(model.conversations.limit for model in models.values()), "lensmith-answer")
    links, shelf = PictureLinks(options.image_hosts, options.body_bytes), ResponseShelf(options.kept_bytes)
    services = {
        name: AnswerService(Served(name, model, options, links, shelf), metrics, executor)
        for name, model in models.items()
    }

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        for service in services.values():
            service.shut()
        executor.shutdown(wait=True, cancel_futures=True)
        for model in models.values():
            model.flush()  # to the cache: a signal ends the process without Python's own end

    app = FastAPI(title="lensmith", lifespan=life)
    app.add_middleware(BoundedBodies, most_bytes=options.body_bytes, seconds=options.body_seconds)
    app.add_middleware(AccessLog, metrics=metrics, paths=PATHS)
    _add_errors(app)
    _add_answers(app, services, options)
    _add_views(app, services, metrics)
    for figure in ("waiting", "running"):
        metrics.watch(f"{figure}_requests", f"Requests that are {figure}.", partial(_count, services, figure))
    return app


def _add_answers(app: FastAPI, services: Mapping[str, AnswerService], options: ServerOptions) -> None:
    keys = {_digest(key) for key in options.api_keys}

    def allowed(http: HttpRequest) -> None:
        given = http.headers.get("x-api-key") or http.headers.get("authorization", "").removeprefix("Bearer ")
        if keys and _digest(given) not in keys:
            raise Refusal(
                401, "the API key is missing or wrong; send it as Authorization: Bearer KEY or x-api-key: KEY"
            )

    def service_of(name: str) -> AnswerService:
        if name not in services:
            raise Refusal(404, f"the model {name[:200]!r} is not served here; known: {', '.join(services)}",
                          code="model_not_found", param="model")  # fmt: skip
        return services[name]

    guarded = [Depends(allowed)]

    def answer_by(api: Api) -> Callable[..., Awaitable[Response]]:
        async def answer(request: Any, http: HttpRequest) -> Response:
            return await service_of(request.model).answer(api, request, http)

        answer.__annotations__["request"] = api.schema
        return answer

    for api in APIS:
        app.add_api_route(api.path, answer_by(api), methods=["POST"], dependencies=guarded, summary=api.summary)

    @app.get("/v1/models", dependencies=guarded)
    async def models() -> dict[str, Any]:
        """The models that are served."""
        return {"object": "list", "data": [service.card() for service in services.values()]}

    @app.get("/v1/models/{name}", dependencies=guarded)
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        return service_of(name).card()


def _add_views(app: FastAPI, services: Mapping[str, AnswerService], metrics: ServerMetrics) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the server takes requests."""
        if any(service.admission.closed for service in services.values()):
            raise Refusal(503, "the server is shutting down")
        return {"status": "ok"}

    @app.get("/metrics")
    async def figures() -> Response:
        """Figures for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        """A page to try the models with."""
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": POLICY})


def _add_errors(app: FastAPI) -> None:
    def refused(http: HttpRequest, refusal: Refusal) -> Response:
        body = as_json(error_body(http.url.path, refusal))
        return Response(body, refusal.status, refusal.headers, "application/json")

    async def invalid(http: HttpRequest, error: Any) -> Response:
        return refused(http, _first_of(error.errors()))

    for kind in (RequestValidationError, ValidationError):  # the latter of what a request is translated to
        app.add_exception_handler(kind, invalid)

    @app.exception_handler(HTTPException)
    async def other(http: HttpRequest, error: HTTPException) -> Response:
        known = f"; known: {', '.join(sorted(PATHS))}" if error.status_code == HTTPStatus.NOT_FOUND else ""
        asked = f"{http.method} {http.url.path[:200]}"
        return refused(http, Refusal(error.status_code, f"{asked}: {error.detail}{known}"))

    @app.exception_handler(ClientGone)
    async def gone(_: HttpRequest, __: ClientGone) -> Response:
        return Response(status_code=499)

    async def failed(http: HttpRequest, error: Exception) -> Response:
        return refused(http, as_refusal(error))

    for raised in (Refusal, LensmithError, Exception):
        app.add_exception_handler(raised, failed)


def _count(services: Mapping[str, AnswerService], figure: str) -> int:
    return sum(getattr(service.admission, figure) for service in services.values())


def _digest(key: str) -> bytes:
    """Keys are looked up by their hashes, so that the time it takes says nothing about how near a guess was."""
    return hashlib.sha256(key.encode()).digest()


def _first_of(errors: Sequence[Any]) -> Refusal:
    """What is wrong with a request, as one sentence: of several ways to read it, what the one that fits best lacks."""
    first = max(errors, key=lambda error: len(error["loc"]))
    if first["type"] == "json_invalid":
        return Refusal(400, f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}")
    if isinstance(first["input"], bytes):  # which nothing tried to read
        return Refusal(400, "the body is not read as JSON without the header Content-Type: application/json; send it")
    place = ".".join(str(part) for part in first["loc"] if part != "body" and NAME.fullmatch(str(part)))
    return Refusal(400, f"{place or 'the body'}: {first['msg']}", param=place or None)
