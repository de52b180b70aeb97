"""The torch-free runtime: `load(bundle)` gives a model that answers questions about images, or an encoder of them."""

from ..targets import telemetry as _before_onnxruntime  # noqa: F401
from ..targets.errors import (
    CheckFailed,
    InputError,
    LensmithError,
    MissingExtra,
)
from .dialogue.events import BrokenCall, Reasoning, Text, ToolCall
from .generation.answer import Answer
from .generation.encoder import Encoder, Features, save_features
from .generation.hidden_states import HiddenStates
from .generation.loading import load
from .generation.model import Model
from .generation.options import GenerationOptions
from .generation.sampling import SamplingOptions
from .media.frames import VideoLimits, VideoSource
from .media.image_files import ImageLimits
from .media.sources import ImageSource
from .prompt.messages import Messages
from .prompt.requests import user_message

__all__ = [
    "Answer",
    "BrokenCall",
    "CheckFailed",
    "Encoder",
    "Features",
    "GenerationOptions",
    "HiddenStates",
    "ImageLimits",
    "ImageSource",
    "InputError",
    "LensmithError",
    "Messages",
    "MissingExtra",
    "Model",
    "Reasoning",
    "SamplingOptions",
    "Text",
    "ToolCall",
    "VideoLimits",
    "VideoSource",
    "load",
    "save_features",
    "user_message",
]
