"""Optimization profiles: the least, usual and largest sizes of each input, from the limits of a bundle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Sizes = tuple[int, int, int]  # least, usual, largest
Profile = dict[str, list[list[int]]]  # by input: its least, usual and largest shape

LOGITS = 32  # most positions with logits in one step; each takes 4 bytes for each token of the vocabulary
IMAGE_TOKENS = 588  # the usual image: 896 x 672 pixels in patches of 16
ONE: Sizes = (1, 1, 1)


def profiles(graph: str, inputs: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[Profile]:
    """Of a graph with these inputs, in the order of use: prompts and single tokens, or images."""
    if graph == "vision_encoder":
        tables = [_images(manifest, inputs)]
    else:
        # Chunks of a prompt with any number of image tokens among them.
        chunk = min(int(manifest["options"]["prefill_chunk"]), int(manifest["limits"]["context"]))
        some: Sizes = (1, max(1, chunk // 2), chunk)
        prompts = {
            "seq": some,
            "image_tokens": some,
            "num_logits": (1, 1, min(LOGITS, chunk)),
            "num_hidden_states": some,
        }
        tables = [prompts, dict.fromkeys(prompts, ONE)]  # one token asks for no image, and gets a row of features
    return [{name: _shapes(port["shape"], sizes) for name, port in inputs.items()} for sizes in tables]


def _shapes(shape: list[int | str], sizes: Mapping[str, Sizes]) -> list[list[int]]:
    return [[size if isinstance(size, int) else sizes[size][index] for size in shape] for index in range(3)]


def _images(manifest: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Sizes]:
    """One image, or one temporal patch of a video."""
    image, limits = manifest["image"], manifest["limits"]
    if "patch_size" not in image or "max_image_tokens" not in limits:
        return {"images": ONE}
    block = int(image.get("merge_size") or manifest.get("prompt", {}).get("merge_size", 1)) ** 2
    # The context holds image tokens of a model that answers, and patches of an encoder alone.
    most = int(limits["context"]) * (1 if "encoder" in manifest else block)
    most = min(most, int(limits["max_pixels"]) // int(image["patch_size"]) ** 2)
    usual = max(block, min(IMAGE_TOKENS * block, most))
    windows = ONE
    if "window_patches" in inputs:  # a single row of image tokens has a window for each side of one
        area = int(inputs["window_patches"]["shape"][1])
        windows = 1, max(1, usual // area), -(-most // (block * math.isqrt(area // block)))
    return {
        "images": ONE,
        "patches": (block, usual, most),
        "cells": (1, usual // 4, most // 4),
        "offsets": (1, 4 * usual, 8 * most),  # offsets of t x h x w patches: (2t - 1)(2h - 1)(2w - 1)
        "windows": windows,
    }
