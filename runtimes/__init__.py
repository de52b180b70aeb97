"""The torch-free runtime: `load(bundle)` gives a model that answers questions about images."""

from .model import Answer, GenerationOptions, Model, load
from .requests import user_message
from .sampling import SamplingOptions

__all__ = ["Answer", "GenerationOptions", "Model", "SamplingOptions", "load", "user_message"]
