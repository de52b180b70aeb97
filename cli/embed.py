"""`lensmith embed`: what a decoder makes of a text and of images, as vectors in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..targets.errors import InputError
from .answering import LOADING, SYSTEM, VIDEO, check_limits, loading_of, system_messages
from .option_types import AS_JSON, KEYS, Once
from .screen import console, pairs, print_json
from .standard_streams import read_text
from .template_options import TEMPLATE, template_variables


@click.command(cls=Once, short_help="Write the last hidden states of TEXT and images to a file.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("text", required=False)
@click.option("--image", "images", multiple=True, metavar="FILE", help="An image in front of the text. Repeatable.")
@click.option("--video", "videos", multiple=True, metavar="FILE", help="A video or animated image. Repeatable.")
@VIDEO
@click.option("-o", "--out", "out", required=True, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Where to write the vectors (.npz).")  # fmt: skip
@click.option("--normalize", is_flag=True, help="Give the pooled vector the length 1.")
@SYSTEM
@TEMPLATE
@LOADING
@KEYS
@AS_JSON
def embed(
    bundle: Path,
    text: str | None,
    images: tuple[str, ...],
    videos: tuple[str, ...],
    fps: float | None,
    num_frames: int | None,
    out: Path,
    normalize: bool,
    system: str | None,
    keys: tuple[Path, ...],
    as_json: bool,
    **chosen: Any,
) -> None:
    """Write the last hidden states of TEXT and of images to a file, and that of the last token, which stands for all.

    Models for search and ranking, such as Qwen3-VL-Embedding, are read so: their instruction is the --system message.
    The TEXT "-" is read from standard input.
    """
    from ..runtimes.bundle.opening import open_bundle
    from ..runtimes.generation.hidden_states import save_hidden_states
    from ..runtimes.generation.model import Model
    from ..runtimes.prompt.requests import user_message
    from ..runtimes.storage.new_file import check_new_file

    variables = template_variables(chosen)
    if text is None and not images and not videos:
        raise InputError("expected a TEXT, --image FILE or --video FILE; see: lensmith embed --help")
    check_limits(chosen, images=images, videos=videos)
    check_new_file(out)
    opened = open_bundle(bundle, trusted_keys=keys or None)
    model = Model(opened, **loading_of(opened, chosen))
    text = read_text() if text == "-" else text or ""
    message = user_message(text, images, videos, fps=fps, num_frames=num_frames)
    found = model.hidden_states([*system_messages(system), message], **variables)
    save_hidden_states(out, found, normalize=normalize)
    tokens, hidden = found.states.shape
    if as_json:
        print_json({"out": str(out), "tokens": tokens, "hidden": hidden})
        return
    console().print(pairs("Hidden states", {"tokens": str(tokens), "size of each": str(hidden)}))
    click.echo(out)
