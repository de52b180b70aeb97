"""Says what of a matrix cannot be measured before its first build, which may be hours before its report."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from ...runtimes.media.image_files import open_image
from ...targets.errors import InputError
from ..checkpoint.folder import open_checkpoint
from ..comparing.baselines import baseline_fields
from ..comparing.cases import Case, pictured
from ..comparing.comparison import CompareOptions, need_torch
from ..families.families import find_family
from ..reports.gate import Gate
from ..spec import Spec
from ..tasks.question_files import read_questions
from .matrix_file import Matrix


def check_measuring(matrix: Matrix, options: CompareOptions, gate: Gate | None = None) -> None:
    """InputError for questions, pictures, baselines or a condition that no report could be made with.

    Models that cannot be opened are left to their builds, which say so and leave the others.
    """
    if matrix.compare.against:
        need_torch()
    for wish in options.baselines:
        baseline_fields(wish, against=matrix.compare.against)
    if gate is not None:
        gate.require(tasks=options.tasks is not None)
    specs = {name: spec for name in matrix.models if (spec := _spec(name)) is not None}
    if options.image is not None:
        open_image(options.image)
        _refuse_blind(specs)
    if options.tasks is not None:
        with tempfile.TemporaryDirectory(prefix="lensmith-questions-") as folder:
            cases = read_questions(options.tasks, Path(folder), options.benchmark, options.limit)
        _check_pictures(options.tasks, cases, specs)


def _spec(model: str) -> Spec | None:
    try:
        checkpoint = open_checkpoint(model, outline=True)
        found: Spec = find_family(checkpoint).describe(checkpoint.config)
    except InputError:
        return None
    return found


def _refuse_blind(specs: dict[str, Spec]) -> None:
    for name, spec in specs.items():
        if spec.vision is None:
            raise InputError(f"{name} takes no images; leave out the image of [compare], or measure it by itself")


def _check_pictures(tasks: Path, cases: Sequence[Case], specs: dict[str, Spec]) -> None:
    for name, spec in specs.items():
        if spec.decoder is None:
            pictured(cases, tasks, name)
