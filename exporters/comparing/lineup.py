"""Any number of builds next to each other and to other ways to run their checkpoints, each in its own process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ...runtimes.bundle.opening import Bundle, open_bundle
from ...runtimes.generation.loading import answers
from ...runtimes.process.core_limits import available_cores
from ...targets.errors import InputError, LensmithError
from ..checkpoint.folder import Checkpoint, open_checkpoint
from ..distinct_names import distinct, shortest_ends
from ..families.families import find_family
from ..progress import Progress
from ..reports.lineup_records import Lineup, Measured, noise_of
from ..tasks.question_files import read_questions
from .baselines import baseline_jobs
from .cases import Case, builtin_cases, pictured, spread_over_tasks
from .comparison import TRACED_CASES, CompareOptions, need_torch, require_source, timed_photo
from .contender import Assignment
from .entrants import Outcome, entrant, measured
from .job_process import run_job
from .machine import environment, has_nvidia_gpu, load_average

GPU_DIALECTS = ("cuda", "tensorrt")  # of graphs that run there alone, or are built there


@dataclass(frozen=True)
class Group:
    """Bundles of one checkpoint, which may be there itself."""

    bundles: tuple[Bundle, ...]
    checkpoint: Checkpoint | None = None
    label: str = ""  # where another group's checkpoint has the same name

    @property
    def model(self) -> str:
        """The name of the checkpoint."""
        return self.label or str(self.bundles[0].manifest.source.name)

    @property
    def encoder(self) -> bool:
        return not answers(self.bundles[0])


def grouped(paths: Sequence[str | Path], checkpoints: Sequence[Checkpoint] = (), *, alone: bool = True) -> list[Group]:
    """Bundles by the checkpoint that they were made of, each with its checkpoint where that is among those given.

    InputError for a bundle that is named twice. A checkpoint that is given `alone` must be that of all bundles.
    """
    bundles = [open_bundle(path) for path in dict.fromkeys(paths)]
    places = [bundle.path.resolve() for bundle in bundles]
    if len(set(places)) < len(paths):
        raise InputError("a bundle is named twice; name each one once")
    groups: dict[str, list[Bundle]] = {}
    for bundle in bundles:
        groups.setdefault(repr(sorted(bundle.content["source"]["files"].items())), []).append(bundle)
    if alone and len(checkpoints) == 1:  # the sentence says what differs
        for bundle in bundles:
            require_source(bundle, checkpoints[0])
        return [Group(tuple(bundles), checkpoints[0])]
    return [Group(tuple(found), _checkpoint_of(found[0], checkpoints)) for found in groups.values()]


def _checkpoint_of(bundle: Bundle, checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    for checkpoint in checkpoints:
        try:
            require_source(bundle, checkpoint)
        except InputError:
            continue
        return checkpoint
    return None


def compare_many(
    paths: Sequence[str | Path],
    checkpoint: str | Path | None = None,
    options: CompareOptions | None = None,
    progress: Progress = lambda *_: None,
    *,
    adapter: str | Path | None = None,
) -> Lineup:
    """Measure bundles, a checkpoint in PyTorch if it is given, and the baselines of `options`, one after another.

    Raises InputError for unusable inputs. What fails on its way is an entrant with a sentence in place of figures.
    """
    checkpoints = [] if checkpoint is None else [open_checkpoint(checkpoint, adapter)]
    return compare_groups(grouped(paths, checkpoints), options or CompareOptions(), progress)


def compare_groups(groups: Sequence[Group], options: CompareOptions, progress: Progress = lambda *_: None) -> Lineup:
    """As `compare_many`, of bundles that are open already."""
    labels = distinct(group.model for group in groups)
    groups = [replace(group, label=label) for group, label in zip(groups, labels, strict=True)]
    names = iter(shortest_ends([bundle.path.resolve() for group in groups for bundle in group.bundles]))
    with tempfile.TemporaryDirectory(prefix="lensmith-compare-") as name:
        made = [
            _Run(group, [*islice(names, len(group.bundles))], options, Path(name) / str(index), progress)
            for index, group in enumerate(groups)
        ]
        jobs = [run.jobs() for run in made]
        results = [run.outcomes(each) for run, each in zip(made, jobs, strict=True)]
        noise = made[0].noise(jobs[0], results[0])
    rows = [
        [entrant(job, result, found[0], run.group, several=len(groups) > 1)
         for job, result in zip(each, found, strict=True)]
        for run, each, found in zip(made, jobs, results, strict=True)
    ]  # fmt: skip
    first = jobs[0][0]
    return Lineup(
        entrants=tuple(sorted(chain(*rows), key=lambda row: not row.is_bundle)),
        references={run.group.model: row[0].name for run, row in zip(made, rows, strict=True)},
        noise=noise,
        threads=first.threads,
        repeats=first.repeats,
        decode_steps=first.decode_steps,
        image=Path(first.image).name or "no image",
        prompt=first.prompt,
        samples=_samples(first, options),
        environment=environment(),
        command=options.command,
        notes=tuple(dict.fromkeys(_notes(first.threads, results))),
    )


def _samples(job: Assignment, options: CompareOptions) -> str:
    if options.tasks is None:
        return f"{len(job.traced)} built-in questions with generated images"
    return f"{len(job.cases)} questions of {options.tasks.name}, distributions on {len(job.traced)} of them"


def _notes(threads: int, results: Sequence[Sequence[Outcome]]) -> Iterator[str]:
    yield "All bundles and PyTorch get the same token ids and the same patches, cut by lensmith's image processing."
    kept = f"{min(threads, available_cores())} of {available_cores()} cores"
    yield f"Each process was kept on {kept}, where the system can."
    for outcomes in results:
        yield from (outcome.result["note"] for outcome in outcomes if "note" in outcome.result)
    if (busy := load_average()) > 0.5 * available_cores() + threads:
        yield f"Other programs were running (load average {busy:.1f}): the times are longer than on an idle machine."


def _on_gpu(path: str) -> bool:
    """Whether a bundle is computed on a GPU, or is still to be built there."""
    return any(graph.dialect in GPU_DIALECTS for graph in open_bundle(path).manifest.graphs.values())


def encodes_alone(path: str | Path) -> bool:
    """Whether a path is that of a bundle without a decoder."""
    try:
        return not answers(open_bundle(path))
    except InputError:
        return False


class _Run:
    """The measurements of one group, in a folder of its own."""

    def __init__(
        self, group: Group, names: Sequence[str], options: CompareOptions, folder: Path, progress: Progress
    ) -> None:
        """`names` are those of the bundles."""
        self.group, self.names, self.options, self.folder, self.progress = group, names, options, folder, progress
        folder.mkdir()
        if group.checkpoint is not None:
            find_family(group.checkpoint)
            need_torch()
        if len({answers(bundle) for bundle in group.bundles}) > 1:
            raise InputError("some bundles answer and some encode images alone; compare them apart")

    def jobs(self) -> list[Assignment]:
        """The reference first, whose traces the others read: PyTorch where the checkpoint is there, else a bundle."""
        options, shared = self.options, self._shared()
        tasks = options.tasks is not None and not self.group.encoder
        made = []
        if self.group.checkpoint is not None:
            for dtype in sorted(options.dtypes, key=lambda dtype: dtype != options.reference):
                made.append(Assignment(f"PyTorch {dtype}", dtype=dtype, **shared))
        made += [Assignment(name, dtype=None, **{**shared, "bundle": str(bundle.path.resolve())})
                 for name, bundle in zip(self.names, self.group.bundles, strict=True)]  # fmt: skip
        made += baseline_jobs(options.baselines, shared, self.group.checkpoint)
        names = distinct(job.name for job in made)  # one program may run several files
        return [replace(job, name=name, is_reference=index == 0, answers=tasks)
                for index, (job, name) in enumerate(zip(made, names, strict=True))]  # fmt: skip

    def _shared(self) -> dict[str, Any]:
        options, checkpoint, first = self.options, self.group.checkpoint, self.group.bundles[0]
        cases, blind = self._cases(), not first.manifest.takes_images
        if blind and options.image:
            raise InputError(f"{first.path} takes no images; leave out the image to time")
        return {
            "bundle": str(first.path.resolve()),
            "checkpoint": str(checkpoint.path.resolve()) if checkpoint else "",
            "adapter": str(checkpoint.adapter.resolve()) if checkpoint and checkpoint.adapter else None,
            "threads": options.threads or available_cores(),
            "tuned": options.threads is None,
            "repeats": options.repeats,
            "image": "" if blind else str((options.image or self._photo()).resolve()),
            "prompt": options.prompt,
            "decode_steps": options.decode_steps,
            "cases": tuple(cases),
            "traced": tuple(spread_over_tasks(cases, TRACED_CASES)),
            "traces": str(self.folder),
            "is_reference": False,
            "answers": False,
            "encoder": self.group.encoder,
            "strict": False,
            "pinned": True,
        }

    def _cases(self) -> list[Case]:
        options, blind = self.options, not self.group.bundles[0].manifest.takes_images
        if options.tasks:
            cases = read_questions(options.tasks, self.folder, options.benchmark, options.limit)
        else:
            cases = [case for case in builtin_cases(self.folder) if not (blind and case.images)]
        if self.group.encoder:
            cases = pictured(cases, options.tasks, self.group.bundles[0].path)
        return [replace(case, images=tuple(str(Path(image).resolve()) for image in case.images)) for case in cases]

    def _photo(self) -> Path:
        """The largest that all bundles take, so that all of them see the same one."""
        photos = [timed_photo(bundle, self.options, self.folder) for bundle in self.group.bundles]
        return min(photos, key=lambda path: path.stat().st_size)

    def outcomes(self, jobs: Sequence[Assignment]) -> list[Outcome]:
        """The result of each job, or why it failed; without a reference nothing is compared with it."""
        found: list[Outcome] = []
        for index, job in enumerate(jobs):
            if found and found[0].failure:
                job = replace(job, traced=())
            found.append(self._outcome(job, self.folder / f"job-{index}"))
        return found

    def _outcome(self, job: Assignment, folder: Path) -> Outcome:
        try:
            return Outcome(run_job(job, folder, self.progress))
        except LensmithError as error:
            why = str(error).removeprefix(f"{job.name}: ")
            if job.dtype is None and job.program is None and not has_nvidia_gpu() and _on_gpu(job.bundle):
                return Outcome({}, f"it needs a GPU of NVIDIA, whose driver is not on this machine: {why}", "a GPU")
            return Outcome({}, why)

    def noise(self, jobs: Sequence[Assignment], found: Sequence[Outcome]) -> dict[str, float]:
        """How far apart two processes of one bundle are that does the same, with the spread of all repeats."""
        pairs = [(job, outcome) for job, outcome in zip(jobs, found, strict=True) if not outcome.failure]
        chosen = next(((job, outcome) for job, outcome in pairs if job.dtype is None and job.program is None), None)
        if chosen is None:
            return {}
        again = self._outcome(replace(chosen[0], traced=(), answers=False), self.folder / "again")
        others: list[Measured] = [measured(outcome.result) for _, outcome in pairs]
        return {} if again.failure else noise_of(measured(chosen[1].result), measured(again.result), others)
