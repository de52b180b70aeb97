"""The last step of a bundle for TensorRT: its engines in place of its graphs, at the export or on the device."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....runtimes.bundle.bundle_writer import BundleWriter
from ....runtimes.bundle.opening import Bundle, open_bundle
from ....runtimes.storage.files import dump_json
from ....targets.errors import InputError
from ....targets.profile import GpuTarget, load_target
from ...progress import Progress
from .engine_files import build_engines
from .profiles import profiles

GRAPH_FILES = (".onnx", ".data")


def finish(
    manifest: Mapping[str, Any], writer: BundleWriter, gpu: GpuTarget, key: str, progress: Progress
) -> dict[str, Any]:
    """The manifest of an export: with engines where they are built here, or with what another compiler is to know."""
    if not gpu.has_engines:
        return with_profiles(manifest)
    return with_engines(manifest, writer, gpu, key, progress) if gpu.builds_here else dict(manifest)


def with_profiles(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a bundle whose graphs ONNX Runtime's plugin compiles."""
    graphs = {
        name: {**entry, "plugin": {"profiles": profiles(name, entry["inputs"], manifest)}}
        for name, entry in manifest["graphs"].items()
    }
    return {**manifest, "graphs": graphs}


def with_engines(
    manifest: Mapping[str, Any], writer: BundleWriter, gpu: GpuTarget, key: str, progress: Progress
) -> dict[str, Any]:
    """The manifest of a bundle whose graphs became engines; the files of the graphs are left out of it."""
    graphs = build_engines(manifest, writer.partial, writer, gpu, key, progress)
    writer.leave_out(name for name in writer.names if name.endswith(GRAPH_FILES))
    return {**manifest, "graphs": graphs}


def build(
    path: str | Path,
    out: str | Path | None = None,
    progress: Progress = lambda *_: None,
    *,
    force: bool = False,
) -> Bundle:
    """Build the engines of a bundle on this device, into `out` or in place.

    Another bundle at `out` is replaced with `force` only. InputError for a bundle without graphs for TensorRT, and
    where TensorRT is not installed.
    """
    bundle = open_bundle(path, check="sha256")
    gpu, manifest = _gpu(bundle), bundle.content
    for name in bundle.manifest.graphs:
        bundle.graph(name)  # nothing strange reaches TensorRT
    with BundleWriter(Path(out or path), force or out is None) as writer:
        for name in bundle.manifest.files:
            if not name.endswith(GRAPH_FILES):
                shutil.copyfile(bundle.file(name), writer.add(name))
        key = hashlib.sha256(dump_json(manifest).encode()).hexdigest()[:32]
        graphs = build_engines(manifest, bundle.path, writer, gpu, key, progress)
        writer.close({**manifest, "graphs": graphs})
    return open_bundle(out or path)


def _gpu(bundle: Bundle) -> GpuTarget:
    graphs = bundle.manifest.graphs.values()
    if any(graph.dialect != "tensorrt" for graph in graphs):
        raise InputError(f"the bundle {bundle.path} is not for TensorRT; export it with --format tensorrt")
    if any(graph.file.endswith(".engine") for graph in graphs):
        raise InputError(f"the bundle {bundle.path} has its engines; export it again to build others")
    gpu = load_target(bundle.manifest.target).gpu
    if gpu is None:
        raise InputError(f"the target {bundle.manifest.target!r} of {bundle.path} has no GPU; export it again")
    if not gpu.has_engines:
        raise InputError(f"the bundle {bundle.path} needs no engines: its graphs are compiled when they are loaded")
    return gpu
