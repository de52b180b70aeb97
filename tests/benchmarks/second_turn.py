"""Time to the first token of the first question about a photo, and of the next ones about the same photo.

    python tests/benchmarks/second_turn.py BUNDLE [--photo FILE] [--repeats 3] [--threads 2]
    python tests/benchmarks/second_turn.py BUNDLE --against MODEL.gguf MMPROJ.gguf

Each runs as a server in a process of its own, one after another, and is asked by the same client, streamed: a question
about a photo of 896 x 672 pixels, a second question in the same conversation, and that question in another one. Each
repeat has a photo of its own (a given one is marked in its first pixel), so that nothing is known from the repeat
before. Then the bundle is asked in this process, behind the first turn and cold: the tokens must be the same. The
peer, llama-cpp-python's server, needs `pip install 'llama-cpp-python[server]'`.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openai
from lensmith.runtimes import Model, load
from PIL import Image
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script is not part of its package

from tests.helpers.local_server import LENSMITH, local_server

QUESTIONS = ("Describe this picture in detail.", "What is in the middle of the picture?")
SIZE = (896, 672)
NEW_TOKENS = 16
TURNS = ("first turn", "second turn", "same photo, other conversation")


@dataclass(frozen=True)
class Turn:
    """One answer: seconds to its first token, tokens of the prompt and those of them that were read anew."""

    seconds: float
    prompt_tokens: int
    read_tokens: int | None  # None where the server does not say


def photos(path: Path | None, count: int) -> Iterator[str]:
    """As data links: `count` pictures that differ."""
    for number in range(count):
        shades = np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        image = Image.open(path).convert("RGB") if path else Image.fromarray(shades)
        image = image.resize(SIZE, Image.Resampling.BICUBIC)
        image.putpixel((0, 0), (number, 0, 0))
        file = io.BytesIO()
        image.save(file, "PNG")
        yield "data:image/png;base64," + b64encode(file.getvalue()).decode()


def question(text: str, link: str | None = None) -> Any:
    """A user's turn."""
    picture = [{"type": "image_url", "image_url": {"url": link}}] if link else []
    return {"role": "user", "content": [*picture, {"type": "text", "text": text}]}


def ask(client: Any, model: str, messages: list[Any]) -> tuple[Turn, str]:
    """The turn's figures and its text."""
    started, first, text, usage = time.perf_counter(), 0.0, "", None
    chunks = client.chat.completions.create(
        model=model, messages=messages, stream=True, stream_options={"include_usage": True}, temperature=0,
        max_tokens=NEW_TOKENS,
    )  # fmt: skip
    for chunk in chunks:
        usage = chunk.usage or usage
        said = chunk.choices[0].delta.content if chunk.choices else None
        if said:
            first, text = first or time.perf_counter() - started, text + said
    details = usage and usage.prompt_tokens_details
    read = usage.prompt_tokens - details.cached_tokens if usage and details else None
    return Turn(first, usage.prompt_tokens if usage else 0, read), text


def turns(client: Any, model: str, link: str) -> list[Turn]:
    """The three turns about one photo."""
    messages = [question(QUESTIONS[0], link)]
    first, text = ask(client, model, messages)
    second, _ = ask(client, model, [*messages, {"role": "assistant", "content": text}, question(QUESTIONS[1])])
    other, _ = ask(client, model, [question(QUESTIONS[1], link)])
    return [first, second, other]


def measured(command: list[Any], model: str, health: str, args: argparse.Namespace) -> list[list[Turn]]:
    """The turns about each photo, without those about the first, which warms up."""
    with local_server(command, health=health) as (address, _):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=3600, max_retries=0)
        return [turns(client, model, link) for link in photos(args.photo, args.repeats + 1)][1:]


def same_tokens(args: argparse.Namespace) -> str:
    """Whether both questions behind the first turn get the tokens that a cold model gives them."""
    model = load(args.bundle, threads=args.threads, context=2048)
    assert isinstance(model, Model)
    link = next(photos(args.photo, 1))
    history = [question(QUESTIONS[0], link)]
    text = model.generate(history, max_new_tokens=NEW_TOKENS, temperature=0).read()
    second = [*history, {"role": "assistant", "content": text}, question(QUESTIONS[1])]
    other = [question(QUESTIONS[1], link)]
    found = []
    for messages in (second, other):
        warm = model.generate(messages, max_new_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)
        warm.read()
        model.forget()
        cold = model.generate(messages, max_new_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)
        cold.read()
        assert cold.timings.reused_tokens == 0
        same = "the same" if warm.ids == cold.ids else f"other: {warm.ids} and {cold.ids}"
        found.append(f"{same} ({warm.timings.reused_tokens} of {warm.timings.prompt_tokens} tokens reused)")
        model.forget()
        model.generate(history, max_new_tokens=NEW_TOKENS, temperature=0).read()
    return "; ".join(f"{turn}: {said}" for turn, said in zip(TURNS[1:], found, strict=True))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--photo", type=Path, help="default: smooth shades")
    parser.add_argument("--against", type=Path, nargs=2, metavar=("MODEL", "MMPROJ"), help="GGUF files for llama.cpp")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    threads: list[Any] = ["--threads", args.threads, "--context", 2048]
    servers = {"lensmith": ([*LENSMITH, "serve", args.bundle, *threads], args.bundle.resolve().name, "/health")}
    if args.against:
        model, projector = args.against
        command = [sys.executable, "-m", "llama_cpp.server", "--model", model, "--clip_model_path", projector]
        command += ["--chat_format", "qwen2.5-vl", "--n_ctx", 2048, "--n_threads", args.threads, "--verbose", False]
        servers["llama-cpp-python"] = (command, "any", "/v1/models")
    table = Table("server", "turn", "first token s", "of the first", "prompt tokens", "read anew", "load", box=None)
    for name, (command, model_name, health) in servers.items():
        load_before = os.getloadavg()[0]
        found = measured(command, model_name, health, args)
        load_average = f"{load_before:.1f} to {os.getloadavg()[0]:.1f}"
        seconds = [statistics.median(turn.seconds for turn in column) for column in zip(*found, strict=True)]
        for turn, took, figures in zip(TURNS, seconds, found[0], strict=True):
            read = "" if figures.read_tokens is None else str(figures.read_tokens)
            table.add_row(
                name,
                turn,
                f"{took:.2f}",
                f"{100 * took / seconds[0]:.1f} %",
                str(figures.prompt_tokens),
                read,
                load_average,
            )
    Console(width=140).print(table)
    print(f"tokens of answers against a cold run: {same_tokens(args)}")


if __name__ == "__main__":
    main()
