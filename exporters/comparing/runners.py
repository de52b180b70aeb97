"""The two ways to run a model that are compared: the bundle on lensmith's runtime, the checkpoint in PyTorch."""

from __future__ import annotations

import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ...runtimes.bundle.opening import open_bundle
from ...runtimes.engines.contract import Floats, Ints, Step
from ...runtimes.engines.native import wanted_instructions
from ...runtimes.generation.model import Model
from ...runtimes.generation.options import GenerationOptions
from ...runtimes.generation.timings import Timings
from ...runtimes.media.image_files import open_image
from ...runtimes.media.pixels import image_spec, preprocess
from ...runtimes.prompt.manifest_specs import position_spec, prompt_spec
from ...runtimes.prompt.positions import text_positions
from ...runtimes.prompt.prompt_builder import open_prompt
from ...runtimes.prompt.requests import (
    EncodedImage,
    Request,
    make_request,
    user_message,
)
from ..evidence.reference import Reference
from ..evidence.torch_loading import import_torch
from .cases import Case
from .torch_quantizers import quantized
from .tuned_loading import loading_of_bundle, told_tuning


class Runner(Protocol):
    """What both sides can do."""

    engine: str
    load_ms: float
    tokenizer: Tokenizer
    eos_token_ids: tuple[int, ...]  # the usual one first

    def time(self, image: str, prompt: str, steps: int) -> Timings:
        """One answer of `steps` decode steps with nothing cached."""

    def prepare(self, case: Case) -> Request:
        """The prompt of a case with its images encoded."""

    def logits(self, request: Request, positions: Ints) -> Floats:
        """Logits [positions, vocab] at some text positions of a prompt."""

    def greedy(self, request: Request, tokens: int) -> list[int]:
        """Up to `tokens` token ids, without an end token."""


class BundleRunner:
    """The bundle on lensmith's runtime; with `tuned` the defaults that were measured here count over `threads`."""

    def __init__(self, path: str | Path, *, threads: int, tuned: bool = False) -> None:
        started = time.perf_counter()
        bundle = open_bundle(path)
        self.model = Model(bundle, prefix_bytes=0, **loading_of_bundle(bundle, threads, tuned=tuned))
        self.load_ms = _since(started)
        self.engine = engine_name(self.model) + told_tuning(self.model.tuning)
        self.tokenizer = self.model.prompts.tokenizer
        self.eos_token_ids = tuple(self.model.manifest.asked().eos_token_ids)

    def time(self, image: str, prompt: str, steps: int) -> Timings:
        self.model.forget()
        options = GenerationOptions(steps + 1, ignore_eos=True, draft=False)  # PyTorch has none either
        answer = self.model.ask(prompt, [image] if image else [], options)
        answer.read()
        return answer.timings

    def prepare(self, case: Case) -> Request:
        return self.model.prepare([user_message(case.prompt, case.images)])

    def logits(self, request: Request, positions: Ints) -> Floats:
        """Runs text and images in turn, so that logits are made for text alone."""
        ids, rows = request.prompt.ids, request.positions
        parts, begin = [np.zeros((0, self.model.decoder.vocab), np.float32)], 0
        spans = [*request.prompt.image_spans.tolist(), [len(ids), len(ids)]]
        self.model.forget()
        with self.model.conversation() as conversation:
            for index, (first, last) in enumerate(spans):
                if begin < first:
                    text = conversation.run(Step(ids[begin:first], rows[:, begin:first], num_logits=first - begin))
                    parts.append(text.copy())
                if first < last:
                    features = request.images[index].features
                    conversation.run(Step(ids[first:last], rows[:, first:last], features, num_logits=0))
                begin = last
        rank = np.cumsum(text_mask(request)) - 1
        chosen: Floats = np.concatenate(parts)[rank[positions]]
        return chosen

    def greedy(self, request: Request, tokens: int) -> list[int]:
        ids: list[int] = []
        self.model.forget()
        with self.model.conversation() as conversation:
            logits = conversation.prefill(request)
            for index in range(tokens):
                token = int(logits[-1].argmax())
                if token in self.eos_token_ids:
                    break
                ids.append(token)
                if index + 1 < tokens:
                    positions = text_positions(1, request.next_position + index)
                    logits = conversation.run(Step(np.array([token], np.int64), positions))
        return ids


def engine_name(model: Model) -> str:
    """The libraries that compute a bundle, with their versions."""
    if model.manifest.options.format == "gguf":
        return f"llama.cpp of llama-cpp-python {version('llama-cpp-python')}"
    own = f" + lensmith's kernels for {wanted_instructions(True)}" if model.kernels else ""
    return f"ONNX Runtime {onnxruntime.__version__}{own}"


class PyTorchRunner:
    """The checkpoint in PyTorch, with prompts and patches as the bundle has them."""

    def __init__(
        self,
        checkpoint: str | Path,
        bundle_path: str | Path,
        *,
        dtype: str,
        threads: int,
        adapter: str | Path | None = None,
        quantizer: str | None = None,
    ) -> None:
        import_torch()  # imports are no part of the load time
        bundle = open_bundle(bundle_path)
        started = time.perf_counter()
        self.model = Reference(checkpoint, dtype, threads=threads, adapter=adapter)
        self.prompts = open_prompt(bundle.path, prompt_spec(bundle.manifest))
        self.engine = self.model.name
        if quantizer is not None:
            self.engine += f", {quantized(self.model.model, quantizer)}"
        self.load_ms = _since(started)
        self.images = image_spec(bundle.manifest)
        self.positions = position_spec(bundle.manifest, self.prompts)
        self.tokenizer = self.prompts.tokenizer
        self.eos_token_ids = tuple(bundle.manifest.asked().eos_token_ids)

    def time(self, image: str, prompt: str, steps: int) -> Timings:
        timings = Timings()
        request = self.prepare(Case("", (image,) if image else (), prompt), timings)
        answer = self.model.greedy(request, steps + 1, ignore_eos=True)
        timings.prefill_ms, timings.decode_ms = answer.prefill_ms, sum(answer.step_ms)
        timings.new_tokens = len(answer.ids)
        return timings

    def prepare(self, case: Case, timings: Timings | None = None) -> Request:
        timings = timings or Timings()
        images = tuple(self._encode(path, timings) for path in case.images)
        messages = [user_message(case.prompt, case.images)]
        request = make_request(self.prompts, self.positions, messages, images)
        timings.prompt_tokens = len(request.prompt)
        timings.image_tokens = sum(len(image.features) for image in images)
        return request

    def _encode(self, path: str, timings: Timings) -> EncodedImage:
        started = time.perf_counter()
        patches, grid = preprocess(open_image(path), self.images)
        timings.image_ms += _since(started)
        features = self.model.vision(patches, grid)
        timings.vision_ms += self.model.last_ms
        return EncodedImage(b"", grid, features)

    def logits(self, request: Request, positions: Ints) -> Floats:
        chosen: Floats = self.model.logits(request)[positions]
        return chosen

    def greedy(self, request: Request, tokens: int) -> list[int]:
        ids = self.model.greedy(request, tokens, ends=self.eos_token_ids).ids
        return [token for token in ids if token not in self.eos_token_ids]


def text_mask(request: Request) -> NDArray[np.bool_]:
    """Which positions of a prompt [seq] are not image tokens."""
    text = np.ones(len(request.prompt), bool)
    for first, last in request.prompt.image_spans.tolist():
        text[first:last] = False
    return text


def continued(request: Request, ids: Ints) -> Request:
    """A conversation with tokens of its answer behind it."""
    prompt = replace(request.prompt, ids=np.concatenate([request.prompt.ids, ids]))
    positions = np.concatenate([request.positions, text_positions(len(ids), request.next_position)], axis=1)
    return Request(prompt, positions, request.next_position + len(ids), request.images)


def _since(started: float) -> float:
    return 1000 * (time.perf_counter() - started)
