"""`lensmith serve`: bundles behind the HTTP interfaces of OpenAI and Anthropic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..targets.errors import InputError, MissingExtra
from .answering import LOAD_NAMES, LOADING
from .option_types import KEYS, AboveZero, Once, parse_size
from .screen import console

OF_SESSIONS = ("conversations", "prefix_bytes", "feature_bytes", "cache_folder", "cache_bytes")
LOCAL = ("127.0.0.1", "::1", "localhost")


@click.command(cls=Once, short_help="Serve BUNDLEs to OpenAI's and Anthropic's clients.")
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="BUNDLE...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; beyond this machine 0.0.0.0.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--api-key", "api_keys", multiple=True, metavar="KEY", envvar="LENSMITH_API_KEY",
              help="Demand it of clients. Repeatable; better given as LENSMITH_API_KEY.")  # fmt: skip
@click.option("--conversations", type=click.IntRange(1, 1024), default=4, show_default=True,
              help="Answers made at once by each bundle, each with a KV cache of its own.")  # fmt: skip
@click.option("--prefix-size", "prefix_bytes", metavar="SIZE", default="512MB", show_default=True,
              callback=parse_size, help="Memory of each bundle for what conversations share.")  # fmt: skip
@click.option("--feature-size", "feature_bytes", metavar="SIZE", default="256MB", show_default=True,
              callback=parse_size, help="Memory of each bundle for the features of the latest images.")  # fmt: skip
@click.option("--cache", "cache_folder", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
              help="Keep states and features there, for the time behind a restart.")  # fmt: skip
@click.option("--cache-size", "cache_bytes", metavar="SIZE", callback=parse_size,
              help="Most bytes of all that is in it; default: 2GB.")  # fmt: skip
@click.option("--queue", type=click.IntRange(0), default=64, show_default=True,
              help="Requests that wait; further ones get status 429.")  # fmt: skip
@click.option("--deadline", type=AboveZero(1e6), default=600.0, show_default=True, metavar="SECONDS",
              help="Longest time of an answer.")  # fmt: skip
@click.option("--most-new-tokens", type=click.IntRange(1), default=4096, show_default=True, metavar="N",
              help="Most tokens that a client may ask for.")  # fmt: skip
@click.option("--max-body-megabytes", type=AboveZero(4096), default=64.0, show_default=True, metavar="X",
              help="Refuse larger requests.")  # fmt: skip
@click.option("--kept-size", "kept_bytes", metavar="SIZE", default="256MB", show_default=True, callback=parse_size,
              help="Conversations kept for previous_response_id of /v1/responses; 0 keeps none.")  # fmt: skip
@click.option("--allow-image-host", "image_hosts", multiple=True, metavar="HOST",
              help="Fetch pictures of links to this host; none by default. Repeatable.")  # fmt: skip
@LOADING
@KEYS
def serve(
    bundles: tuple[Path, ...],
    host: str,
    api_keys: tuple[str, ...],
    max_body_megabytes: float,
    keys: tuple[Path, ...],
    **chosen: Any,
) -> None:
    """Serve BUNDLEs to OpenAI's and Anthropic's clients, by the names of their folders, and a page at /."""
    try:
        from ..serving.server import serve as run
        from ..serving.server_options import ServerOptions
    except ImportError:
        raise MissingExtra("a server", "serve") from None
    from ..runtimes.generation.loading import load
    from ..runtimes.generation.model import Model

    loading = {name: chosen.pop(name) for name in (*LOAD_NAMES, *OF_SESSIONS)}
    options = ServerOptions(host=host, api_keys=api_keys, body_bytes=int(max_body_megabytes * 1e6), **chosen)
    models: dict[str, Model] = {}
    for path in bundles:
        name = path.resolve().name
        model = load(path, trusted_keys=keys or None, **loading)
        if not isinstance(model, Model):
            raise InputError(f"{path} has no decoder and answers nothing; serve bundles that do")
        if name in models:
            raise InputError(f"two bundles are named {name!r}, as their folders are; rename one of the folders")
        models[name] = model
    if host not in LOCAL and not api_keys:
        console(stderr=True).print(f"warning: {host} is open to others and no --api-key is demanded", style="yellow")
    console(stderr=True).print(f"{', '.join(models)} at http://{host}:{options.port}/ (Ctrl-C ends)")
    run(models, options)
