"""Builds one engine in a process of its own: TensorRT ends the whole process on some graphs, and keeps its memory.

    python -m lensmith.exporters.formats.tensorrt.engine_worker REQUEST.json

It reads what `BuildRequest` holds, prints lines of JSON with the progress and writes the engine. The last line says
what became of it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....runtimes.engines.tensorrt.tensorrt_library import load_library
from ....runtimes.process.lifeline import end_with_parent
from ....runtimes.process.memory import peak_memory_bytes
from .kernels import read_kernels
from .profiles import Profile
from .spelled_out import FUSED, spell_out

STRONGLY_TYPED = "STRONGLY_TYPED"
# Warnings of the parser that mean another network than the graph says.
FATAL = ("Unused Input",)
# And those that say nothing: of types as they shall be, and of functions' bodies that are there several times.
USUAL = ("Int64 binding", "already exists, the output tensors")
NEWER = ("TensorScatter", "Attention", "RMSNormalization", "RotaryEmbedding", "Swish")  # operators that some lack


@dataclass(frozen=True)
class BuildRequest:
    """What to build."""

    flavour: str
    onnx: str
    engine: str
    profiles: list[Profile]
    capabilities: list[str]  # "8.9"; for the flavour `tensorrt` those of the device it runs on


def build(request: BuildRequest) -> dict[str, Any]:
    """Parse, build and write; what the manifest says about the engine. ValueError with TensorRT's own words."""
    started, trt = time.perf_counter(), load_library(request.flavour)
    log = _logger(trt)
    builder = trt.Builder(log)
    flag = getattr(trt.NetworkDefinitionCreationFlag, STRONGLY_TYPED, None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    _parse(trt, log, network, request.onnx)
    config = _config(trt, builder, request)
    digest = _write(trt, builder, network, config, request.engine, log)
    return {
        "flavour": request.flavour,
        "version": trt.__version__,
        "capabilities": request.capabilities,
        "profiles": request.profiles,
        **_inspect(trt, network),
        "kernels": _kernels(trt, request),
        "sha256": digest,
        "warnings": sorted({line for line in log.lines if not any(words in line for words in USUAL)})[:20],
        "seconds": round(time.perf_counter() - started, 1),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def _logger(trt: Any) -> Any:
    class BuildLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.WARNING:
                self.lines.append(message)

    return BuildLogger()


def _parse(trt: Any, log: Any, network: Any, path: str) -> None:
    parser = trt.OnnxParser(network, log)
    if not parser.supports_operator(FUSED):
        path = str(spell_out(Path(path)))
    if not parser.parse_from_file(path):
        errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        unknown = [name for name in NEWER if not parser.supports_operator(name)]
        hint = f"; version {trt.__version__} does not know {', '.join(unknown)}: install a newer one" if unknown else ""
        raise ValueError(f"the parser refuses it: {'; '.join(errors)[:500]}{hint}")
    ignored = [line for line in log.lines if any(words in line for words in FATAL)]
    if ignored:
        raise ValueError(f"the parser would leave something out: {ignored[0][:300]}")


def _config(trt: Any, builder: Any, request: BuildRequest) -> Any:
    config = builder.create_builder_config()
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = _monitor(trt)
    if hasattr(trt, "ComputeCapability"):  # else the engine is for the GPU that is here
        config.num_compute_capabilities = len(request.capabilities)
        for index, name in enumerate(request.capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{name.replace('.', '')}"), index)
    for shapes in request.profiles:
        profile = builder.create_optimization_profile()
        for name, (least, usual, largest) in shapes.items():
            profile.set_shape(name, least, usual, largest)
        config.add_optimization_profile(profile)
    return config


def _monitor(trt: Any) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            tell({"phase": phase, "done": step, "total": self.steps.get(phase, 0)})
            return True

        def phase_finish(self, phase: str) -> None:
            tell({"phase": phase, "done": self.steps.get(phase, 0), "total": self.steps.get(phase, 0)})

    return Monitor()


def _write(trt: Any, builder: Any, network: Any, config: Any, path: str, log: Any) -> str:
    """Write the engine, as a stream where TensorRT can, which halves the memory; its SHA-256."""
    if not hasattr(trt, "IStreamWriter"):
        made = builder.build_serialized_network(network, config)
        if made is None:
            raise ValueError(_last_words(log))
        Path(path).write_bytes(made)
        return hashlib.sha256(made).hexdigest()
    digest = hashlib.sha256()

    class Stream(trt.IStreamWriter):  # type: ignore[misc]
        def __init__(self, file: Any) -> None:
            trt.IStreamWriter.__init__(self)
            self.file = file

        def write(self, data: Any) -> int:
            digest.update(data)
            self.file.write(data)
            return len(data)

    with open(path, "wb") as file:
        if not builder.build_serialized_network_to_stream(network, config, Stream(file)):
            raise ValueError(_last_words(log))
    return digest.hexdigest()


def _last_words(log: Any) -> str:
    return f"the builder gives up: {' '.join(log.lines[-3:])[:500] or 'without a reason'}"


def _inspect(trt: Any, network: Any) -> dict[str, Any]:
    """Inputs and outputs with types and shapes, and how many layers compute in each type."""

    def port(tensor: Any) -> dict[str, Any]:
        return {"dtype": tensor.dtype.name, "shape": list(tensor.shape)}

    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    kinds = Counter(
        layer.get_output(0).dtype.name
        for layer in map(network.get_layer, range(network.num_layers))
        if layer.num_outputs and layer.get_output(0) is not None
    )
    return {
        "inputs": {tensor.name: port(tensor) for tensor in inputs},
        "outputs": {tensor.name: port(tensor) for tensor in outputs},
        "layers": dict(sorted(kinds.items())),
    }


def _kernels(trt: Any, request: BuildRequest) -> dict[str, Any] | None:
    """What the engine says of its kernels. ValueError where it was compiled for other chips than asked."""
    found = read_kernels(Path(request.engine), request.flavour, trt.__version__)
    if found is not None and set(found["capabilities"]) != set(request.capabilities):
        raise ValueError(f"it is compiled for {found['capabilities']} instead of {request.capabilities}")
    return found


def tell(line: dict[str, Any]) -> None:
    """One line for the process that waits."""
    print(json.dumps(line), flush=True)


def main() -> None:
    end_with_parent()
    request = BuildRequest(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    try:
        tell({"built": build(request)})
    except Exception as error:  # whatever it is, the other process reports it
        tell({"failed": str(error)})
        sys.exit(1)


if __name__ == "__main__":
    main()
