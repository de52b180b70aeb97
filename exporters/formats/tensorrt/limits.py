"""What TensorRT cannot do, said before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....runtimes.engines.states import CACHE, RECURRENT
from ....targets.errors import InputError
from ....targets.profile import TargetProfile, load_target, target_names
from ...storage.scheme import CHANNEL, PRECISIONS
from ...storage.weights import stored_bytes
from ..elsewhere import COMPARE, Elsewhere

if TYPE_CHECKING:
    from ...job import Job, Options

FEW_BITS = ("int3", "int2")


def no_replay(job: Job) -> Elsewhere | None:
    """Why golden traces cannot be replayed where the bundle is built; None for float32, which ONNX Runtime runs."""
    if job.options.precision == "fp32" or not job.target.halves:
        return None
    gpu = job.target.gpu
    if gpu is not None and gpu.has_engines and not gpu.builds_here:
        return Elsewhere(
            "engines run on their GPU alone", f"build its engines there with lensmith build, then {COMPARE}"
        )
    return Elsewhere("engines run on their GPU alone")


def refuse(options: Options, target: TargetProfile) -> None:
    """An InputError for weights that TensorRT, or the target, has no products for."""
    if options.precision in target.lacks:
        allowed = ", ".join(name for name in PRECISIONS if name not in (*FEW_BITS, *target.lacks))
        raise InputError(
            f"the target {target.name} has no products with {options.precision}; expected --precision {allowed}, "
            f"or one of the targets {', '.join(_targets_with(options.precision))}"
        )
    if options.precision in FEW_BITS:
        allowed = ", ".join(name for name in PRECISIONS if name not in FEW_BITS)
        raise InputError(f"TensorRT has no products with {options.precision}; expected --precision {allowed}")
    if options.symmetric is False:
        raise InputError("TensorRT takes no zero points of 4 bits; leave out --asymmetric")
    if options.kv_cache not in (None, "float"):
        raise InputError(
            f"an engine's KV cache has the type of its activations; leave out --kv-cache {options.kv_cache}"
        )
    if options.group_size == CHANNEL:
        raise InputError(
            "TensorRT writes out weights with one scale for each row at each step; expected --group-size 32, 64 or 128"
        )


def check(job: Job) -> None:
    """An InputError for a model that the target cannot compute, or hold."""
    device = job.target.device
    if no_replay(job) is None:  # for ONNX Runtime
        return
    if "float32" in job.target.lacks and (decoder := job.spec.decoder) is not None and decoder.delta_net is not None:
        raise InputError(
            f"the target {job.target.name} has no products in float32, which linear attention keeps its memory in; "
            f"expected one of the targets {', '.join(_targets_with('float32'))}"
        )
    weights, states = device_bytes(job)
    if weights + states > device.memory_bytes:
        raise InputError(
            f"weights take {weights / 1e9:.1f} GB and states of {job.spec.context} tokens {states / 1e9:.1f} GB, but "
            f"the target {job.target.name} has {device.memory_bytes / 1e9:.0f} GB; choose a smaller --precision or "
            "--context, or a larger target"
        )


def device_bytes(job: Job) -> tuple[int, int]:
    """Bytes of all weights and of all states on the device; activations come on top."""
    weights = sum(stored_bytes(part) for graph in job.graphs for source in graph.sources for part in source.parameters)
    ports = (value for graph in job.graphs for value in graph.model.graph.inputs)
    states = sum(stored_bytes(port) for port in ports if str(port.name).startswith((CACHE, RECURRENT)))
    return weights, states


def _targets_with(precision: str) -> list[str]:
    """Names of the targets that have products with a precision."""
    targets = map(load_target, target_names())
    return [target.name for target in targets if target.gpu is not None and precision not in target.lacks]


def refuse_elsewhere(options: Options, target: TargetProfile) -> None:
    """An InputError for weights that TensorRT alone has products for."""
    if options.precision in PRECISIONS and PRECISIONS[options.precision].float8:
        raise InputError(f"--precision {options.precision} is for --format tensorrt; expected another, such as int8")
