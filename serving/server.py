"""Runs a server until it is told to end: loaded models over HTTP."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from contextlib import suppress

import uvicorn
from fastapi import FastAPI

from ..runtimes.generation.model import Model
from .bounded_heads import BoundedHeads
from .routes import make_app
from .server_options import ServerOptions

KEEP_ALIVE_SECONDS = 30
HEADER_BYTES = 16 << 10  # of a request, together


def serve(models: Mapping[str, Model], options: ServerOptions) -> None:
    """Serve models by the names of `models` until SIGTERM or Ctrl-C; open answers get some seconds to end."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("lensmith.access", "lensmith.serving"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(server_config(make_app(models, options), options)).run()


def server_config(app: FastAPI, options: ServerOptions) -> uvicorn.Config:
    """How uvicorn runs the application: with bounds on heads, and h11, which has them, whatever else is installed."""
    return uvicorn.Config(
        app,
        host=options.host,
        port=options.port,
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(options.shutdown_seconds)),
        h11_max_incomplete_event_size=HEADER_BYTES,
        http=BoundedHeads,
        ws="none",
    )
