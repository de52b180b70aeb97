"""`lensmith run`: one question, or with a bundle without a decoder the features of images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..targets.errors import InputError
from .answering import LOADING, SAMPLING, SYSTEM, VIDEO, check_limits, loading_of, open_model, stream, system_messages
from .option_types import AS_JSON, KEYS, Once, named
from .screen import console, pairs, print_json
from .standard_streams import read_text
from .template_options import TEMPLATE, calls_of, template_variables

if TYPE_CHECKING:
    from ..runtimes.generation.answer import Answer
    from ..runtimes.generation.timings import Timings


ENCODING = ("bundle", "question", "images", "videos", "fps", "num_frames", "out", "keys", "as_json", "min_pixels",
            "max_pixels", "image_limits", "context", "threads", "device")  # fmt: skip


@click.command(cls=Once)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("question", required=False)
@click.option("--image", "images", multiple=True, metavar="FILE", help="An image for the question. Repeatable.")
@click.option("--video", "videos", multiple=True, metavar="FILE", help="A video or animated image. Repeatable.")
@VIDEO
@click.option("-o", "--out", "out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Where to write features (.npz), of a bundle without a decoder.")  # fmt: skip
@SYSTEM
@TEMPLATE
@SAMPLING
@LOADING
@KEYS
@click.option("--timings", is_flag=True, help="Print where the time went, on stderr.")
@AS_JSON
def run(
    bundle: Path,
    question: str | None,
    images: tuple[str, ...],
    videos: tuple[str, ...],
    fps: float | None,
    num_frames: int | None,
    out: Path | None,
    system: str | None,
    keys: tuple[Path, ...],
    timings: bool,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Answer QUESTION with BUNDLE, word by word. The question "-" is read from standard input.

    A bundle of a vision encoder alone takes no QUESTION: it writes the features of images and videos to a file.
    """
    from ..runtimes.bundle.opening import open_bundle
    from ..runtimes.generation.loading import answers
    from ..runtimes.prompt.requests import question_message
    from .encode import encode

    opened = open_bundle(bundle, trusted_keys=keys or None)
    if not answers(opened):
        if question is not None:
            raise InputError(f"{bundle} has no decoder and takes no question; expected --image FILE -o FEATURES.npz")
        check_encoding(bundle)
        loading = loading_of(opened, chosen)
        encode(opened, images, out, videos=videos, fps=fps, num_frames=num_frames, as_json=as_json, **loading)
        return
    if question is None:
        raise InputError(f'{bundle} answers questions; expected a QUESTION, as in: lensmith run {bundle} '
                         '"What is shown?" --image FILE; see: lensmith run --help')  # fmt: skip
    if out is not None:
        raise InputError(f"{bundle} answers questions and writes no features; leave out --out")
    variables = template_variables(chosen)
    limits = dict(chosen)
    model, generation = open_model(opened, chosen, variables)
    check_limits(limits, images=images, videos=videos)
    question = read_text() if question == "-" else question
    message = question_message(question, images, videos, fps=fps, num_frames=num_frames)
    answer = model.generate([*system_messages(system), message], generation, **variables)
    if as_json:
        text = answer.read()
        calls = {"tool_calls": calls_of(answer)} if "tools" in variables else {}
        print_json({"text": text, **calls, **_figures(answer)})
    else:
        stream(answer)
    if timings:
        console(stderr=True).print(pairs("Timings", _readable(answer.timings)))


def check_encoding(bundle: Path) -> None:
    """Raise InputError for an option on the command line that has no effect on a bundle without a decoder."""
    context = click.get_current_context()
    for parameter in context.command.params:
        given = context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
        if given and parameter.name not in ENCODING:
            raise InputError(f"{named(parameter)} has no effect on {bundle}, which has no decoder; leave it out")


def _figures(answer: Answer) -> dict[str, Any]:
    timings = answer.timings
    derived = {"first_token_ms": timings.first_token_ms, "tokens_per_s": timings.tokens_per_s}
    figures = {name: round(value, 3) for name, value in {**asdict(timings), **derived}.items()}
    return {"finish_reason": answer.finish_reason, "ids": answer.ids, "timings": figures}


def _readable(timings: Timings) -> dict[str, str]:
    return {
        "images and videos": f"{timings.image_ms:.0f} ms",
        "vision encoder": f"{timings.vision_ms:.0f} ms for {timings.image_tokens} image tokens"
        + (f" and {timings.video_tokens} video tokens" if timings.video_tokens else ""),
        "prompt": f"{timings.prefill_ms:.0f} ms for {timings.prompt_tokens} tokens, {timings.reused_tokens} reused",
        "first token": f"{timings.first_token_ms:.0f} ms",
        "answer": f"{timings.decode_ms:.0f} ms for {timings.new_tokens} tokens, {timings.tokens_per_s:.1f} tokens/s",
        "drafts": f"{timings.accepted_tokens} of {timings.drafted_tokens} tokens right",
    }
