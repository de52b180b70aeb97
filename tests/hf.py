"""The Hugging Face reference that tests compare with: processors of the small tokenizer in tests/data, or a skip."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parent / "data"
TOKENIZER = DATA / "tokenizer"


def import_transformers() -> Any:
    """transformers with a torchvision that imports next to CPU-only torch; skips the test when either is missing."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import torch

        _register_operators(torch)
        import torchvision  # type: ignore[import-untyped]  # noqa: F401
        import transformers
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"the comparison with Hugging Face needs lensmith[torch] ({error})")
    return transformers


@cache
def _register_operators(torch: Any) -> Any:
    """PyPI's torchvision is built for CUDA; without CUDA its import misses the schemas of these operators."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library  # the schemas live as long as this object


@cache
def processor() -> Any:
    """The Qwen3-VL processor that AutoProcessor picks, with the small tokenizer."""
    return import_transformers().AutoProcessor.from_pretrained(TOKENIZER)
