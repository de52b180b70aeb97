"""Sizes that engines are built for, and what becomes of bundles for TensorRT where it is not installed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from lensmith.exporters.formats.tensorrt.finish import build, with_profiles
from lensmith.exporters.formats.tensorrt.profiles import LOGITS, profiles
from lensmith.exporters.formats.tensorrt.spelled_out import spell_out
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.runtimes.bundle.bundle_writer import BundleWriter
from lensmith.runtimes.bundle.opening import open_bundle
from lensmith.targets.errors import InputError

from tests.helpers import ladder


def test_bundles_that_cannot_be_built(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="--format tensorrt"):
        build(tiny_bundle)


def test_profiles_follow_the_limits() -> None:
    manifest = {"options": {"prefill_chunk": 1024}, "limits": {"context": 600, "max_image_tokens": 9000,
                "max_pixels": 512 * 512}, "image": {"patch_size": 16, "merge_size": 2}}  # fmt: skip
    ports = {"input_ids": {"shape": [1, "seq"]}, "logit_positions": {"shape": ["num_logits"]}}
    prompts, tokens = profiles("decoder", ports, manifest)
    assert prompts == {"input_ids": [[1, 1], [1, 300], [1, 600]], "logit_positions": [[1], [1], [LOGITS]]}
    assert tokens == {"input_ids": [[1, 1]] * 3, "logit_positions": [[1]] * 3}
    images = profiles("vision_encoder", {"pixel_values": {"shape": ["patches", 1536]}}, manifest)
    assert images == [{"pixel_values": [[4, 1536], [1024, 1536], [1024, 1536]]}]


def test_the_writer_leaves_out_what_became_something_else(tmp_path: Path, tiny_bundle: Path) -> None:
    opened = open_bundle(tiny_bundle)
    kept = opened.content["files"]
    with BundleWriter(tmp_path / "out") as writer:
        with writer.stage("key", ["a", "b"]):
            for name in ("a", "b"):
                writer.add(name).write_text(name)
        for name in kept:
            shutil.copy(opened.file(name), writer.add(name))
        writer.leave_out(["b"])
        writer.close(opened.content)
    assert open_bundle(tmp_path / "out").content["files"].keys() == {"a", *kept}
    assert not (tmp_path / "out" / "b").exists()


def test_prompts_are_as_long_as_a_chunk_or_the_context() -> None:
    ports = {name: {"shape": [name]} for name in ("seq", "image_tokens", "num_logits", "num_hidden_states")}
    for chunk, context, most in ((512, 4096, 512), (512, 100, 100), (512, 20, 20), (512, 1, 1)):
        manifest = {"options": {"prefill_chunk": chunk}, "limits": {"context": context}, "image": {}}
        prompts, tokens = profiles("mtp", ports, manifest)
        some = [[1], [max(1, most // 2)], [most]]
        assert prompts == {"seq": some, "image_tokens": some, "num_hidden_states": some,
                           "num_logits": [[1], [1], [min(32, most)]]}  # fmt: skip
        assert tokens == dict.fromkeys(ports, [[1]] * 3)


IMAGES: dict[str, tuple[dict[str, Any], dict[str, list[int]]]] = {
    # 588 image tokens are 2352 patches; 2048 x 2048 pixels 16384, which a context of 4096 tokens holds.
    "by pixels": ({"limits": {"context": 4096, "max_pixels": 2048 * 2048}}, {"patches": [4, 2352, 16384]}),
    "by the context": ({"limits": {"context": 1000, "max_pixels": 2048 * 2048}}, {"patches": [4, 2352, 4000]}),
    "small images": ({"limits": {"context": 4096, "max_pixels": 256 * 256}}, {"patches": [4, 256, 256]}),
    "single patches": ({"limits": {"context": 4096, "max_pixels": 2048 * 2048}, "prompt": {"merge_size": 1}},
                       {"patches": [1, 588, 4096]}),
    # An encoder alone counts patches in its context. A cell is 4 of them, and 8 times as many offsets are enough.
    "an encoder alone": ({"limits": {"context": 8192, "max_pixels": 2048 * 2048}, "encoder": {}},
                         {"patches": [4, 2352, 8192], "cells": [1, 588, 2048], "offsets": [1, 9408, 65536]}),
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_as_large_as_the_limits_allow(name: str) -> None:
    manifest, sizes = IMAGES[name]
    manifest = {"prompt": {"merge_size": 2}, "image": {"patch_size": 16}, **manifest}
    manifest["limits"]["max_image_tokens"] = 9999
    ports = {axis: {"shape": [3, axis, "images"]} for axis in sizes}
    expected = {axis: [[3, size, 1] for size in found] for axis, found in sizes.items()}
    assert profiles("vision_encoder", ports, manifest) == [expected]


def test_images_of_one_size_have_no_other() -> None:
    manifest = {"image": {"size": [336, 336]}, "limits": {"context": 9}}
    ports = {"pixel_values": {"shape": ["images", 3, 336, 336]}}
    assert profiles("vision_encoder", ports, manifest) == [{"pixel_values": [[1, 3, 336, 336]] * 3}]


def test_offsets_of_any_grid_fit() -> None:
    """(2t - 1)(2h - 1)(2w - 1) of t x h x w patches."""
    for t, h, w in ((1, 1, 8192), (2, 64, 64), (1, 2, 4096), (16, 16, 32), (8192, 1, 1)):
        assert (2 * t - 1) * (2 * h - 1) * (2 * w - 1) <= 8 * t * h * w


def test_graphs_of_the_plugin_carry_their_profiles() -> None:
    manifest = {"options": {"prefill_chunk": 64}, "limits": {"context": 600}, "image": {},
                "graphs": {"decoder": {"file": "decoder.onnx", "inputs": {"x": {"shape": ["seq"]}}}}}  # fmt: skip
    made = with_profiles(manifest)["graphs"]["decoder"]
    assert made["file"] == "decoder.onnx"
    assert made["plugin"] == {"profiles": [{"x": [[1], [32], [64]]}, {"x": [[1], [1], [1]]}]}


def test_attention_spelled_out_computes_the_same(tmp_path: Path) -> None:
    """Where a parser does not know the operator, its body takes its place; ONNX Runtime runs both."""
    options = Options(format="tensorrt", target="rtx-40", precision="fp32", context=64)
    bundle = export(prepare(ladder.tiny(tmp_path / "source"), options), tmp_path / "bundle", golden="never")
    graph = bundle.graph("decoder")
    other = spell_out(graph)
    assert "TRT_Attention" in {node.op_type for node in ir.load(graph).graph}
    kinds = {node.op_type for node in ir.load(other).graph}
    assert "CachedAttention" in kinds
    assert "TRT_Attention" not in kinds
    one, two = (ort.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in (graph, other))
    feed = {port.name: values_for(port) for port in one.get_inputs()}
    for mine, theirs in zip(one.run(None, feed), two.run(None, feed), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def values_for(port: Any) -> Any:
    """Five tokens behind eight that fill the cache with anything."""
    sizes = {"seq": 5, "image_tokens": 1, "num_logits": 5}
    shape, draw = [sizes[size] if isinstance(size, str) else size for size in port.shape], np.random.default_rng(0)
    if port.name == "past_lengths":
        return np.full(shape, 8, np.int32)
    if port.name == "logit_positions":
        return np.arange(5)
    if port.type == "tensor(int64)":
        return draw.integers(1, 50, shape)
    return draw.normal(size=shape).astype(np.float32)
