"""What a user should know about a bundle before it is built: nothing that stops the work."""

from __future__ import annotations

from collections.abc import Iterator

import gguf

from .formats.gguf.file_types import file_type
from .formats.gguf.gguf_files import encoder_graphs
from .job import Job

FEW_BITS = 4  # below, rounding to nearest costs answers: README, "Calibration"
# What it costs: README, "llama.cpp".
CLASS_TOKEN = (
    "stock llama.cpp confuses CLIP's class token with a patch (ggml-org/llama.cpp#25814) and answers fewer questions "
    "about pictures from mmproj.gguf than it should: use `lensmith run` until that is fixed"
)


def notes(job: Job) -> Iterator[str]:
    """One sentence for each, with what to do."""
    name = job.options.precision
    if not job.calibrated.evidence and _bits(job) < FEW_BITS:
        method = "imatrix" if job.options.format == "gguf" else "descent"
        yield f"{name} rounds to so few levels that it wants samples: add --calibrate {method}"
    if job.options.format == "gguf" and encoder_graphs(job):
        yield CLASS_TOKEN


def _bits(job: Job) -> float:
    """Bits of a weight of the decoder's matrices, with those of their scales in GGUF."""
    if job.options.format != "gguf":
        return float(job.policy.precision.decoder)
    block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[file_type(job.options.precision).model]]
    return 8 * nbytes / block
