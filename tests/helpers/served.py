"""A server over tiny models at a real socket, and pictures for its clients."""

from __future__ import annotations

import base64
import io
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn
from lensmith.runtimes import Model
from lensmith.serving.routes import make_app
from lensmith.serving.server import server_config
from lensmith.serving.server_options import ServerOptions
from PIL import Image


@contextmanager
def served(models: Mapping[str, Model], **options: Any) -> Iterator[str]:
    """The address of a server over models."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    chosen = ServerOptions(port=port, **options)
    server = uvicorn.Server(server_config(make_app(models, chosen), chosen))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def png(color: int = 200) -> str:
    """A picture as a data URL."""
    file = io.BytesIO()
    pixels = np.full((64, 96, 3), color, np.uint8)
    pixels[::7] = 30
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def about(*images: str, text: str = "What is this?") -> list[Any]:
    """A question about pictures, as OpenAI's clients write it."""
    parts = [{"type": "image_url", "image_url": {"url": image}} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
