"""Compares pixels and token ids of golden traces with those of the checkpoint's own processor in transformers.

The reference runs on lensmith's patches and ids, so that nothing else at an export would show that these are wrong.
"""

from __future__ import annotations

import importlib.util
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...runtimes.bundle.checked_manifest import inputs_of
from ...runtimes.evidence.outputs import with_sources
from ...runtimes.generation.prefill import shared
from ...runtimes.media.crops import CropSpec
from ...runtimes.media.images import Grid, ImageSpec, Patches
from ...runtimes.media.pixels import PixelSpec, image_spec, processor_size
from ...runtimes.media.tiles import TileSpec
from ...targets.errors import CheckFailed
from .golden_media import CLIP
from .torch_loading import import_torch, lacks_lanczos

log = logging.getLogger(__name__)
# Root mean square relative to the spread of the values: another resampling of the same is below, stripes that moved by
# a pixel are far above.
PIXELS = 0.02


class TheirInputs:
    """The processor that transformers makes of a checkpoint; where it makes none, a warning says so."""

    def __init__(self, path: Path, manifest: Mapping[str, Any], *, text_only: bool) -> None:
        self.name, self.spec = str(path), image_spec(inputs_of(manifest))
        limited = manifest["options"].get("max_pixels") is not None
        self.text_only, self._processor = text_only, None  # type: bool, Any
        self._other_weights = isinstance(self.spec, TileSpec) and self.spec.resample == "lanczos" and lacks_lanczos()
        if self._other_weights:
            log.warning("pixels were not compared with transformers', which cannot resize by Lanczos' weights with the "
                        "torchvision that is installed; install 0.27 or later")  # fmt: skip
        try:
            self._processor = _open(path, self.spec, text_only=self.text_only, limited=limited)
        except Exception as error:  # anything: these are other people's classes, and what they lack
            log.warning(
                "pixels and token ids were not compared with transformers', whose processor of %s does not open: %s",
                path, _why(error),
            )  # fmt: skip

    def check_image(self, name: str, source: bytes, patches: Patches, grid: Grid) -> None:
        """Raises CheckFailed for other pixels of a picture; videos are not compared."""
        if self._processor is None or self._other_weights or name == CLIP:
            return
        _check_normalization(self._processor.image_processor, self.spec, self.name)
        theirs = self._processor.image_processor(images=[_picture(source)], return_tensors="np")
        sizes = [tuple(map(int, row)) for row in theirs.get("image_grid_thw", [grid])]
        expected = np.asarray(theirs["pixel_values"], np.float32)
        if sizes != [grid] or expected.size != patches.size:
            raise _refused(self.name, f"{name} has the grid {grid} and {patches.size} values, there {sizes}")
        off = float(np.sqrt(np.square(patches.reshape(expected.shape) - expected).mean()) / (expected.std() or 1.0))
        if not off <= PIXELS:
            raise _refused(self.name, f"the pixels of {name} are off by {off:.3g} of their spread")

    def check_ids(self, case: str, messages: Sequence[Mapping[str, Any]], files: Mapping[str, bytes], ids: Any) -> None:
        """Raises CheckFailed for other ids of a conversation; those with videos are not compared."""
        if self._processor is None or any(block["type"] == "video" for each in messages for block in each["content"]):
            return
        pictures = {name: _picture(data) for name, data in files.items() if name != CLIP}
        asked = [with_sources(message, pictures) for message in messages]
        made = self._processor.apply_chat_template(
            asked, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="np"
        )
        theirs = np.asarray(made["input_ids"]).reshape(-1).tolist()
        if theirs != list(ids):
            at = shared(np.asarray(theirs), np.asarray(ids))
            raise _refused(self.name, f"{case!r} has {len(ids)} ids, there {len(theirs)}, the first other one at {at}")


def _why(error: Exception) -> str:
    told = " ".join(str(error).split())
    if "torchvision" in told.lower() and importlib.util.find_spec("torchvision") is None:
        return "it needs torchvision; run: pip install torchvision"
    return told[:200]


def _open(path: Path, spec: PixelSpec, *, text_only: bool, limited: bool) -> Any:
    transformers = import_torch()[1]
    if text_only:
        return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    processor = transformers.AutoProcessor.from_pretrained(path, local_files_only=True)
    if limited and (size := processor_size(spec)):
        processor.image_processor.size = type(processor.image_processor.size)(**size)
    return processor


def _check_normalization(theirs: Any, spec: PixelSpec, name: str) -> None:
    """Less than a level of the pixels' 255 hardly shows in them."""
    if isinstance(spec, ImageSpec | CropSpec | TileSpec) and theirs.do_normalize:
        for kind, ours, wanted in (("mean", spec.mean, theirs.image_mean), ("std", spec.std, theirs.image_std)):
            if ours is None or not np.allclose(ours, wanted, rtol=1e-6):
                raise _refused(name, f"pixels are normalized by the {kind} {ours}, there by {wanted}")


def _picture(source: bytes) -> Image.Image:
    return Image.open(io.BytesIO(source)).convert("RGB")


def _refused(name: str, what: str) -> CheckFailed:
    return CheckFailed(
        f"the inputs of {name} are not those of transformers' processor: {what}; nothing was exported: report this "
        "with the checkpoint's configuration files"
    )
