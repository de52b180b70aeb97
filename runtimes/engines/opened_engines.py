"""What computes a bundle: one row for each format, a vision encoder and a decoder with the same interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...targets.errors import InputError, closest
from ..bundle.opening import Bundle
from ..media.no_images import refuse
from ..media.pixels import image_spec
from ..prompt.positions import NO_TOKEN
from .backends import (
    Wishes,
    check_device,
    open_decoder,
    open_vision,
)
from .contract import VisionEncoder

ENCODER = "vision_encoder"


def open_engines(bundle: Bundle, wishes: Wishes) -> tuple[Any, Any]:
    """The vision encoder and the decoder of a bundle; InputError for a format that this lensmith does not know."""
    name = bundle.content["options"].get("format", "onnx")
    if name not in ENGINES:
        raise InputError(
            f"the bundle {bundle.path} has the format {name!r}; {closest(name, ENGINES)} Upgrade lensmith."
        )
    return ENGINES[name](bundle, wishes)


def _graphs(bundle: Bundle, wishes: Wishes) -> tuple[Any, Any]:
    vision = open_vision(bundle, wishes) if ENCODER in bundle.content["graphs"] else refuse
    return vision, open_decoder(bundle, "decoder", wishes)


def _gguf(bundle: Bundle, wishes: Wishes) -> tuple[Any, Any]:
    from .llamacpp.library import LlamaModel
    from .llamacpp.llama_decoder import LlamaDecoder, Settings

    check_device(bundle, wishes.device)
    manifest = bundle.content
    exact = manifest["options"]["precision"] == "f32"
    settings = Settings(wishes.capacity, int(manifest["options"]["prefill_chunk"]), wishes.threads, exact)
    model = LlamaModel(bundle.graph("decoder"))
    prompt = manifest["prompt"]
    axes = len(manifest["graphs"]["decoder"]["inputs"]["position_ids"]["shape"])  # [3, batch, seq] or [batch, seq]
    image_token = prompt["token_ids"].get(prompt["tokens"].get("image_token"), NO_TOKEN)
    vision = _gguf_vision(bundle, model, wishes, exact=exact) if ENCODER in manifest["graphs"] else refuse
    return vision, LlamaDecoder(model, settings, image_token_id=image_token, mrope=axes == 3)


def _gguf_vision(bundle: Bundle, model: Any, wishes: Wishes, *, exact: bool) -> Any:
    """The encoder on llama.cpp, or on ONNX Runtime where the bundle has it so: see `encoder_graphs` of the exporter."""
    from .llamacpp.llama_vision import LlamaVision

    path = bundle.graph(ENCODER)
    if path.suffix == ".onnx":
        return VisionEncoder(path, **wishes.on_cpu())
    most = int(bundle.content["limits"]["max_image_tokens"])
    spec = image_spec(bundle.content)
    return LlamaVision(path, model, spec, most_tokens=most, threads=wishes.threads, exact=exact)


ENGINES: Mapping[str, Callable[[Bundle, Wishes], tuple[Any, Any]]] = {
    "onnx": _graphs,
    "gguf": _gguf,
    "tensorrt": _graphs,
}
