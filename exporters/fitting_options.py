"""What the user's options mean for one checkpoint, format and target, and refusals of those that have no effect."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..targets.errors import InputError
from ..targets.profile import TargetProfile, load_target, target_names
from .checkpoint.depths import check_depths
from .checkpoint.folder import Checkpoint
from .checkpoint.heads import settle_head
from .checkpoint.prequantized.kept import own_groups
from .families.family import Family
from .formats.lowering import Lowering
from .job import Options
from .spec import ModelSpec, Spec
from .storage.scheme import PRECISIONS


def with_own_groups(options: Options, checkpoint: Checkpoint, lowering: Lowering) -> Options:
    """With the groups of the checkpoint's own integers, where the user left groups open and a bundle can have them."""
    if not lowering.own_groups or options.precision not in PRECISIONS:
        return options
    own = own_groups(checkpoint.tensors.values(), PRECISIONS[options.precision].decoder)
    if own is None:
        return options
    groups = own[0] if options.group_size is None else options.group_size
    return replace(options, group_size=groups, symmetric=own[1] if options.symmetric is None else options.symmetric)


def check_target(name: str, target: TargetProfile, lowering: Lowering) -> None:
    """InputError for a target that the format of this name is not for."""
    if lowering.gpu != (target.gpu is not None):
        fitting = [each for each in target_names() if (load_target(each).gpu is not None) == lowering.gpu]
        raise InputError(f"format {name!r} is not for the target {target.name!r}; expected one of {', '.join(fitting)}")
    gpu = target.gpu
    if gpu is not None and gpu.has_engines and not gpu.builds_here and target.name not in target_names():
        raise InputError(
            f"{target.name} is a file of your own, and its engines are built on the device, where lensmith knows the "
            "target by its name alone; expected a row of `lensmith targets`, or a flavour that builds here"
        )


def fitted_spec(
    checkpoint: Checkpoint, family: Family[Any], options: Options, target: TargetProfile
) -> tuple[Checkpoint, Spec]:
    """What a checkpoint is, with the context that the user or the target wants, and only what its weights hold.

    InputError where its weights and its configuration do not belong together.
    """
    spec: Spec = family.describe(checkpoint.config).revised(options.revision)
    wanted = options.context
    if wanted is None and target.gpu is not None and spec.decoder is not None:
        wanted = min(spec.context, target.gpu.context)
    spec = spec.limited(wanted)
    if checkpoint.outline:
        return checkpoint, spec
    check_depths(checkpoint, family.depths(spec))
    if isinstance(spec, ModelSpec):
        checkpoint, spec = settle_head(checkpoint, spec, family.prefixes)
    return checkpoint, family.fit(spec, checkpoint)


def refuse_idle(options: Options, lowering: Lowering, *, grouped: bool) -> None:
    """An InputError for wishes about groups of weights where none are stored in groups of a chosen size."""
    wishes = {"--group-size": options.group_size is not None, "--asymmetric": options.symmetric is False}
    idle = [name for name, wished in wishes.items() if wished and not grouped]
    if idle:
        raise InputError(
            f"{idle[0]} has no effect: with --format {options.format} --precision {options.precision} no matrix of a "
            "decoder is stored as integers in groups; leave it out"
        )
    if options.tensor_types and not lowering.tensor_types:
        raise InputError(f"--tensor-type has no effect with --format {options.format}; it is for gguf: leave it out")
