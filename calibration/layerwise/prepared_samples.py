"""What a model is calibrated and judged on: questions with their images, as the decoder will get them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ...exporters.comparing.cases import Case
from ...exporters.graphs.graph_files import Graph
from ...exporters.graphs.kv_cache import FLOAT_CACHE
from ...exporters.graphs.state_names import CAPACITY, State, all_states
from ...exporters.spec import ModelSpec
from ...runtimes.bundle.manifest import InputSections
from ...runtimes.engines.contract import Floats, ImageFeatures, Ints
from ...runtimes.media.image_files import open_image
from ...runtimes.media.pixels import image_spec, preprocess
from ...runtimes.prompt.manifest_specs import position_spec, prompt_spec
from ...runtimes.prompt.positions import rotary_positions, text_positions
from ...runtimes.prompt.prompt_builder import PromptBuilder
from ...targets.errors import InputError
from .streams import Values

# Kinds of tokens: text alone, of an image, text behind an image, and those that the tokens of an answer follow.
TEXT, IMAGE, BEHIND, ANSWER = range(4)
KINDS = ("text", "image", "text behind an image", "answers")


@dataclass(frozen=True)
class Picture:
    """The patches of one image as the vision encoder gets them, and their grid (frames, height, width)."""

    patches: Floats
    grid: tuple[int, int, int]

    @property
    def key(self) -> str:
        """The same for the same pixels."""
        return hashlib.sha256(self.patches.tobytes() + str(self.grid).encode()).hexdigest()


@dataclass(frozen=True)
class Sample:
    """A question, and the answer behind it where there is one: a given one, or the model's own."""

    task: str
    ids: Ints  # [seq]
    positions: Ints  # [3, seq]
    kinds: NDArray[np.int8]  # [seq], of each token
    pictures: tuple[str, ...]  # keys, in order
    answer: int  # tokens of the answer with its end token, the last of the sequence; 0 without
    own: bool = False  # whether the model itself answered
    foreign: bool = False  # of a kind that is judged and never calibrated on
    given: bool = False  # whether its words are a user's

    def answered(self, ids: Ints, *, own: bool) -> Sample:
        """This question with an answer behind it."""
        if not len(ids):
            return replace(self, own=own)
        following = text_positions(len(ids), int(self.positions.max()) + 1)
        kinds = np.concatenate([self.kinds, np.full(len(ids), ANSWER, np.int8)])
        kinds[len(self.ids) - 1] = ANSWER
        return replace(self, ids=np.concatenate([self.ids, ids]), kinds=kinds, answer=len(ids), own=own,
                       positions=np.concatenate([self.positions, following], axis=1))  # fmt: skip


def keys_of(samples: Sequence[Sample]) -> list[str]:
    """The pictures of samples, each once."""
    return sorted({key for sample in samples for key in sample.pictures})


class SampleBuilder:
    """Makes samples with a checkpoint's own template, tokenizer and image processing."""

    def __init__(self, inputs: InputSections, template: str, tokenizer: Tokenizer) -> None:
        self.prompts = PromptBuilder(tokenizer, template, prompt_spec(inputs))
        self.images = image_spec(inputs)
        self.positions = position_spec(inputs, self.prompts)
        self.end = inputs.asked().eos_token_ids[0]
        self.context = inputs.limits.context
        self.pictures: dict[str, Picture] = {}

    def build(self, case: Case) -> Sample:
        """One case; its pictures go to `pictures`. Raises InputError for what the context cannot hold."""
        pictures = [Picture(*preprocess(open_image(path), self.images)) for path in case.images]
        prompt = self.prompts.build(case.messages, [p.grid for p in pictures], [], **case.variables)
        positions, _ = rotary_positions(prompt.ids, prompt.grids, self.positions)
        keys = tuple(picture.key for picture in pictures)
        kinds = _kinds(len(prompt), prompt.image_spans)
        bare = Sample(case.task, prompt.ids, positions, kinds, keys, 0, given=case.given)
        sample = bare.answered(self._answer(case), own=False)
        if len(sample.ids) > self.context:
            raise InputError(
                f"a calibration sample of task {case.task!r} needs {len(sample.ids)} tokens, but the context holds "
                f"{self.context}; shorten it or raise --context"
            )
        self.pictures.update(zip(keys, pictures, strict=True))
        return sample

    def fits(self, case: Case) -> bool:
        """Whether the context holds a case and at least a token behind it."""
        grids = [Picture(*preprocess(open_image(path), self.images)).grid for path in case.images]
        return len(self.prompts.build(case.messages, grids, [], **case.variables)) < self.context

    def _answer(self, case: Case) -> Ints:
        if case.answer is None:
            return np.zeros(0, np.int64)
        ids = self.prompts.tokenizer.encode(case.answer, add_special_tokens=False).ids
        return np.array([*ids, self.end], np.int64)


def _kinds(length: int, spans: Ints) -> NDArray[np.int8]:
    kinds = np.full(length, TEXT, np.int8)
    if len(spans):
        kinds[spans[0, 1] :] = BEHIND
    for first, last in spans.tolist():
        kinds[first:last] = IMAGE
    return kinds


def picture_values(picture: Picture, graph: Graph) -> Values:
    """The inputs of a vision encoder."""
    values: Values = {"pixel_values": picture.patches, "image_grid_thw": np.array([picture.grid], np.int64)}
    return {str(port.name): values[str(port.name)] for port in graph.model.graph.inputs}


def sample_values(sample: Sample, features: Mapping[str, ImageFeatures], spec: ModelSpec, graph: Graph) -> Values:
    """The inputs of a decoder, with empty states, for logits at all positions."""
    seq, taps = len(sample.ids), spec.taps
    joined = ImageFeatures.join([features[key] for key in sample.pictures]) if sample.pictures else None
    none = np.zeros((0, spec.decoder.hidden), np.float32)
    values: Values = {
        "input_ids": sample.ids[None],
        "position_ids": sample.positions[:1] if spec.decoder.mrope_section is None else sample.positions[:, None],
        "image_features": none if joined is None else joined.features,
        "past_lengths": np.zeros(1, np.int32),
        "num_logits": np.array([seq], np.int64),
        "num_hidden_states": np.array([seq], np.int64),
    }
    if taps:
        empty = np.zeros((taps, *none.shape), np.float32)
        values["deepstack_features"] = empty if joined is None or joined.deepstack is None else joined.deepstack
    values.update({state.past: _empty(state) for state in all_states(spec.decoder, FLOAT_CACHE)})
    return {str(port.name): values[str(port.name)] for port in graph.model.graph.inputs}


def draft_values(sample: Sample, values: Values, hidden: Floats, mtp: Graph) -> Values:
    """The inputs of a head for multi-token prediction, from the decoder's and its hidden states [1, seq, hidden]."""
    seq = len(sample.ids) - 1
    made: Values = {
        **values,
        "input_ids": sample.ids[None, 1:],
        "hidden_states": hidden[:, :-1],
        "position_ids": sample.positions[:, None, 1:],
        "num_logits": np.array([seq], np.int64),
    }
    for port in mtp.model.graph.inputs:
        if str(port.name).startswith("past_key_values") and port.shape is not None:
            made[str(port.name)] = np.zeros([1, int(port.shape[1]), 0, int(port.shape[3])], np.float32)  # type: ignore[arg-type]
    return {str(port.name): made[str(port.name)] for port in mtp.model.graph.inputs}


def _empty(state: State) -> Floats:
    sizes: dict[int | str, int] = {"batch": 1, CAPACITY: 0}
    return np.zeros([sizes[size] if isinstance(size, str) else size for size in state.shape], np.float32)
