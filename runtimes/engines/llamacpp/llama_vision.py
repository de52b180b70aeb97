"""A vision encoder on llama.cpp's mtmd with the interface of the ONNX Runtime one: patches in, features out.

mtmd takes images of 8 bits for each colour and prepares them itself. It leaves alone what has the right size already,
so the patches, which come from such an image, are put together again and reach the encoder as they are.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ....targets.errors import InputError, LensmithError
from ...media.images import Grid, Patches
from ...media.pixels import PixelSpec, grid_tokens, to_frames
from ...media.resize import UInt8
from ...media.tiles import TileSpec
from ..contract import Floats, ImageFeatures
from .gguf_check import check_vision
from .library import (
    MESSAGES,
    LlamaModel,
    compute,
    mtmd,
    refused,
)

IMAGE_CHUNK = 1  # mtmd_input_chunk_type


class LlamaVision:
    """Encodes one image, or one temporal patch of a video, at a time."""

    def __init__(
        self, path: Path, model: LlamaModel, spec: PixelSpec, *, most_tokens: int, threads: int | None, exact: bool
    ) -> None:
        self.spec, self.model = spec, model
        self.copies = 2 if isinstance(spec, TileSpec) else 1  # of a tile, which mtmd also has as the whole image
        library = mtmd()
        check_vision(path, model.hidden)
        options = library.mtmd_context_params_default()
        options.use_gpu = options.print_timings = options.warmup = False
        options.n_threads = model.threads(threads)
        options.flash_attn_type = 0 if exact else -1
        options.image_min_tokens, options.image_max_tokens = 1, most_tokens  # so that nothing is resized again
        MESSAGES.clear()
        self._free = library.mtmd_free
        self.context = library.mtmd_init_from_file(os.fsencode(path), model.handle, options)
        if not self.context:
            raise refused(path, "loaded")

    def __del__(self) -> None:
        if getattr(self, "context", None):
            self._free(self.context)
            self.context = None

    def __call__(self, patches: Patches, grid: Grid) -> ImageFeatures:
        """Features [tokens, hidden] of patches with their grid; InputError where it resizes."""
        frames = to_frames(patches, grid, self.spec)  # [temporal patches or tiles, frames of each, height, width, 3]
        expected = grid_tokens(grid, self.spec) // len(frames)
        return ImageFeatures.join([self._encode(group, expected) for group in frames])

    def _encode(self, frames: UInt8, expected: int) -> ImageFeatures:
        same = all(np.array_equal(frame, frames[0]) for frame in frames[1:])
        with _bitmaps(frames[:1] if same else frames) as bitmaps, _chunks(self.context, bitmaps, self.copies) as chunk:
            library = mtmd()
            tokens = int(library.mtmd_input_chunk_get_n_tokens(chunk))
            if tokens != expected:
                raise InputError(
                    f"llama.cpp makes {tokens} tokens of an image of {frames.shape[2]} x {frames.shape[1]} pixels, "
                    f"expected {expected}; the encoder's file and the manifest do not belong together"
                )
            if code := compute(library.mtmd_encode_chunk, self.context, chunk):
                raise LensmithError(f"llama.cpp could not encode an image of {tokens} tokens (code {code})")
            rows = np.ctypeslib.as_array(library.mtmd_get_output_embd(self.context), (tokens, self.model.input_width))
            return self._features(rows.astype(np.float32, copy=True))

    def _features(self, rows: Floats) -> ImageFeatures:
        """Rows [tokens, hidden * (1 + taps)] as features and DeepStack's taps."""
        hidden = self.model.hidden
        parts = [rows[:, begin : begin + hidden] for begin in range(0, rows.shape[1], hidden)]
        return ImageFeatures(parts[0], np.stack(parts[1:]) if len(parts) > 1 else None)


@contextmanager
def _bitmaps(frames: UInt8) -> Iterator[list[Any]]:
    """The frames of one temporal patch as bitmaps of mtmd; two of them are seen as one step of a video."""
    library, made = mtmd(), []
    try:
        for frame in np.ascontiguousarray(frames):
            height, width, _ = frame.shape
            made.append(library.mtmd_bitmap_init(width, height, frame.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))))
            library.mtmd_bitmap_set_mergeable(made[-1], len(frames) > 1)
        yield made
    finally:
        for bitmap in made:
            library.mtmd_bitmap_free(bitmap)


@contextmanager
def _chunks(context: Any, bitmaps: list[Any], copies: int) -> Iterator[Any]:
    """The chunk that mtmd makes of bitmaps, or the last of its copies, text around it left out."""
    library = mtmd()
    parts = [library.mtmd_input_part(None, bitmap) for bitmap in bitmaps]
    pointers = (ctypes.POINTER(library.mtmd_input_part) * len(parts))(*map(ctypes.pointer, parts))
    made = library.mtmd_input_chunks_init()
    try:
        if code := library.mtmd_tokenize_from_parts(context, made, pointers, len(parts), False):
            raise LensmithError(f"llama.cpp does not take an image (code {code})")
        every = [library.mtmd_input_chunks_get(made, index) for index in range(library.mtmd_input_chunks_size(made))]
        images = [chunk for chunk in every if library.mtmd_input_chunk_get_type(chunk) == IMAGE_CHUNK]
        if len(images) != copies:
            raise LensmithError(f"llama.cpp makes {len(images)} images of one")
        yield images[-1]
    finally:
        library.mtmd_input_chunks_free(made)
