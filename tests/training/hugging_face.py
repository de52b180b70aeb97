"""The parts of transformers that the tiny model uses, also where torchvision's wheel does not fit torch's.

PyPI's torchvision is built for CUDA. Next to a torch for the CPU its operators cannot load, and its import fails
because two of their schemas are missing. transformers needs no more than the schemas, so they are registered first.
"""

import importlib
import sys
from typing import Any

import torch

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def import_torchvision() -> Any:
    """Imports torchvision; returns the library of schemas, which must stay alive, or None where none was needed."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        make_library: Any = torch.library.Library
        library = make_library("torchvision", "FRAGMENT")
        for schema in SCHEMAS:
            library.define(schema)
        importlib.import_module("torchvision")
        return library
    return None


LIBRARY = import_torchvision()

from transformers import (  # noqa: E402  (needs torchvision)
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5DecoderLayer, Qwen3_5RMSNorm  # noqa: E402
from transformers.vision_utils import (  # noqa: E402
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

__all__ = [
    "AutoModelForImageTextToText",
    "AutoProcessor",
    "AutoTokenizer",
    "LlavaConfig",
    "LlavaForConditionalGeneration",
    "Qwen3VLConfig",
    "Qwen3VLForConditionalGeneration",
    "Qwen3_5Config",
    "Qwen3_5DecoderLayer",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5RMSNorm",
    "get_vision_interpolation_indices_and_weights",
    "get_vision_position_ids",
]
