"""A bundle against its checkpoint in PyTorch: speed, memory, size and accuracy, each contender in its own process."""

from __future__ import annotations

import importlib.util
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...runtimes.bundle.calibration_evidence import read_evidence
from ...runtimes.bundle.opening import Bundle, open_bundle
from ...runtimes.generation.intake import DEFAULT_CONTEXT
from ...runtimes.generation.loading import answers
from ...runtimes.media.pixels import image_spec
from ...runtimes.process.core_limits import available_cores
from ...targets.errors import (
    InputError,
    MissingExtra,
    closest,
)
from ..checkpoint.folder import Checkpoint, open_checkpoint
from ..checkpoint.lora.settings import CONFIG
from ..checkpoint.prequantized.declared import FILES
from ..evidence.reference import DTYPES
from ..families.families import find_family
from ..progress import Progress
from ..reports.records import Report
from ..tasks.question_files import read_questions
from .cases import (
    benchmark_image,
    builtin_cases,
    spread_over_tasks,
)
from .contender import Assignment
from .job_process import run_job
from .tensor_outcomes import assemble, precision_name

TRACED_CASES = 32  # cases that distributions are compared on; each trace takes vocab x text tokens x 4 bytes of disk
SETTINGS = ("config.json", CONFIG, *FILES)  # that weights depend on
MIN_ROOM = 256  # tokens of the context kept for the text around the timed image


@dataclass(frozen=True)
class CompareOptions:
    """What to measure."""

    dtypes: tuple[str, ...] = ("float32", "bfloat16")  # of PyTorch; float32, or else the first, is the reference
    threads: int | None = None  # of every contender; None: one for each core
    repeats: int = 3
    tasks: Path | None = None  # JSONL of {"task", "images": [paths relative to it], "prompt", "answer"}, or a benchmark
    benchmark: str | None = None  # which one, where neither the name of its file nor its columns tell
    limit: int | None = None  # samples of each task
    image: Path | None = None  # to time; None: a generated photo
    prompt: str = "Describe this image."
    decode_steps: int = 32
    command: str = ""  # the command line, for the report
    baselines: tuple[str, ...] = ()  # other ways to run the checkpoint, see baselines.py

    def __post_init__(self) -> None:
        for dtype in self.dtypes:
            if dtype not in DTYPES:
                raise InputError(f"PyTorch cannot be compared in {dtype!r}; {closest(dtype, DTYPES)}")
        if not self.dtypes or len(set(self.dtypes)) != len(self.dtypes):
            raise InputError(f"the dtypes to compare are {list(self.dtypes)}; expected different ones of {DTYPES}")
        for name in ("threads", "repeats", "limit", "decode_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name.replace('_', ' ')} is {value}; expected at least 1")

    @property
    def reference(self) -> str:
        """The dtype that accuracy is measured against."""
        return "float32" if "float32" in self.dtypes else self.dtypes[0]


def compare(
    bundle_path: str | Path,
    checkpoint_path: str | Path,
    options: CompareOptions | None = None,
    progress: Progress = lambda *_: None,
    *,
    adapter: str | Path | None = None,
) -> Report:
    """Measure all contenders one after another; an `adapter` belongs to the checkpoint.

    Raises InputError for unusable inputs, MissingExtra without PyTorch, and LensmithError when a contender fails.
    """
    options = options or CompareOptions()
    bundle, checkpoint = open_bundle(bundle_path), open_checkpoint(checkpoint_path, adapter)
    if not answers(bundle):
        raise InputError(f"{bundle.path} has no decoder, so there are no answers to compare; lensmith verify says how "
                         "far its features are from PyTorch's")  # fmt: skip
    find_family(checkpoint)
    need_torch()
    require_source(bundle, checkpoint)
    calibration = read_evidence(bundle.content)  # before what takes long
    with tempfile.TemporaryDirectory(prefix="lensmith-compare-") as folder:
        jobs = _jobs(bundle, checkpoint, options, Path(folder))
        results = [run_job(job, Path(folder) / str(index), progress) for index, job in enumerate(jobs)]
        traced = len(jobs[0].traced)
        if options.tasks is None:
            samples = f"{traced} built-in questions with generated images, answered by {jobs[0].name}"
        else:
            samples = f"{traced} samples of {options.tasks.name} with its answers"
        return assemble(
            bundle, checkpoint, jobs, results, samples=samples, command=options.command, calibration=calibration
        )


def need_torch() -> None:
    """Raises MissingExtra where PyTorch or transformers is missing."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        raise MissingExtra("comparing with PyTorch", "torch")


def require_source(bundle: Bundle, checkpoint: Checkpoint) -> None:
    """The weights and the configuration must be those of the export, by hash; other files may have changed."""
    recorded, found = bundle.content["source"]["files"], checkpoint.source_files()
    for name in sorted(recorded.keys() | found.keys()):
        if (name in SETTINGS or name.endswith(".safetensors")) and recorded.get(name) != found.get(name):
            raise InputError(
                f"{bundle.path} was not exported from {checkpoint.path}: {name} differs from the manifest's; "
                "compare with the checkpoint, and the adapter, of the export, or export again"
            )


def _jobs(bundle: Bundle, checkpoint: Checkpoint, options: CompareOptions, folder: Path) -> list[Assignment]:
    """One job for each contender, the reference first, since the others read its traces, and the bundle last."""
    blind = not bundle.manifest.takes_images
    if blind and options.image:
        raise InputError(f"{bundle.path} takes no images; leave out the image to time")
    cases = (
        read_questions(options.tasks, folder, options.benchmark, options.limit)
        if options.tasks
        else builtin_cases(folder)
    )
    cases = [case for case in cases if options.tasks or not (blind and case.images)]
    shared: dict[str, Any] = {
        "bundle": str(bundle.path.resolve()),
        "checkpoint": str(checkpoint.path.resolve()),
        "adapter": str(checkpoint.adapter.resolve()) if checkpoint.adapter else None,
        "threads": options.threads or available_cores(),
        "tuned": options.threads is None,
        "repeats": options.repeats,
        "image": "" if blind else str((options.image or timed_photo(bundle, options, folder)).resolve()),
        "prompt": options.prompt,
        "decode_steps": options.decode_steps,
        "cases": tuple(replace(case, images=tuple(str(Path(i).resolve()) for i in case.images)) for case in cases),
        "traced": tuple(spread_over_tasks(cases, TRACED_CASES)),
        "traces": str(folder),
    }
    asked = options.tasks is not None
    jobs = []
    for dtype in sorted(options.dtypes, key=lambda dtype: dtype != options.reference):
        first = dtype == options.reference
        jobs.append(Assignment(f"PyTorch {dtype}", dtype=dtype, is_reference=first, answers=first and asked, **shared))
    name = f"lensmith {precision_name(bundle)}"
    return [*jobs, Assignment(name, dtype=None, is_reference=False, answers=asked, **shared)]


def timed_photo(bundle: Bundle, options: CompareOptions, folder: Path) -> Path:
    limits = bundle.content["limits"]
    room = min(bundle.manifest.limits.context, DEFAULT_CONTEXT) - options.decode_steps - MIN_ROOM
    return benchmark_image(folder, limits, image_spec(bundle.manifest).factor, room)
