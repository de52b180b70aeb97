"""PyTorch and transformers, and a checkpoint in the class that transformers has for it."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import sys
from typing import Any

from ...targets.errors import InputError, MissingExtra
from ..checkpoint.folder import Checkpoint

OLDEST_TRANSFORMERS = (5, 24)  # as in pyproject.toml: before, tiles and crops of images come otherwise
LANCZOS = (0, 27)  # the first torchvision that resizes by Lanczos' weights
OPERATORS = ("nms", "qnms")  # of torchvision; transformers needs their schemas only


def import_torch() -> tuple[Any, Any]:
    """PyTorch and transformers; MissingExtra when either is not installed or transformers is too old."""
    feature = "running the checkpoint in PyTorch"
    try:
        torch = importlib.import_module("torch")
        _import_torchvision(torch)
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise MissingExtra(feature, "torch") from error
    if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < OLDEST_TRANSFORMERS:
        raise MissingExtra(f"{feature} (with transformers {transformers.__version__})", "torch")
    return torch, transformers


def lacks_lanczos() -> bool:
    """Whether transformers resizes by cubic weights what a processor wants resized by Lanczos', for want of these."""
    try:
        version = importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:  # it resizes with Pillow then
        return False
    return tuple(map(int, re.findall(r"\d+", version)[:2])) < LANCZOS


_schemas: list[Any] = []  # torch forgets a schema with the library object that defined it


def _import_torchvision(torch: Any) -> None:
    """Import torchvision, if it is there, so that transformers can.

    PyPI's torchvision is built for CUDA. Next to a torch without it, the operators do not load and the import fails for
    want of two schemas, which are all that transformers needs.
    """
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in OPERATORS:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _schemas.append(library)
        importlib.import_module("torchvision")


def load_model(transformers: Any, checkpoint: Checkpoint, dtype: Any) -> Any:
    """The model on the CPU, ready to run; a tensor that transformers would have to invent is an InputError."""
    transformers.utils.logging.disable_progress_bar()  # whoever calls shows progress in its own way
    path, options = checkpoint.path, {"dtype": dtype, "attn_implementation": "sdpa", "output_loading_info": True,
                                      "ignore_mismatched_sizes": True}  # fmt: skip
    try:
        if checkpoint.changes:
            model, info = _from_tensors(transformers, checkpoint, dtype, options)
        else:
            auto = _kind(transformers, checkpoint)
            # Patterns of the names that transformers would not understand by itself, each with what it means.
            names = {f"^{re.escape(old)}$": new for new, old in checkpoint.stored_names.items() if old != new}
            model, info = auto.from_pretrained(path, local_files_only=True, key_mapping=names, **options)
    except (OSError, ValueError, RuntimeError, LookupError, TypeError) as error:
        raise InputError(f"transformers cannot load {path} ({str(error)[:300]}); is the folder complete?") from error
    for kind in ("missing_keys", "mismatched_keys"):
        if info.get(kind):
            example = sorted(map(str, info[kind]))[0]
            raise InputError(f"{path} does not fit its config.json: {example} is among transformers' {kind}")
    return model.eval()


def empty_model(checkpoint: Checkpoint, _: Any = None) -> Any:
    """The modules of a checkpoint without weights, in no time and memory."""
    torch, transformers = import_torch()
    config = _config(transformers, checkpoint)
    with torch.device("meta"):
        return _kind(transformers, checkpoint).from_config(config)


def _kind(transformers: Any, checkpoint: Checkpoint) -> Any:
    text = checkpoint.conventions.text_only
    return transformers.AutoModelForCausalLM if text else transformers.AutoModelForImageTextToText


def _config(transformers: Any, checkpoint: Checkpoint) -> Any:
    """The configuration as of float weights, whatever the files hold."""
    config = transformers.AutoConfig.from_pretrained(checkpoint.path, local_files_only=True)
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    return config


def _from_tensors(transformers: Any, checkpoint: Checkpoint, dtype: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    """A model of floats from a checkpoint whose files hold something else, and what transformers says of loading it."""
    torch, config = importlib.import_module("torch"), _config(transformers, checkpoint)
    tensors = {name: torch.from_numpy(tensor.numpy()).to(dtype) for name, tensor in checkpoint.tensors.items()}
    mappings = transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    kind = mappings[not checkpoint.conventions.text_only][type(config)]
    model, info = kind.from_pretrained(None, config=config, state_dict=tensors, **options)
    if (checkpoint.path / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(checkpoint.path, local_files_only=True)
    return model, info
