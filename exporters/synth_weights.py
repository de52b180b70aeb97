"""Random weights that behave like trained ones: which tensors an architecture has, their numbers, their file.

A deep transformer with plain Gaussian weights collapses: its tokens become alike, attention is uniform, logits are
flat, and neither parity nor quantization figures mean anything. The rules of `FILLS` prevent that.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Progress = Callable[[int, int], None]

BLOCK = 2**20  # elements made at a time: 4 MB of float32, which stays in the cache
THREADS = 2  # numpy generators release the interpreter lock
ITEM_BYTES = {"BF16": 2, "F32": 4}


@dataclass(frozen=True)
class Fill:
    """How the numbers of a kind of tensor are drawn: normal, of this mean and standard deviation, and then shaped."""

    std: float = 0.02  # the initializer_range of these models
    mean: float = 0.0
    projection: bool = False  # each output row has its own scale, as in trained matrices; narrow inputs get more
    gain: float = 1.0
    query_key_gain: float = 1.0  # for the first two thirds of the rows of a fused query, key, value matrix
    outliers: bool = False  # the same few output channels in every layer 8 times, some input columns 5 times as strong
    zero_sum: bool = False  # each row sums to zero, so that a constant input adds nothing to the residual stream


FILLS: Mapping[str, Fill] = {
    "embedding": Fill(),
    "position": Fill(std=0.2),
    "bias": Fill(),
    "norm": Fill(std=0.1, mean=1.0),
    "qk_norm": Fill(std=0.1, mean=1.5),  # attention far from uniform: a wrong rotary position shows
    "final_norm": Fill(std=0.1, mean=4.0),  # next-token distributions as peaked as a trained model's
    "linear": Fill(projection=True),
    "qkv": Fill(projection=True, query_key_gain=2.0),
    "attention_out": Fill(projection=True, gain=0.3, outliers=True),
    "residual": Fill(projection=True, outliers=True, zero_sum=True),
}


@dataclass(frozen=True)
class SynthTensor:
    """A tensor to be made; `kind` is a key of `FILLS`."""

    name: str
    shape: tuple[int, ...]
    kind: str
    dtype: str = "BF16"

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


# Tables of an architecture's tensors: name -> (kind, shape in the words of a dictionary of sizes).
Table = Mapping[str, tuple[str, str]]

QWEN3_LAYER: Table = {
    "input_layernorm.weight": ("norm", "hidden"),
    "self_attn.q_proj.weight": ("linear", "query hidden"),
    "self_attn.k_proj.weight": ("linear", "key hidden"),
    "self_attn.v_proj.weight": ("linear", "key hidden"),
    "self_attn.q_norm.weight": ("qk_norm", "head"),
    "self_attn.k_norm.weight": ("qk_norm", "head"),
    "self_attn.o_proj.weight": ("attention_out", "hidden query"),
    "post_attention_layernorm.weight": ("norm", "hidden"),
    "mlp.gate_proj.weight": ("linear", "inner hidden"),
    "mlp.up_proj.weight": ("linear", "inner hidden"),
    "mlp.down_proj.weight": ("residual", "hidden inner"),
}
QWEN3_ENDS: Table = {
    "embed_tokens.weight": ("embedding", "vocab hidden"),
    "norm.weight": ("final_norm", "hidden"),
}
QWEN_VISION_ENDS: Table = {
    "patch_embed.proj.weight": ("linear", "hidden channels frames patch patch"),
    "patch_embed.proj.bias": ("bias", "hidden"),
    "pos_embed.weight": ("position", "positions hidden"),
}
QWEN_VISION_BLOCK: Table = {
    "norm1.weight": ("norm", "hidden"),
    "norm1.bias": ("bias", "hidden"),
    "attn.qkv.weight": ("qkv", "qkv hidden"),
    "attn.qkv.bias": ("bias", "qkv"),
    "attn.proj.weight": ("attention_out", "hidden hidden"),
    "attn.proj.bias": ("bias", "hidden"),
    "norm2.weight": ("norm", "hidden"),
    "norm2.bias": ("bias", "hidden"),
    "mlp.linear_fc1.weight": ("linear", "inner hidden"),
    "mlp.linear_fc1.bias": ("bias", "inner"),
    "mlp.linear_fc2.weight": ("residual", "hidden inner"),
    "mlp.linear_fc2.bias": ("bias", "hidden"),
}
QWEN_MERGER: Table = {
    "norm.weight": ("norm", "normed"),
    "norm.bias": ("bias", "normed"),
    "linear_fc1.weight": ("linear", "merged merged"),
    "linear_fc1.bias": ("bias", "merged"),
    "linear_fc2.weight": ("linear", "out merged"),
    "linear_fc2.bias": ("bias", "out"),
}


def _expand(prefix: str, table: Table, sizes: Mapping[str, int]) -> Iterator[SynthTensor]:
    for name, (kind, shape) in table.items():
        yield SynthTensor(prefix + name, tuple(sizes[word] for word in shape.split()), kind)


def qwen3_vl_tensors(config: Mapping[str, Any]) -> Iterator[SynthTensor]:
    """Every tensor of a Qwen3-VL checkpoint with tied embeddings."""
    yield from _qwen3_text("model.language_model.", config["text_config"])
    yield from _qwen_vision("model.visual.", config["vision_config"])


def _qwen3_text(prefix: str, text: Mapping[str, Any]) -> Iterator[SynthTensor]:
    head = text["head_dim"]
    sizes = {
        "hidden": text["hidden_size"], "inner": text["intermediate_size"], "vocab": text["vocab_size"], "head": head,
        "query": text["num_attention_heads"] * head, "key": text["num_key_value_heads"] * head,
    }  # fmt: skip
    yield from _expand(prefix, QWEN3_ENDS, sizes)
    for layer in range(text["num_hidden_layers"]):
        yield from _expand(f"{prefix}layers.{layer}.", QWEN3_LAYER, sizes)


def _qwen_vision(prefix: str, vision: Mapping[str, Any]) -> Iterator[SynthTensor]:
    hidden = vision["hidden_size"]
    merged = hidden * vision["spatial_merge_size"] ** 2
    sizes = {
        "hidden": hidden, "inner": vision["intermediate_size"], "qkv": 3 * hidden, "merged": merged,
        "out": vision["out_hidden_size"], "channels": vision["in_channels"], "frames": vision["temporal_patch_size"],
        "patch": vision["patch_size"], "positions": vision["num_position_embeddings"],
    }  # fmt: skip
    yield from _expand(prefix, QWEN_VISION_ENDS, sizes)
    for block in range(vision["depth"]):
        yield from _expand(f"{prefix}blocks.{block}.", QWEN_VISION_BLOCK, sizes)
    yield from _expand(f"{prefix}merger.", QWEN_MERGER, sizes | {"normed": hidden})
    for tap in range(len(vision.get("deepstack_visual_indexes", ()))):  # these normalize after the 2x2 merge
        yield from _expand(f"{prefix}deepstack_merger_list.{tap}.", QWEN_MERGER, sizes | {"normed": merged})


def _generator(*seed: object) -> np.random.Generator:
    digest = hashlib.sha256(repr(seed).encode()).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(digest[:16], "little")))


def _matrix_shape(tensor: SynthTensor) -> tuple[int, int]:
    """Rows (outputs) and columns (inputs); a vector is one row."""
    rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
    return rows, math.prod(tensor.shape) // rows


def _row_scales(tensor: SynthTensor, seed: int) -> NDArray[np.float32]:
    """The standard deviation of each row; [rows, 1]."""
    fill, (rows, columns) = FILLS[tensor.kind], _matrix_shape(tensor)
    scale = np.full(rows, fill.std * fill.gain, np.float32)
    if fill.projection:
        spread = _generator(seed, tensor.name, "rows").standard_normal(rows, dtype=np.float32)
        scale *= max(1.0, math.sqrt(1024 / columns)) * np.exp(0.25 * spread)
    if fill.outliers:  # seeded by the width alone: the same channels in every layer of a tower
        scale[_generator(seed, "outliers", rows).choice(rows, max(2, rows // 512), replace=False)] *= 8
    scale[: rows // 3 * 2] *= fill.query_key_gain
    return scale[:, None]


def blocks(tensor: SynthTensor, seed: int) -> Iterator[Callable[[], NDArray[np.float32]]]:
    """The values of a tensor as independent jobs, each making some whole rows; they depend on seed, name and shape."""
    fill, (rows, columns) = FILLS[tensor.kind], _matrix_shape(tensor)
    scale, step = _row_scales(tensor, seed), max(1, BLOCK // columns)
    strong = _generator(seed, tensor.name, "columns").choice(columns, max(1, columns // 256), replace=False)

    def make(start: int) -> NDArray[np.float32]:
        part = scale[start : start + step]
        values = _generator(seed, tensor.name, start).standard_normal((len(part), columns), dtype=np.float32)
        values *= part
        if fill.outliers:
            values[:, strong] *= 5
        if fill.zero_sum:
            values -= values.mean(axis=1, keepdims=True)
        values += np.float32(fill.mean)
        return values

    for start in range(0, rows, step):
        yield lambda start=start: make(start)  # type: ignore[misc]


def encode(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """The stored bits, rounded to nearest with ties away from zero; `values` is overwritten."""
    if dtype == "F32":
        return values
    bits = values.view(np.uint32)
    bits += np.uint32(0x8000)
    bits >>= np.uint32(16)
    return bits.astype(np.uint16)


def header_of(tensors: Iterable[SynthTensor]) -> bytes:
    """The start of a safetensors file: the length in 8 bytes, then the JSON header, padded to 8."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes],
        }  # fmt: skip
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def file_order(tensors: Iterable[SynthTensor]) -> list[SynthTensor]:
    """The order of the safetensors library: widest type first, then by name."""
    return sorted(tensors, key=lambda tensor: (-ITEM_BYTES[tensor.dtype], tensor.name))


def write_weights(path: Path, tensors: Iterable[SynthTensor], seed: int, progress: Progress) -> None:
    """Write one safetensors file; threads make blocks ahead, and memory holds a few blocks only."""
    ordered = file_order(tensors)
    done, total = 0, sum(tensor.nbytes for tensor in ordered)
    with open(path, "wb") as file, ThreadPoolExecutor(THREADS) as pool:
        file.write(header_of(ordered))
        jobs = ((make, tensor.dtype) for tensor in ordered for make in blocks(tensor, seed))
        for data in _ahead(pool, lambda job: encode(job[0](), job[1]), jobs):
            file.write(data.data)
            done += data.nbytes
            progress(done, total)


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[Any], NDArray[Any]], jobs: Iterable[Any]
) -> Iterator[NDArray[Any]]:
    """Results in the order of the jobs, computed a few ahead."""
    pending: deque[Any] = deque()
    for job in jobs:
        pending.append(pool.submit(work, job))
        if len(pending) > 2 * THREADS:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
