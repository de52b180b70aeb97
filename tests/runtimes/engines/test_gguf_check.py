"""Metadata and tensors of GGUF files that do not belong together, value by value: the last right one and wrong ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.runtimes.engines.llamacpp import gguf_check as check
from lensmith.runtimes.engines.llamacpp.gguf_check import (
    LONG,
    MOST,
    check_decoder,
    check_vision,
)
from lensmith.runtimes.engines.llamacpp.header import Header, TensorEntry
from lensmith.targets.errors import InputError

GONE = object()
F32, F16, Q8_0, UNKNOWN = 0, 1, 8, 4
TOKENS = {"model": "gpt2", "tokens": [b"a", b"b", b"ab"], "token_type": np.ones(3, np.int32), "merges": [b"a b"]}


def ints(*values: int) -> Any:
    return np.array(values, np.int32)


def decoder(arch: str, **more: Any) -> dict[str, Any]:
    sizes = {
        "block_count": 2, "context_length": 64, "embedding_length": 8, "feed_forward_length": 16,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 8,
        "attention.value_length": 8, "rope.freq_base": 1e4, "attention.layer_norm_rms_epsilon": 1e-6, **more,
    }  # fmt: skip
    return {"general.architecture": arch, **{f"{arch}.{key}": value for key, value in sizes.items()},
            **{f"tokenizer.ggml.{key}": value for key, value in TOKENS.items()}}  # fmt: skip


DELTA = {
    "ssm.conv_kernel": 4, "ssm.state_size": 4, "ssm.group_count": 2, "ssm.time_step_rank": 4, "ssm.inner_size": 16,
    "full_attention_interval": 2, "rope.dimension_count": 4, "rope.dimension_sections": ints(1, 1, 0, 0),
}  # fmt: skip
DECODERS = {
    "qwen3": decoder("qwen3"),
    "qwen3vl": decoder("qwen3vl", **{"rope.dimension_sections": ints(2, 1, 1, 0), "n_deepstack_layers": 1}),
    "qwen35": decoder("qwen35", **DELTA),
}
CLIP = {
    "image_size": 8, "patch_size": 4, "embedding_length": 8, "feed_forward_length": 16, "block_count": 2,
    "projection_dim": 6, "attention.head_count": 2, "attention.layer_norm_epsilon": 1e-6,
    "image_mean": np.full(3, 0.5), "image_std": np.full(3, 0.25),
}  # fmt: skip
QWEN = {"spatial_merge_size": 2, "is_deepstack_layers": np.array([False, True])}


def encoder(projector: str, **more: Any) -> dict[str, Any]:
    return {"general.architecture": "clip", "clip.projector_type": projector,
            **{f"clip.vision.{key}": value for key, value in (CLIP | more).items()}}  # fmt: skip


def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def block(layer: int, parts: dict[str, int]) -> dict[str, tuple[int, ...]]:
    name, made = f"v.blk.{layer}", dict[str, tuple[int, ...]]()
    for part, outputs in {"attn_out": 8, "ffn_up": 16, **parts}.items():
        made |= linear(f"{name}.{part}", 8, outputs)
    return made | norm(f"{name}.ln1", 8) | norm(f"{name}.ln2", 8) | linear(f"{name}.ffn_down", 16, 8)


# As llama.cpp's clip.cpp reads them, the fastest axis first: patches of 4 x 4 of an image of 8 x 8, features of 6.
QWEN_TENSORS: dict[str, tuple[int, ...]] = {
    "v.patch_embd.weight": (4, 4, 3, 8), "v.patch_embd.weight.1": (4, 4, 3, 8), "v.patch_embd.bias": (8,),
    "v.position_embd.weight": (8, 4), **norm("v.post_ln", 8), **linear("mm.0", 32, 32), **linear("mm.2", 32, 6),
    **block(0, {"attn_qkv": 24}), **block(1, {"attn_qkv": 24}),
    **norm("v.deepstack.1.norm", 32), **linear("v.deepstack.1.fc1", 32, 32), **linear("v.deepstack.1.fc2", 32, 6),
}  # fmt: skip
LLAVA_TENSORS: dict[str, tuple[int, ...]] = {
    "v.class_embd": (8,), "v.patch_embd.weight": (4, 4, 3, 8), "v.position_embd.weight": (8, 5),
    **norm("v.pre_ln", 8), **linear("mm.0", 8, 6), **linear("mm.2", 6, 6),
    **block(0, {"attn_q": 8, "attn_k": 8, "attn_v": 8}), **block(1, {"attn_q": 8, "attn_k": 8, "attn_v": 8}),
}  # fmt: skip
DECODER_TENSORS = {"token_embd.weight": (8, 3), "blk.0.attn_q.weight": (8, 8), "blk.1.attn_q.weight": (8, 8),
                   "output_norm.weight": (8,)}  # fmt: skip
ENCODERS = {"qwen3vl_merger": (encoder("qwen3vl_merger", **QWEN), QWEN_TENSORS),
            "mlp": (encoder("mlp"), LLAVA_TENSORS)}  # fmt: skip


def entries(shapes: dict[str, tuple[int, ...]], kinds: dict[str, int]) -> dict[str, TensorEntry]:
    return {name: TensorEntry(shape, kinds.get(name, F32), 0, 4 * math.prod(shape)) for name, shape in shapes.items()}


def read(monkeypatch: pytest.MonkeyPatch, name: str, *, values: dict[str, Any] | None = None,
         shapes: dict[str, Any] | None = None, kinds: dict[str, int] | None = None) -> None:  # fmt: skip
    """Check a file with some values and shapes in place of its own."""
    metadata, tensors = ENCODERS.get(name) or (DECODERS[name], DECODER_TENSORS)
    prefix = "clip.vision." if name in ENCODERS else f"{name}."
    changed = {
        key if key in metadata or key[0] == "." else prefix + key: value for key, value in (values or {}).items()
    }
    given = {key.lstrip("."): value for key, value in {**metadata, **changed}.items() if value is not GONE}
    shown = {key: value for key, value in {**tensors, **(shapes or {})}.items() if value is not GONE}
    header = Header(Path("x.gguf"), given, entries(shown, kinds or {}))
    monkeypatch.setattr(check, "read_gguf", lambda path: header)
    if name in ENCODERS:
        check_vision(Path("x.gguf"), 6)
    else:
        check_decoder(Path("x.gguf"))


@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_right_files_are_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read(monkeypatch, name)


# A file, a value of its metadata, what may stand there, and what may not with words of the sentence.
VALUES: dict[str, tuple[str, str, list[Any], list[Any], str]] = {
    "architecture": ("qwen3", "general.architecture", [], ["llama4", 3, GONE], "its architecture is"),
    "context": ("qwen3", "context_length", [1, LONG - 1], [0, -1, LONG, 64.0, True, GONE], "context_length"),
    "width": ("qwen3", "feed_forward_length", [1, MOST - 1], [0, MOST, "16", GONE], "feed_forward_length"),
    "layers": ("qwen3", "block_count", [], [0, 1, 3, 5, GONE], "block_count|tensors of 2 layers"),
    "base": ("qwen3", "rope.freq_base", [1e-9], [0.0, -1.0, math.inf, math.nan, 10_000, GONE], "rope.freq_base"),
    "epsilon": ("qwen3", "attention.layer_norm_rms_epsilon", [1e-9], [0.0, math.nan, GONE], "layer_norm_rms_epsilon"),
    "heads": ("qwen3", "attention.head_count", [2, 6], [1, 3, 5], "heads over 2 of 8 values"),
    "odd heads": ("qwen3", "attention.key_length", [2, 10], [1, 7], "heads over 2 of"),
    "sections": ("qwen3vl", "rope.dimension_sections", [ints(4, 0, 0, 0), ints(1, 1, 1, 1)],
                 [ints(2, 1, 0, 0), ints(2, 1, 2, 0), ints(5, -1, 0, 0), ints(2, 1, 1), ints(2, 1, 1, 0, 0),
                  np.array([2.0, 1, 1, 0]), [2, 1, 1, 0], GONE], "rotary sections|rope.dimension_sections"),
    "rotated": ("qwen35", "rope.dimension_count", [], [6, 2, 16, GONE], "rotary sections|rope.dimension_count"),
    "rotated beyond the head": ("qwen35", "attention.key_length", [4, 8], [2], "rotary sections"),
    "taps": ("qwen3vl", "n_deepstack_layers", [0, 1], [2, -1, 1.0, True], "n_deepstack_layers"),
    "drafts": ("qwen35", "nextn_predict_layers", [0, 1], [2, -1, "1"], "nextn_predict_layers"),
    "recurrent": ("qwen35", "attention.recurrent_layers", [ints(1, 0)], [ints(1), ints(1, 0, 1), [1, 0]],
                  "recurrent_layers does not name 2"),
    "value heads": ("qwen35", "ssm.time_step_rank", [2, 8], [1, 3, 5], "no multiple of its key heads"),
    "states": ("qwen35", "ssm.state_size", [1], [0, GONE], "ssm.state_size"),
    "tokens": ("qwen3", "tokenizer.ggml.token_type", [], [np.ones(8, np.int32), GONE], "token_type"),
    "projector": ("mlp", "clip.projector_type", [], ["ldp", GONE], "its architecture and projector"),
    "encoder": ("mlp", "general.architecture", [], ["qwen3", GONE], "its architecture and projector"),
    "features": ("mlp", "projection_dim", [], [5, 7], "its features are . wide, those of the language model 6"),
    "encoder layers": ("mlp", "block_count", [], [1, 3, 100, 0], "tensor|block_count"),
    "encoder epsilon": ("mlp", "attention.layer_norm_epsilon", [1e-9], [0.0, -1.0, GONE], "layer_norm_epsilon"),
    "encoder heads": ("mlp", "attention.head_count", [1, 8], [3, 16, 0], "do not divide|head_count"),
    "image": ("mlp", "image_size", [], [9, 12, 4], "do not divide|v.position_embd.weight"),
    "mean": ("mlp", "image_mean", [np.zeros(3), np.zeros(3, np.float32)],
             [np.zeros(2), np.zeros(4), np.array([0, 1, np.nan]), ints(0, 0, 0), [0.0] * 3, GONE], "image_mean"),
    "spread": ("mlp", "image_std", [np.full(3, -1.0)], [np.array([1.0, 0, 1]), np.array([1, 1, np.inf])], "image_std"),
    "tapped": ("qwen3vl_merger", "is_deepstack_layers", [],
               [np.array([False]), np.array([False, True, False]), [False, True], np.array([True, True]), GONE],
               "is_deepstack_layers|v.deepstack"),
    "merged": ("qwen3vl_merger", "spatial_merge_size", [], [1, 3, 4, GONE], "spatial_merge_size"),
}  # fmt: skip


@pytest.mark.parametrize("case", VALUES)
def test_values_that_do_not_fit(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, key, right, wrong, words = VALUES[case]
    for value in right:
        read(monkeypatch, name, values={key: value})
    for value in wrong:
        with pytest.raises(InputError, match=words):
            read(monkeypatch, name, values={key: value})


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"token_embd.weight": (8, 4)}, "for each of the 4 tokens|array of 4"),
        ({"token_embd.weight": (7, 3)}, "no token table of width 8"),
        ({"token_embd.weight": (8, 3, 1)}, "no token table of width 8"),
        ({"token_embd.weight": GONE}, "no token table of width 8"),
        ({"blk.2.attn_q.weight": (8, 8)}, "tensors of 3 layers and says 2"),
        ({"blk.0.attn_q.weight": GONE, "blk.2.attn_q.weight": (8, 8)}, "tensors of 2 layers and says 2"),
        ({"blk.1.attn_q.weight": GONE, "other": (1,)}, "tensors of 1 layers and says 2"),
    ],
)
def test_tensors_of_decoders_that_do_not_fit(
    shapes: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=words):
        read(monkeypatch, "qwen3", shapes=shapes)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_tensor_of_an_encoder_is_needed_in_its_shape(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for tensor, shape in ENCODERS[name][1].items():
        for changed in (GONE, (*shape[:-1], shape[-1] + 1), (*shape, 1)):
            with pytest.raises(InputError, match=f"the tensor '{tensor}' is"):
                read(monkeypatch, name, shapes={tensor: changed})
    with pytest.raises(InputError, match=r"the tensor 'v.more' is"):
        read(monkeypatch, name, shapes={"v.more": (1,)})


@pytest.mark.parametrize("name", ENCODERS)
def test_types_of_tensors_are_those_that_llama_cpp_reads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for tensor, shape in ENCODERS[name][1].items():
        floats = len(shape) == 1 or tensor == "v.position_embd.weight"
        right = [F32] if floats else [F32, F16] if "patch_embd" in tensor else [F32, F16, Q8_0]
        for kind in (F32, F16, Q8_0, UNKNOWN):
            if kind in right:
                read(monkeypatch, name, kinds={tensor: kind})
            else:
                with pytest.raises(InputError, match=f"the tensor '{tensor}' has the type {kind}"):
                    read(monkeypatch, name, kinds={tensor: kind})
