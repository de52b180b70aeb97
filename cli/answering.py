"""What run and chat share: options of loading and sampling, and answers as they come."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..targets.errors import InputError
from .option_types import DEVICE, THREADS, AboveZero, named, options

if TYPE_CHECKING:
    from ..runtimes.bundle.opening import Bundle
    from ..runtimes.generation.answer import Answer
    from ..runtimes.generation.model import Model
    from ..runtimes.generation.options import GenerationOptions
    from ..runtimes.media.image_files import ImageLimits


def image_limits(_: click.Context, option: click.Parameter, megapixels: float | None) -> ImageLimits | None:
    """The limits of images for a number of megapixels. A callback of click's options."""
    from ..runtimes.media.image_files import ImageLimits

    return None if megapixels is None else ImageLimits(max_decoded_pixels=max(1, int(1e6 * megapixels)))


LOADING = options(
    click.option("--min-pixels", type=click.IntRange(1), metavar="N", help="Enlarge smaller images to this area."),
    click.option("--max-pixels", type=click.IntRange(1), metavar="N", help="Shrink larger images to this area."),
    click.option(
        "--max-video-pixels", type=click.IntRange(1), metavar="N", help="Shrink videos with more in all frames taken."
    ),
    click.option(
        "--max-image-megapixels",
        "image_limits",
        type=AboveZero(1e6),
        metavar="X",
        callback=image_limits,
        help="Refuse images and frames with more, before they are decoded; default: 179.",
    ),
    click.option("--context", type=click.IntRange(1), metavar="N", help="Most tokens of prompt and answer."),
    THREADS,
    DEVICE,
)


def read_form(_: click.Context, option: click.Parameter, path: Path | None) -> str | None:
    """The text of a file with a schema or a grammar. A callback of click's options."""
    from ..runtimes.storage.reading import read_utf8

    return None if path is None else read_utf8(path, MOST_FORM_BYTES, f"what {option.opts[-1]} asks for")


MOST_FORM_BYTES = 1 << 20
FORM_FILE = click.Path(path_type=Path)
FORMS = options(
    click.option("--json-schema", type=FORM_FILE, metavar="FILE", callback=read_form, help="Answer in JSON that fits."),
    click.option("--regex", metavar="REGEX", help="Answer with what matches as a whole."),
    click.option(
        "--choice",
        "choices",
        multiple=True,
        metavar="TEXT",
        callback=lambda _, __, given: given or None,
        help="Answer with one of these texts. Repeatable.",
    ),
    click.option("--grammar", type=FORM_FILE, metavar="FILE", callback=read_form, help="Answer by a Lark grammar."),
)


SAMPLING = options(
    FORMS,
    click.option("--max-new-tokens", type=click.IntRange(1), metavar="N", help="Default: 512."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text. Repeatable."),
    click.option("--thinking-budget", type=click.IntRange(0), metavar="N", help="Most tokens of thoughts."),
    click.option(
        "--sample/--greedy",
        "do_sample",
        default=None,
        help="Default: as the checkpoint's generation_config; a temperature or a filter means --sample.",
    ),
    click.option("--temperature", type=float, metavar="X", help="0 means --greedy."),
    click.option("--top-k", type=int, metavar="N"),
    click.option("--top-p", type=float, metavar="X"),
    click.option("--min-p", type=float, metavar="X"),
    click.option("--repetition-penalty", type=float, metavar="X"),
    click.option("--seed", type=int, metavar="N", help="Makes sampling repeatable."),
    click.option(
        "--draft/--no-draft",
        default=None,
        help="Guess tokens ahead from the text so far; the answer is the same. Default: where it is quicker.",
    ),
)


VIDEO = options(
    click.option("--fps", type=float, metavar="X", help="Frames taken of each second of a video."),
    click.option("--frames", "num_frames", type=click.IntRange(2), metavar="N", help="Frames taken of each video."),
)


SYSTEM = click.option("--system", metavar="TEXT", help="The system message.")


LOAD_NAMES = ("min_pixels", "max_pixels", "max_video_pixels", "image_limits", "context", "threads", "device")


LIMITS_OF = {"min_pixels": ("images",), "max_pixels": ("images",), "max_video_pixels": ("videos",),
             "image_limits": ("images", "videos")}  # fmt: skip
MEDIA = {"images": "--image", "videos": "--video"}


def check_limits(chosen: Mapping[str, Any], **media: Sequence[str]) -> None:
    """Raise InputError for a limit of images or videos without any."""
    unread = [name for name, of in LIMITS_OF.items() if chosen[name] is not None and not any(media[o] for o in of)]
    if unread:
        option = next(each for each in click.get_current_context().command.params if each.name == unread[0])
        wanted = " or ".join(MEDIA[kind] for kind in LIMITS_OF[unread[0]])
        raise InputError(f"{named(option)} has no effect without {wanted}; leave it out")


CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n\r"}


def loading_of(bundle: Bundle, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Options of loading from those chosen on the command line, with the defaults that were measured on this device."""
    from ..runtimes.tuning.tuned_files import tuning_of

    return {**{name: chosen[name] for name in LOAD_NAMES}, "tuning": tuning_of(bundle, device=chosen["device"])}


def open_model(
    bundle: Bundle, chosen: Mapping[str, Any], variables: Mapping[str, Any]
) -> tuple[Model, GenerationOptions]:
    """Load a bundle and make its generation options, each from what was chosen on the command line.

    Raises InputError for variables that its chat template does not read.
    """
    from ..runtimes.generation.model import Model
    from ..runtimes.prompt.variables import checked_variables

    # One conversation at a time goes on from itself: copies for others would take memory for nothing.
    model = Model(bundle, prefix_bytes=0, **loading_of(bundle, chosen))
    chosen = {name: value for name, value in chosen.items() if name not in LOAD_NAMES}
    checked_variables(variables, model.prompts.template)
    return model, model.default_options(**chosen)


def system_messages(system: str | None) -> list[dict[str, Any]]:
    """The messages at the head of a conversation."""
    return [] if system is None else [{"role": "system", "content": system}]


def stream_parts(answer: Answer) -> None:
    """Print what an answer says while it is made, and its thoughts dim beside it, where errors go; calls are left out.

    Terminals get no control characters.
    """
    from ..runtimes.dialogue.events import Reasoning, ToolCall

    thinking = False
    for event in answer.events():
        if isinstance(event, ToolCall):
            continue
        if thinking and not isinstance(event, Reasoning):
            click.echo(err=True)
        thinking = isinstance(event, Reasoning)
        clean = CONTROLS if (sys.stderr if thinking else sys.stdout).isatty() else {}
        click.secho(event.text.translate(clean), nl=False, err=thinking, dim=thinking or None)
        sys.stdout.flush()
    click.echo(err=thinking)


def stream(answer: Answer) -> None:
    """Print an answer while it is made; on a terminal without control characters, which could take it over."""
    clean = CONTROLS if sys.stdout.isatty() else {}
    for piece in answer:
        click.echo(piece.translate(clean), nl=False)
        sys.stdout.flush()
    click.echo()
