"""Options of one answer: when it ends and how tokens are chosen, as an object or given directly by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ...targets.errors import InputError
from ..values import shown, truth, whole
from .logprobs import MOST_ALTERNATIVES
from .sampling import SamplingOptions

MOST_NEW_TOKENS = 1 << 24
FORMS = ("json_schema", "regex", "choices", "grammar")


@dataclass(frozen=True)
class GenerationOptions:
    """When to stop, and how to choose tokens.

    An answer ends behind `max_new_tokens` tokens, at an end token unless `ignore_eos` (for measurements of a fixed
    length), or in front of the first of the texts in `stop`. After `thinking_budget` tokens of thoughts, their end is
    forced. What comes behind thoughts is held to one of `json_schema`, `regex`, `choices` and `grammar`: tokens that do
    not fit are never chosen. `draft` changes how long an answer takes, and nothing in it. Raises InputError for values
    out of range, and for options that contradict one another.
    """

    max_new_tokens: int = 512
    stop: Sequence[str] = ()  # texts that end the answer, which is cut in front of them
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    ignore_eos: bool = False  # for measurements of a fixed length
    logprobs: int | None = None  # keep the probabilities of tokens, and of so many alternatives: `Answer.logprobs`
    thinking_budget: int | None = None  # tokens; None: as many as the model likes
    json_schema: Any = None  # the answer is JSON of this schema, an object or its text; True: any JSON
    regex: str | None = None  # it matches this expression as a whole
    choices: Sequence[str] | None = None  # it is one of these texts
    grammar: str | None = None  # it follows this Lark grammar, as llguidance reads it
    draft: bool | None = None  # guess tokens ahead from the text so far; None: where several cost little more than one

    def __post_init__(self) -> None:
        if not isinstance(self.stop, list | tuple) or not all(isinstance(text, str) and text for text in self.stop):
            raise InputError(f"stop is {shown(self.stop)}; expected a list of strings that are not empty")
        if not isinstance(self.sampling, SamplingOptions):
            raise InputError(f"sampling is a {type(self.sampling).__name__}; expected SamplingOptions")
        object.__setattr__(self, "max_new_tokens", whole("max_new_tokens", self.max_new_tokens, 1, MOST_NEW_TOKENS))
        object.__setattr__(self, "ignore_eos", truth("ignore_eos", self.ignore_eos))
        object.__setattr__(self, "stop", tuple(self.stop))
        if self.draft is not None:
            object.__setattr__(self, "draft", truth("draft", self.draft))
        if self.logprobs is not None:
            object.__setattr__(self, "logprobs", whole("logprobs", self.logprobs, 0, MOST_ALTERNATIVES))
        if self.thinking_budget is not None:
            budget = whole("thinking_budget", self.thinking_budget, 0, MOST_NEW_TOKENS)
            object.__setattr__(self, "thinking_budget", budget)
        given = [name for name in FORMS if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} ask for two forms of one answer; give one of them")
        if given and self.ignore_eos:
            raise InputError(f"ignore_eos goes on behind the end that {given[0]} gives an answer; leave one out")

    @property
    def form(self) -> tuple[str, Any] | None:
        """The form that the answer is held to, by the name of its option."""
        return next(((name, value) for name in FORMS if (value := getattr(self, name)) is not None), None)


ENDING = ("max_new_tokens", "stop", "ignore_eos", "logprobs", "thinking_budget", *FORMS, "draft")
CHOOSING = tuple(option.name for option in fields(SamplingOptions))
OPTIONS = (*ENDING, *CHOOSING)


def with_options(
    base: GenerationOptions, given: Mapping[str, Any], generation_config: Mapping[str, Any]
) -> GenerationOptions:
    """`base` with the options in `given`, which count over its own; None stands for an option that is not given.

    Where these ask for sampling and `base` is greedy, the others of sampling are the checkpoint's. Raises InputError
    for values out of range, and for those that contradict one another.
    """
    if not isinstance(base, GenerationOptions):
        raise InputError(f"options are a {type(base).__name__}; expected GenerationOptions, or give them by name")
    chosen = {name: value for name, value in given.items() if value is not None}
    sampling = {name: value for name, value in chosen.items() if name in CHOOSING}
    changed = replace(base, **{name: value for name, value in chosen.items() if name not in CHOOSING})
    return replace(changed, sampling=_sampling(changed.sampling, sampling, generation_config))


def _sampling(base: SamplingOptions, given: Mapping[str, Any], generation_config: Mapping[str, Any]) -> SamplingOptions:
    asked = SamplingOptions(**{name: value for name, value in given.items() if name != "seed"})
    kept = {} if base.repetition_penalty == 1.0 else {"repetition_penalty": base.repetition_penalty}
    if asked.do_sample or (base.do_sample and not {"do_sample", "temperature"} & set(given)):
        usual = base if base.do_sample else SamplingOptions.from_generation_config(generation_config, do_sample=True)
        return SamplingOptions(**{**asdict(usual), **kept, **given, "do_sample": True})
    return SamplingOptions(**{**kept, **given}) if given else base
