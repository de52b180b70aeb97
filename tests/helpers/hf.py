"""The Hugging Face reference that tests compare with: processors of the small tokenizer in tests/data, or a skip."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import pytest

from tests.paths import DATA

TOKENIZER = DATA / "tokenizer"


def import_transformers() -> Any:
    """transformers, with torchvision as the product imports it; skips the test when they are missing."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    pytest.importorskip("safetensors", reason="the comparison with Hugging Face needs lensmith[export]")
    from lensmith.exporters.evidence.torch_loading import import_torch
    from lensmith.targets.errors import MissingExtra

    try:
        _, transformers = import_torch()
        import torchvision  # type: ignore[import-untyped]  # noqa: F401
    except (ImportError, RuntimeError, MissingExtra) as error:
        pytest.skip(f"the comparison with Hugging Face needs lensmith[torch] and torchvision ({error})")
    return transformers


@cache
def processor() -> Any:
    """The Qwen3-VL processor that AutoProcessor picks, with the small tokenizer."""
    return import_transformers().AutoProcessor.from_pretrained(TOKENIZER)
