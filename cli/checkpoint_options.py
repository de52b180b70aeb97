"""What plan and export share: how a checkpoint is chosen and stored, and the job made of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..exporters.formats.gguf import file_types
from ..exporters.formats.gguf.file_types import FILE_TYPES
from ..exporters.graphs.kv_cache import KINDS as KV_CACHES
from ..exporters.storage.scheme import GROUP_SIZES, PRECISIONS
from ..targets.errors import InputError
from .long_work import needs
from .option_types import options

if TYPE_CHECKING:
    from ..exporters.job import Job
    from ..exporters.planning.planned_bundle import Plan
    from ..targets.profile import TargetProfile


FORMATS: dict[str, tuple[str, list[str]]] = {  # the precision by default, and all of them
    "onnx": ("int4", [name for name, precision in PRECISIONS.items() if not precision.float8]),
    "gguf": (file_types.DEFAULT, list(FILE_TYPES)),
    "tensorrt": ("int4", list(PRECISIONS)),
}


CHOICES = options(
    click.argument("checkpoint", type=click.Path(path_type=Path)),
    click.option("--hub-revision", metavar="NAME",
                 help="Branch, tag or commit, where CHECKPOINT is a name on the Hugging Face hub."),
    click.option("--adapter", type=click.Path(path_type=Path), metavar="FOLDER",
                 help="A LoRA adapter of peft to merge into the weights; also a name on the hub."),
    click.option("--format", type=click.Choice(list(FORMATS)), default="onnx", show_default=True,
                 help="What runs the model: ONNX Runtime, llama.cpp (gguf), or TensorRT."),
    click.option("--precision", type=click.Choice([*PRECISIONS, *FILE_TYPES], case_sensitive=False),
                 help="How weights are stored. onnx: fp32 to int4 and below, by default int4, which keep the vision "
                      "encoder at 8 bits. tensorrt: fp8 besides. gguf: a file type of llama.cpp, by default f16."),
    click.option("--group-size", type=click.Choice(list(GROUP_SIZES)),
                 help="Inputs that share one scale, by default 128, or as a quantized checkpoint has them; "
                      "channel: all of an output."),
    click.option("--asymmetric", is_flag=True, help="Give each group of the decoder a zero point."),
    click.option("--target", metavar="NAME", help="A row of `lensmith targets`; default: cpu."),
    click.option("--context", type=click.IntRange(1), metavar="N", help="Most tokens; default: the model's."),
    click.option("--kv-cache", type=click.Choice(KV_CACHES),
                 help="How keys and values are kept: float16 by default where weights are quantized for a CPU, else "
                      "float, as activations are; int8 in a quarter of the memory, with --calibrate."),
    click.option("--revision", metavar="NAME", help="Of the class that trained an Arlow encoder, A or B. Default: B."),
    click.option("--max-pixels", type=click.IntRange(1), metavar="N", help="Largest image area; default: the model's."),
    click.option("--tensor-type", "tensor_types", multiple=True, metavar="PATTERN=TYPE",
                 help="gguf: another type for tensors of the language model whose names the pattern finds."),
)  # fmt: skip


def prepared(
    checkpoint: Path,
    hub_revision: str | None,
    adapter: Path | None,
    group_size: str | None,
    asymmetric: bool,
    wishes: Mapping[str, Any] | None = None,
    **chosen: Any,
) -> tuple[Job, Plan]:
    """Open the checkpoint and make the plan; every error of the input shows here.

    `wishes` are those of a plan, which a folder without weights will do for.
    """
    with needs("export", "compiling a checkpoint"):
        from ..exporters.checkpoint.hub import located, located_adapter
        from ..exporters.pipeline import Options, prepare
        from ..exporters.planning.planned_bundle import make_plan
        from ..exporters.planning.proposals import ANYTHING, Budget
        from ..targets.profile import load_target
    outline, target = wishes is not None, None
    if outline:
        target = load_target(chosen["target"] or "cpu")
        chosen = _of_target(chosen, target)
    chosen["precision"] = _precision(**chosen)
    groups = None if group_size is None else GROUP_SIZES[group_size]
    options = Options(group_size=groups, symmetric=False if asymmetric else None, **chosen)
    place = located(checkpoint, hub_revision, outline=outline)
    job = prepare(place, options, adapter=located_adapter(adapter), outline=outline)
    return job, make_plan(job, target, ANYTHING if wishes is None else Budget(**wishes))


def _of_target(chosen: dict[str, Any], target: TargetProfile) -> dict[str, Any]:
    """What a plan takes: the target's usual format where none is named, and GGUF for any target that runs it."""
    context = click.get_current_context()
    formats = target.device.formats
    if context.get_parameter_source("format") is ParameterSource.DEFAULT:
        chosen = {**chosen, "format": formats[0]}
    if chosen["format"] == "gguf" and "gguf" in formats:
        chosen = {**chosen, "target": None}
    return chosen


def opened(checkpoint: Path, hub_revision: str | None, **of_model: Any) -> Job:
    """The checkpoint as a job of the usual options but for some, to be planned for any target."""
    with needs("export", "compiling a checkpoint"):
        from ..exporters.checkpoint.hub import located
        from ..exporters.pipeline import Options, prepare
    return prepare(located(checkpoint, hub_revision, outline=True), Options(**of_model), outline=True)


def _precision(format: str, precision: str | None, **_: Any) -> str:
    default, names = FORMATS[format]
    if precision is not None and precision not in names:
        raise InputError(f"--precision {precision} is none of --format {format}; expected {', '.join(names)}")
    return precision or default
