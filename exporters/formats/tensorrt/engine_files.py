"""Engines of a bundle: one process for each graph, whose progress is shown and whose end is explained."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ....runtimes.bundle.bundle_writer import BundleWriter
from ....runtimes.engines.tensorrt.tensorrt_library import load_library
from ....runtimes.process.lifeline import lifeline
from ....targets.errors import LensmithError
from ....targets.profile import GpuTarget
from ...progress import Progress
from .engine_worker import BuildRequest
from .profiles import profiles

WORKER = "lensmith.exporters.formats.tensorrt.engine_worker"
MEASURED = ("seconds", "peak_memory_bytes")  # not in the manifest: the same inputs give the same bytes

log = logging.getLogger(__name__)


def build_engines(
    manifest: Mapping[str, Any], folder: Path, writer: BundleWriter, gpu: GpuTarget, key: str, progress: Progress
) -> dict[str, Any]:
    """Build an engine of each graph of `folder`; the section `graphs` of the manifest with what became of them.

    Engines that an interrupted run with the same key has finished are taken as they are. Raises MissingExtra or
    InputError where TensorRT is not installed, and LensmithError with its words where it cannot build a graph.
    """
    version = load_library(gpu.flavour).__version__
    return {
        name: {**entry, **_engine(name, entry, manifest, folder, writer, gpu, f"{key}-{version}", progress)}
        for name, entry in manifest["graphs"].items()
    }


def _engine(
    name: str,
    entry: Mapping[str, Any],
    manifest: Mapping[str, Any],
    folder: Path,
    writer: BundleWriter,
    gpu: GpuTarget,
    key: str,
    progress: Progress,
) -> dict[str, Any]:
    file, notes = f"{name}.engine", f"{name}.engine.json"
    with writer.stage(f"{file}-{key}", [file, notes]) as done:
        if not done:
            shapes = profiles(name, entry["inputs"], manifest)
            onnx, engine = folder / entry["file"], writer.add(file)
            request = BuildRequest(gpu.flavour, str(onnx), str(engine), shapes, list(gpu.capabilities))
            made = run(request, lambda phase, at, total: progress(f"{name} engine", at, total))
            writer.add(notes).write_text(json.dumps(made, indent=1, sort_keys=True), encoding="utf-8")
    made = json.loads(writer.add(notes).read_text(encoding="utf-8"))
    log.info("%s: %s s, %s bytes of memory", file, *(made.pop(name) for name in MEASURED))
    if made["kernels"] and made["kernels"]["written_out"]:
        log.warning("%s writes out the weights of %s layers as floats at each step, which takes the time of floats; "
                    "lensmith inspect --json names them", file, len(made["kernels"]["written_out"]))  # fmt: skip
    writer.leave_out([notes])
    return {"file": file, "engine": made}


def run(request: BuildRequest, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Build in another process; what it says of the engine. LensmithError where it fails or ends before its time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "request.json"
        path.write_text(json.dumps(asdict(request)), encoding="utf-8")
        command = [sys.executable, "-m", WORKER, str(path)]
        settings = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
        with (
            lifeline() as held,
            subprocess.Popen(
                command, stdin=held, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings
            ) as child,
        ):
            assert child.stdout is not None
            assert child.stderr is not None
            last: dict[str, Any] = {}
            for line in child.stdout:
                if not line.startswith("{"):
                    continue  # TensorRT's own words
                last = json.loads(line)
                if "phase" in last and last["total"]:
                    progress(last["phase"], last["done"], last["total"])
            errors = child.stderr.read()
    if "built" not in last:
        reason = last.get("failed") or f"its process ended with {child.returncode}: {errors.strip()[-300:]}"
        raise LensmithError(f"{request.flavour} cannot build {Path(request.onnx).name}: {reason}")
    return dict(last["built"])
