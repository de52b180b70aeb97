"""The checkpoint itself in PyTorch, through transformers: what every compiled model is measured against."""

from __future__ import annotations

import importlib
import inspect
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from ...runtimes.engines.contract import Floats, ImageFeatures, Ints
from ...runtimes.prompt.requests import Request
from ...targets.errors import InputError, closest
from ..checkpoint.folder import open_checkpoint
from .torch_loading import import_torch, load_model

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class GreedyRun:
    """Tokens chosen greedily, the logits each was chosen from, and the time of each phase."""

    ids: list[int]
    logits: Floats  # [tokens, vocab]
    prefill_ms: float
    step_ms: tuple[float, ...]  # of each decode step behind the prefill


@dataclass(frozen=True)
class EncoderOutput:
    """What transformers reads of the output of a vision encoder."""

    pooler_output: list[Any]  # of each image [tokens, hidden]
    deepstack_features: list[list[Any]]  # by tap, then by image

    def to_tuple(self) -> tuple[Any, ...]:
        """The values, which transformers 5.24 asks for in order."""
        return self.pooler_output, self.deepstack_features


class Reference:
    """A checkpoint in PyTorch on the CPU, fed with the patches, grids and token ids of lensmith's own runtime.

    Positions and the merging of features of images and videos stay transformers' own. `last_ms` is the time of the
    latest call of `vision`, `start` or `step`.
    """

    def __init__(
        self,
        path: str | Path,
        dtype: str = "float32",
        *,
        threads: int | None = None,
        adapter: str | Path | None = None,
    ) -> None:
        """Load all weights. Raises MissingExtra without PyTorch, and InputError for weights that do not fit.

        `threads` None means as many as PyTorch uses. Weights that are no floats in their files, or that an adapter
        changes, are those that lensmith makes of them: neither libraries of quantized formats nor peft are needed.
        """
        if dtype not in DTYPES:
            raise InputError(f"the reference cannot run in {dtype!r}; {closest(dtype, DTYPES)}")
        self.torch, transformers = import_torch()
        self.threads = threads or self.torch.get_num_threads()
        self.name = f"PyTorch {self.torch.__version__}, transformers {transformers.__version__}, {dtype}"
        self.dtype = getattr(self.torch, dtype)
        self.checkpoint = open_checkpoint(path, adapter)
        self.model = load_model(transformers, self.checkpoint, self.dtype)
        self.one_size, self.tiled = self.checkpoint.conventions.one_size, self.checkpoint.conventions.tiled
        self.last_ms = 0.0
        self._cache: Any = None
        renamed = "cache" in inspect.signature(self.model.forward).parameters  # by transformers 5.24
        self._cache_name = "cache" if renamed else "past_key_values"

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The end tokens that transformers' own generation would use."""
        found = self.model.generation_config.eos_token_id
        return frozenset(found if isinstance(found, list) else [] if found is None else [found])

    def vision(self, patches: Floats, grid: tuple[int, int, int]) -> ImageFeatures:
        """Features of one image or video: patches [patches, patch_dim] and their grid (frames, height, width).

        Models for images of one size take their pixels [tiles, 3, height, width] and no grid.
        """
        torch = self.torch
        grids = () if self.one_size else (torch.tensor([grid]),)
        pixels = torch.from_numpy(patches)
        with self.running():
            out = self.model.model.get_image_features(pixels[None] if self.tiled else pixels, *grids, return_dict=True)
        taps = [_numpy(tap[0]) for tap in getattr(out, "deepstack_features", None) or ()]
        return ImageFeatures(_numpy(out.pooler_output[0]), np.stack(taps) if taps else None)

    def logits(self, request: Request, num_logits: int | None = None) -> Floats:
        """Logits [num_logits, vocab] of the last positions of a prompt, of all of them unless told."""
        logits = self.start(request, 0 if num_logits is None else num_logits)
        self._cache = None
        return logits

    def start(self, request: Request, num_logits: int = 1) -> Floats:
        """Run a whole prompt into a new cache: logits [num_logits, vocab] of its last positions, 0 meaning all."""
        config = self.model.config.get_text_config()
        self._cache = importlib.import_module("transformers").DynamicCache(config=config)
        self.model.model.rope_deltas = None  # transformers would reuse those of an earlier prompt
        ids = self.torch.from_numpy(request.prompt.ids)[None]
        return self._forward(ids, logits_to_keep=num_logits, **self.image_inputs(ids, request))

    def step(self, token: int) -> Floats:
        """Append one token to the cache: logits [1, vocab] of what follows."""
        return self._forward(self.torch.tensor([[token]]))

    def greedy(
        self, request: Request, steps: int, *, ignore_eos: bool = False, ends: Collection[int] | None = None
    ) -> GreedyRun:
        """Choose the likeliest token up to `steps` times; stops behind an end token unless these are ignored.

        `ends` are the end tokens; None: those of transformers.
        """
        ends = () if ignore_eos else self.eos_token_ids if ends is None else ends
        ids: list[int] = []
        logits, times = [self.start(request)], [self.last_ms]
        for _ in range(steps):
            ids.append(int(logits[-1][-1].argmax()))
            if len(ids) == steps or ids[-1] in ends:
                break
            logits.append(self.step(ids[-1]))
            times.append(self.last_ms)
        self._cache = None
        return GreedyRun(ids, np.concatenate(logits), times[0], tuple(times[1:]))

    def recurrent_states(self) -> dict[str, Floats]:
        """Those of linear attention layers behind the latest `start` or `step`, by the names that bundles use."""
        states: dict[str, Floats] = {}
        for index, layer in enumerate(self._cache.layers):
            if hasattr(layer, "recurrent_states"):
                inputs = layer.conv_states[0][..., 1:]  # no step reads the oldest
                states[f"past.{index}.conv"] = _numpy(inputs).copy()
                states[f"past.{index}.recurrent"] = _numpy(layer.recurrent_states[0]).copy()
        return states

    def image_inputs(self, ids: Any, request: Request) -> dict[str, Any]:
        """Features that are ready instead of pixels, and what transformers computes the positions from."""
        if not request.images:
            return {}
        if self.one_size:
            features = [image.features for image in request.images]
            return {"mm_encoder_outputs": {"image": self._as_encoder_output(features)}}
        config, torch = self.model.config, self.torch
        video_token_id = getattr(config, "video_token_id", -1)
        types = (ids == config.image_token_id).int() + 2 * (ids == video_token_id).int()
        inputs: dict[str, Any] = {"mm_encoder_outputs": {}, "mm_token_type_ids": types}
        for kind, of_video in (("image", False), ("video", True)):
            chosen = request.prompt.of_video == of_video
            if chosen.any():
                features = [image.features for image in compress(request.images, chosen)]
                inputs["mm_encoder_outputs"][kind] = self._as_encoder_output(features)
                # Temporal patches of a video one by one, which is how get_rope_index counts them.
                inputs[f"{kind}_grid_thw"] = torch.from_numpy(request.prompt.grids[chosen])
                if of_video and request.prompt.intervals:  # or all at once, with the seconds between them
                    inputs["second_per_grid_ts"] = torch.tensor([*compress(request.prompt.intervals, chosen)])
        return inputs

    def _as_encoder_output(self, images: list[ImageFeatures]) -> EncoderOutput:
        """The features of images, in the shape of `get_image_features`."""

        def tensor(array: Floats) -> Any:
            return self.torch.from_numpy(np.ascontiguousarray(array)).to(self.dtype)

        taps = 0 if images[0].deepstack is None else len(images[0].deepstack)
        deepstack = [[tensor(i.deepstack[tap]) for i in images if i.deepstack is not None] for tap in range(taps)]
        return EncoderOutput([tensor(i.features) for i in images], deepstack)

    def _forward(self, ids: Ints, *, logits_to_keep: int = 1, **inputs: Any) -> Floats:
        with self.running():
            out = self.model(input_ids=ids, **{self._cache_name: self._cache}, logits_to_keep=logits_to_keep, **inputs)
        return _numpy(out.logits[0])

    @contextmanager
    def running(self) -> Iterator[None]:
        others = self.torch.get_num_threads()  # the setting belongs to the whole process
        self.torch.set_num_threads(self.threads)
        started = time.perf_counter()
        try:
            with self.torch.inference_mode():
                yield
            self.last_ms = 1000 * (time.perf_counter() - started)
        finally:
            self.torch.set_num_threads(others)


def _numpy(tensor: Any) -> Floats:
    array: Floats = tensor.float().numpy()
    return array
