"""The torch-free runtime: `load(bundle)` gives a model that answers questions about images, or an encoder of them."""

from ..targets import telemetry as _before_onnxruntime  # noqa: F401
from ..targets.errors import CheckFailed, InputError, LensmithError, MissingExtra
from .answer import Answer
from .encoder import Encoder, Features, save_features
from .frames import VideoLimits, VideoSource
from .images import ImageLimits
from .loading import load
from .messages import Messages
from .model import Model
from .options import GenerationOptions
from .requests import user_message
from .sampling import SamplingOptions
from .sources import ImageSource

__all__ = [
    "Answer",
    "CheckFailed",
    "Encoder",
    "Features",
    "GenerationOptions",
    "ImageLimits",
    "ImageSource",
    "InputError",
    "LensmithError",
    "Messages",
    "MissingExtra",
    "Model",
    "SamplingOptions",
    "VideoLimits",
    "VideoSource",
    "load",
    "save_features",
    "user_message",
]
