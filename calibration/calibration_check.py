"""What of a job can be calibrated, and by which methods."""

from __future__ import annotations

from ..exporters.formats.gguf.file_types import file_type
from ..exporters.job import Job
from ..targets.errors import InputError, closest
from .calibration_options import CalibrationOptions
from .layerwise.stage_quantizer import RECIPES
from .mixed_precision import (
    check_budget,
    schemes_of,
)

IMPORTANCE = "imatrix"  # the method of GGUF files


AUTO = "auto"


METHODS = {AUTO: "descent", **{name: name for name in RECIPES}}  # names on the command line


def check(job: Job, options: CalibrationOptions) -> None:
    """Raises InputError for what cannot be calibrated, before anything is written."""
    if options.only_samples and options.samples is None:
        raise InputError("--only-samples leaves built-in samples out, and no others are given; add --samples")
    if job.spec.decoder is None:
        raise InputError(
            f"{job.family.name} has no decoder, and calibration judges its predictions; leave out --calibrate"
        )
    if job.lowering.calibration == IMPORTANCE:
        if options.method != IMPORTANCE or options.budget is not None or options.max_kl is not None:
            raise InputError(
                "GGUF files are calibrated by llama.cpp's quantizer with an importance matrix; "
                f"use --calibrate {IMPORTANCE} without --budget and --max-kl"
            )
        if not file_type(job.options.precision).quantizer:
            raise InputError(f"precision {job.options.precision} takes no importance matrix; use one like q4_k_m")
        return
    if options.method not in METHODS:
        raise InputError(f"unknown calibration method {options.method!r}; {closest(options.method, METHODS)}")
    few_bits = any(scheme.quantized and scheme.bits < 8 for scheme in schemes_of(job.graphs).values())
    if not few_bits and not job.policy.kv_cache.quantized:
        raise InputError(f"precision {job.options.precision} rounds nothing that calibration could improve; use int4")
    if options.budget is not None and options.max_kl is not None:
        raise InputError("a budget and a largest KL cannot both be given; each decides the other")
    if (options.budget is not None or options.max_kl is not None) and job.asked.group_size is not None:
        raise InputError("--budget and --max-kl choose the size of groups for each matrix; leave out --group-size")
    if options.budget is not None:
        check_budget(job, options.budget)
