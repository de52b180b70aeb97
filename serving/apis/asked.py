"""What a request comes to: answers that a model is to make, and the options that all APIs share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...runtimes.generation.answer import Answer
from ...runtimes.generation.model import Model
from ..server_errors import Refusal
from ..server_options import ServerOptions

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
FILTERS = ("top_p", "top_k", "min_p", "seed")  # say nothing where the most likely token is taken


@dataclass(frozen=True)
class Asked:
    """Each of `makes` checks a prompt and begins an answer; raises InputError for what this model does not do."""

    makes: Sequence[Callable[[], Answer]]
    one_call: bool = False  # whether an answer ends behind its first call of a tool


class Sampled(Protocol):
    """What the requests of all APIs have."""

    stop: str | list[str] | None


def sampling_of(request: Sampled, model: Model) -> dict[str, Any]:
    """Options of `Model.generate` that say how tokens are chosen, and the texts that end an answer."""
    chosen = {name: value for name in SAMPLING if (value := getattr(request, name)) is not None}
    if chosen.get("temperature", model.default_options().sampling.temperature) == 0:
        chosen = {name: value for name, value in chosen.items() if name not in FILTERS}
    stop = [request.stop] if isinstance(request.stop, str) else request.stop
    return chosen if stop is None else {**chosen, "stop": stop}


def tokens_of(wanted: int | None, limits: ServerOptions, name: str) -> int:
    """How many new tokens an answer may have. Raises Refusal where the server allows fewer."""
    tokens = wanted or min(limits.default_new_tokens, limits.most_new_tokens)
    if tokens > limits.most_new_tokens:
        raise Refusal(400, f"{tokens} new tokens are more than the {limits.most_new_tokens} of this server", param=name)
    return tokens


def seeded(chosen: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    """The options of one of several answers to a prompt: each has a seed of its own."""
    seed = chosen.get("seed")
    return chosen if seed is None else {**chosen, "seed": (seed + index) % (1 << 63)}
