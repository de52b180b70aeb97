"""The torch-free runtime: `load(bundle)` gives a model that answers questions about images, or an encoder of them."""

from ..targets import telemetry as _before_onnxruntime  # noqa: F401
from .answer import Answer
from .encoder import Encoder, Features, save_features
from .loading import load
from .model import Model
from .options import GenerationOptions
from .requests import user_message
from .sampling import SamplingOptions

__all__ = [
    "Answer",
    "Encoder",
    "Features",
    "GenerationOptions",
    "Model",
    "SamplingOptions",
    "load",
    "save_features",
    "user_message",
]
