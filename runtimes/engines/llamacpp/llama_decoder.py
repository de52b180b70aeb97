"""A decoder on llama.cpp with the interface of the ONNX Runtime one: tokens and image features in, logits out.

llama.cpp takes token ids or embeddings in a batch, never both, so a step is cut where text and image tokens meet.
Image features go in as embeddings, DeepStack's behind them, each with its own rotary positions; nothing of llama.cpp's
tokenizer or of its image handling is in between.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ....targets.errors import InputError, LensmithError
from ..contract import Floats, ImageFeatures, Ints, Step
from ..decoding import EngineDecoder
from .library import LlamaModel, compute, llama
from .llama_states import LlamaStates

F32, F16 = 0, 1  # ggml_type
AXES = 4  # llama.cpp's M-RoPE has a fourth axis, which these models do not use
HIDDEN_BATCH = 64  # most tokens at once whose hidden states are wanted: llama.cpp makes logits of them, too
CONTEXT_STEP = 256  # llama.cpp rounds contexts up to it


@dataclass(frozen=True)
class Settings:
    """How a decoder computes."""

    capacity: int  # tokens
    batch: int  # most tokens at once
    threads: int | None = None
    decode_threads: int | None = None  # of single tokens; None: as many, 0: one for each core
    exact: bool = False  # float32 KV cache, and attention without the approximations of flash attention


class LlamaDecoder(EngineDecoder[LlamaStates]):
    """A language model, of which each conversation has a context with states that llama.cpp keeps."""

    kind = LlamaStates

    def __init__(self, model: LlamaModel, settings: Settings, *, image_token_id: int, mrope: bool) -> None:
        super().__init__()
        self.model, self.settings, self.mrope = model, settings, mrope
        self.image_token_id, self.capacity, self.batch = image_token_id, settings.capacity, settings.batch
        self.hidden, self.vocab, self.recurrent = model.hidden, model.vocab, model.recurrent
        self.taps = model.input_width // model.hidden - 1

    def open_states(self) -> LlamaStates:
        """A context of its own. Raises InputError where llama.cpp has no memory for it."""
        settings, options = self.settings, llama().llama_context_default_params()
        options.n_ctx = -(-settings.capacity // CONTEXT_STEP) * CONTEXT_STEP
        options.n_batch = options.n_ubatch = min(settings.batch, options.n_ctx)
        few = settings.threads if settings.decode_threads is None else settings.decode_threads
        options.n_threads, options.n_threads_batch = self.model.threads(few), self.model.threads(settings.threads)
        options.offload_kqv = options.op_offload = False
        options.no_perf = True
        options.type_k = options.type_v = F32 if settings.exact else F16
        options.flash_attn_type = 0 if settings.exact else -1  # off, or as llama.cpp chooses
        return LlamaStates(self.model, options, self.capacity)

    def _compute(self, states: LlamaStates, step: Step) -> Floats:
        ids, positions, wanted = step.ids, step.positions, max(step.num_logits, step.num_hidden_states)
        first, used = len(ids) - wanted, 0
        llama().llama_set_embeddings(states.context, step.num_hidden_states > 0)
        logits, hidden = [np.zeros((0, self.vocab), np.float32)], [np.zeros((0, self.hidden), np.float32)]
        for begin, end, of_image in self._segments(ids, self.batch if not step.num_hidden_states else HIDDEN_BATCH):
            rows = None
            if of_image:
                rows, used = self._embeddings(step.images, used, end - begin), used + end - begin
            places = self._decode(states, ids[begin:end], rows, positions[:, begin:end], max(0, first - begin))
            chosen = range(max(places.start, len(ids) - step.num_logits - begin), places.stop)
            logits += _rows(llama().llama_get_logits_ith, states, chosen, self.vocab)
            if step.num_hidden_states:
                hidden += _rows(llama().llama_get_embeddings_ith, states, places, self.hidden)
        states.note(positions[0])
        states.hidden_states = np.concatenate(hidden)
        return np.concatenate(logits)

    def _segments(self, ids: Ints, longest: int) -> Iterator[tuple[int, int, bool]]:
        """Begin and end of runs of text tokens or image tokens, none longer than `longest`."""
        of_image = ids == self.image_token_id
        turns = np.flatnonzero(np.diff(of_image)) + 1
        for begin, end in pairwise([0, *map(int, turns), len(ids)]):
            for start in range(begin, end, longest):
                yield start, min(start + longest, end), bool(of_image[begin])

    def _embeddings(self, images: ImageFeatures | None, begin: int, count: int) -> Floats:
        """Rows [count, hidden * (1 + taps)] of the image tokens from `begin` on."""
        if images is None or len(images) < begin + count:
            raise InputError(f"the step has more image tokens than features ({0 if images is None else len(images)})")
        part = images[begin : begin + count]
        taps = [] if part.deepstack is None else list(part.deepstack)
        return np.ascontiguousarray(np.concatenate([part.features, *taps], axis=1), dtype=np.float32)

    def _decode(self, states: LlamaStates, ids: Ints, rows: Floats | None, positions: Ints, first: int) -> range:
        """One batch; the places of its tokens from `first` on, of which llama.cpp keeps what it made."""
        count, library = len(ids), llama()
        wanted = np.zeros(count, np.int8)
        wanted[first:] = 1
        # The batch has addresses alone: what lies there must have a name until it was computed.
        tokens, sequence_counts = ids.astype(np.int32), np.ones(count, np.int32)
        places = self._places(positions, of_image=rows is not None)
        sequences = (ctypes.POINTER(ctypes.c_int32) * (count + 1))(
            *[ctypes.pointer(ctypes.c_int32(0))] * count, ctypes.POINTER(ctypes.c_int32)()
        )
        batch = library.llama_batch(
            n_tokens=count,
            token=None if rows is not None else _pointer(tokens, ctypes.c_int32),
            embd=None if rows is None else _pointer(rows, ctypes.c_float),
            pos=_pointer(places, ctypes.c_int32),
            n_seq_id=_pointer(sequence_counts, ctypes.c_int32),
            seq_id=sequences,
            logits=_pointer(wanted, ctypes.c_int8),
        )
        if code := compute(library.llama_decode, states.context, batch):
            raise LensmithError(f"llama.cpp could not compute {count} tokens behind {states.length} (code {code})")
        return range(first, count)

    def _places(self, positions: Ints, *, of_image: bool) -> Any:
        """Positions as llama.cpp takes them: one for each token of text, time, height and width one behind another."""
        rows = positions if of_image and self.mrope else positions[:1]
        padded = np.zeros((AXES if len(rows) > 1 else 1, positions.shape[1]), np.int32)
        padded[: len(rows)] = rows
        return padded.reshape(-1)


def _rows(read: Any, states: LlamaStates, places: range, width: int) -> list[Floats]:
    """What llama.cpp made of tokens of the latest batch, each [1, width]."""
    found = [read(states.context, place) for place in places]
    return [np.ctypeslib.as_array(pointer, (1, width)).astype(np.float32, copy=True) for pointer in found]


def _pointer(array: Any, kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))
