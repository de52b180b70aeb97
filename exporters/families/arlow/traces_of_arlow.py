"""Records golden traces of an Arlow encoder: built-in images and a clip, run through the PyTorch reference."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from ....runtimes.bundle.bundle_writer import BundleWriter
from ....runtimes.evidence.traces import ImageTrace, Traces
from ....runtimes.generation.encoder import Encoder
from ...checkpoint.folder import Checkpoint
from ...evidence.golden_media import CLIP, sources
from ...evidence.recording import write
from .arlow_spec import ArlowSpec


def modules(_: Checkpoint, spec: ArlowSpec) -> Any:
    """The modules of an encoder in PyTorch, without weights."""
    import torch

    from .torch_arlow import TorchArlow

    with torch.device("meta"):
        return TorchArlow(spec)


def torch_encoder(checkpoint: Checkpoint, spec: ArlowSpec, dtype: str, threads: int) -> Any:
    """The encoder in PyTorch with its weights, see ArlowReference."""
    from .torch_arlow import ArlowReference  # needs PyTorch

    return ArlowReference(checkpoint, spec, dtype, threads=threads)


def record(
    checkpoint: Checkpoint,
    spec: ArlowSpec,
    writer: BundleWriter,
    manifest: Mapping[str, Any],
    *,
    threads: int | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Traces:
    """Run the built-in images and the clip through PyTorch in float32 and write them into `golden/`."""
    from .torch_arlow import ArlowReference  # needs PyTorch

    reference, encoder = ArlowReference(checkpoint, spec, threads=threads), Encoder(writer.preview(manifest))
    files, traces = sources(), list[ImageTrace]()
    for name, data in files.items():
        progress("golden", len(traces), len(files))
        patches, grid = encoder.cut(data, video=name == CLIP)
        traces.append(ImageTrace(name, grid, hashlib.sha256(patches.data).hexdigest(), reference.vision(patches, grid)))
    return write(Traces(reference.name, tuple(traces), ()), writer, files)
