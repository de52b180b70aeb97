"""What TensorRT cannot do, said before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...targets.errors import InputError
from ...targets.profile import TargetProfile, load_target, target_names
from ..scheme import CHANNEL, PRECISIONS

if TYPE_CHECKING:
    from ..export import Job, Options

FEW_BITS = ("int3", "int2")


def no_replay(job: Job) -> str | None:
    """Why golden traces cannot be replayed where the bundle is built; None for float32, which ONNX Runtime runs."""
    if job.options.precision == "fp32" or (job.target.gpu and job.target.gpu.activations == "float32"):
        return None
    return "engines run on their GPU alone"


def refuse(options: Options, target: TargetProfile) -> None:
    """An InputError for weights that TensorRT, or the target, has no products for."""
    gpu = target.gpu
    assert gpu is not None
    if options.precision in gpu.lacks:
        allowed = ", ".join(name for name in PRECISIONS if name not in (*FEW_BITS, *gpu.lacks))
        raise InputError(
            f"the target {target.name} has no products with {options.precision}; expected --precision {allowed}, "
            f"or one of the targets {', '.join(_targets_with(options.precision))}"
        )
    if options.precision in FEW_BITS:
        allowed = ", ".join(name for name in PRECISIONS if name not in FEW_BITS)
        raise InputError(f"TensorRT has no products with {options.precision}; expected --precision {allowed}")
    if not options.symmetric:
        raise InputError("TensorRT takes no zero points of 4 bits; leave out --asymmetric")
    if options.kv_cache != "float":
        raise InputError(
            f"an engine's KV cache has the type of its activations; leave out --kv-cache {options.kv_cache}"
        )
    if options.group_size == CHANNEL:
        raise InputError(
            "TensorRT writes out weights with one scale for each row at each step; expected --group-size 32, 64 or 128"
        )


def _targets_with(precision: str) -> list[str]:
    """Names of the targets that have products with a precision."""
    gpus = {name: load_target(name).gpu for name in target_names()}
    return [name for name, gpu in gpus.items() if gpu is not None and precision not in gpu.lacks]


def refuse_elsewhere(options: Options, target: TargetProfile) -> None:
    """An InputError for weights that TensorRT alone has products for."""
    if options.precision in PRECISIONS and PRECISIONS[options.precision].float8:
        raise InputError(f"--precision {options.precision} is for --format tensorrt; expected another, such as int8")
