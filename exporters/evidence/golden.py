"""Records golden traces: built-in images and conversations, run through the checkpoint in PyTorch."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

from ...runtimes.bundle.bundle_writer import BundleWriter
from ...runtimes.bundle.checked_manifest import inputs_of
from ...runtimes.bundle.manifest import DRAFT_HEAD, InputSections
from ...runtimes.bundle.opening import Bundle
from ...runtimes.engines.contract import Floats
from ...runtimes.evidence.built import (
    RECORD,
    SAMPLES,
    Run,
    write_built,
)
from ...runtimes.evidence.outputs import with_sources
from ...runtimes.evidence.replay import Row, summarize
from ...runtimes.evidence.traces import (
    ARRAYS,
    CASES,
    DRAFTED,
    CaseTrace,
    ImageTrace,
    Traces,
    tops_of,
    write_traces,
)
from ...runtimes.generation.model import position_spec, prompt_spec
from ...runtimes.generation.timings import Timings
from ...runtimes.media.frames import VideoLimits
from ...runtimes.media.image_files import ImageLimits
from ...runtimes.media.media_encoder import MediaEncoder
from ...runtimes.media.pixels import image_spec
from ...runtimes.media.spaced_video import video_spec
from ...runtimes.prompt.messages import find_media
from ...runtimes.prompt.prompt_builder import PromptBuilder, open_prompt
from ...runtimes.prompt.requests import Request, make_request, user_message
from ...targets.errors import CheckFailed, InputError, MissingExtra
from ..checkpoint.folder import Checkpoint
from ..formats.elsewhere import Elsewhere
from ..progress import Progress
from ..spec import ModelSpec
from .golden_media import CLIP, FILES, sources
from .own_traces import own_pictures, record_own
from .reference import Reference, import_torch
from .self_replay import self_replay, with_meant
from .their_inputs import TheirInputs

S_contra = TypeVar("S_contra", contravariant=True)
Golden = Literal["auto", "always", "never"]

STEPS = 32  # tokens of each answer
AUTO_BYTES = 2_000_000_000  # of float32 weights; more would take away the low memory of an export
GOLDEN = "golden"  # the folder of traces
NOTHING = "nothing was compared"
WEIGHTS = "rows of each tensor were compared with the checkpoint's"
SMALL = 50_000_000  # parameters; below, more than one thread waits more than it computes
FIRST, SECOND, THIRD = FILES
ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "A disc on a striped background."}]}
CONVERSATIONS: Mapping[str, list[dict[str, Any]]] = {
    "text only": [user_message("Name three colours. Nenne drei Farben: rot, grün …")],
    "one image": [user_message("What is in this picture?", [FIRST])],
    "three images": [user_message("Compare the three pictures.", [SECOND, THIRD, FIRST])],
    "two turns": [user_message("Describe it.", [SECOND]), ANSWER, user_message("And how does this differ?", [THIRD])],
}


VIDEO_CONVERSATIONS: Mapping[str, list[dict[str, Any]]] = {
    "image and video": [user_message("What moves in the video, and not in the picture?", [THIRD], [CLIP])],
}


class Drafter(Protocol):
    """A head for drafts in PyTorch."""

    def guesses(self, request: Request, answer: Sequence[int], count: int) -> Floats:
        """Logits [count, vocab] of what follows each of the first tokens of an answer's next ones."""
        ...


class Recorder(Protocol[S_contra]):
    """Writes the golden traces of a checkpoint into `golden/` of a bundle."""

    def __call__(
        self,
        checkpoint: Checkpoint,
        spec: S_contra,
        writer: BundleWriter,
        manifest: Mapping[str, Any],
        *,
        threads: int | None = None,
        progress: Progress = ...,
    ) -> Traces: ...


def evidence(
    recording: Callable[[int | None], Traces],
    parameters: int,
    writer: BundleWriter,
    manifest: Mapping[str, Any],
    prove: Callable[[Traces], Run | None],
    prove_weights: Callable[[], None],
    *,
    golden: Golden = "auto",
    elsewhere: Elsewhere | None = None,
) -> dict[str, Any]:
    """Record golden traces into a bundle, prove and replay it with them, and give the figures for its manifest.

    A bundle that runs `elsewhere` only is proven, and keeps no traces.

    "auto" records them when PyTorch is installed and the weights are small in float32, and else gives the reason,
    proves the weights alone and records traces of the bundle itself. "always" raises MissingExtra and InputError.
    """
    reason = _reason_against(parameters, golden)
    if reason is None:
        try:
            traces = recording(1 if parameters < SMALL else None)
            meant = prove(traces)
            if elsewhere is None:
                return _replayed(traces, meant, writer, manifest)
            _drop(writer)
            return {"recorded": False, **vars(elsewhere), "proven": traces.reference}
        except InputError as error:
            if golden == "always":
                raise
            reason = str(error)
    if golden == "never":
        return {"recorded": False, "reason": reason, "graphs": NOTHING, "weights": NOTHING, **_where(elsewhere)}
    prove_weights()
    own = _own(writer, manifest, reason) if elsewhere is None else {"recorded": False, "reason": reason}
    return {**own, "graphs": NOTHING, "weights": WEIGHTS, **_where(elsewhere)}


def _where(elsewhere: Elsewhere | None) -> dict[str, Any]:
    return {} if elsewhere is None else vars(elsewhere)


def _own(writer: BundleWriter, manifest: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """Traces of the bundle itself, so that a device can be told from the machine of the build."""
    asked = conversations(own_pictures(inputs_of(manifest)))
    try:
        traces = record_own(dict(reversed(asked.items())), writer, manifest)
    except InputError as error:
        _drop(writer)
        return {"recorded": False, "reason": f"{reason}; and the bundle itself was not replayed: {error}"}
    write(traces, writer, {})
    names = [case.name for case in traces.cases] or [image.file for image in traces.images]
    return {"recorded": True, "reason": reason, "reference": traces.reference, "cases": names}


def _drop(writer: BundleWriter) -> None:
    """Take back what was written for traces."""
    writer.leave_out(name for name in writer.names if name.startswith(f"{GOLDEN}/"))
    shutil.rmtree(writer.partial / GOLDEN, ignore_errors=True)


def _reason_against(parameters: int, golden: Golden) -> str | None:
    if golden == "never":
        return "switched off by --golden never"
    if golden == "always":
        return None
    if 4 * parameters > AUTO_BYTES:
        return f"PyTorch needs {4 * parameters / 1e9:.1f} GB for the float32 weights; --golden always records them"
    try:
        import_torch()
    except MissingExtra as error:
        return str(error)
    return None


def _replayed(traces: Traces, meant: Run | None, writer: BundleWriter, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest says about the traces, with the figures of their first replay; records what it gave."""
    rows, built = self_replay(writer.preview(manifest), traces)
    figures = summarize(rows)
    wrong = [name for name, value in figures.items() if not math.isfinite(value)]
    if wrong:
        raise CheckFailed(
            f"the graphs of {writer.out} give values that are not finite ({wrong[0]}); use another precision"
        )
    if meant is not None:
        built = with_meant(built, meant, str(writer.out))
    write_built(built, writer.add(RECORD), writer.add(SAMPLES))
    names = [case.name for case in traces.cases] or [image.file for image in traces.images]
    steps = {"steps": STEPS} if traces.cases else {}
    about = {"reference": traces.reference, "cases": names, **steps, "figures": figures, "rounding": _means(rows)}
    return {"recorded": True, **about}


def _means(rows: list[Row]) -> dict[str, float]:
    """How good the rounding is, which no check depends on: the mean KL in nats, and the share of PyTorch's tokens."""
    kinds = {"mean_kl": ("logits_kl", "step_logits_kl"), "same_token": ("greedy_agreement",)}
    values = {name: [row.value for row in rows if row.figure in figures] for name, figures in kinds.items()}
    return {name: float(f"{sum(found) / len(found):.4g}") for name, found in values.items() if found}


def record(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    writer: BundleWriter,
    manifest: Mapping[str, Any],
    *,
    threads: int | None = None,
    progress: Progress = lambda *_: None,
    open_head: Callable[[Reference], Drafter] | None = None,
) -> Traces:
    """Run the built-in conversations through PyTorch in float32 and write them into `golden/`.

    The bundle must hold its tokenizer and chat template already. Conversations that its context cannot hold are left
    out; InputError when it holds none.
    """
    reference = Reference(checkpoint.path, threads=threads, adapter=checkpoint.adapter)
    bundle = writer.preview(manifest)
    head = open_head(reference) if open_head is not None and DRAFT_HEAD in bundle.manifest.graphs else None
    theirs = TheirInputs(checkpoint.path, manifest, text_only=checkpoint.conventions.text_only)
    recorder = _Recorder(reference, head, theirs, bundle)
    files = {name: source for name, source in sources().items() if takes(name, bundle.manifest)}
    asked = conversations(files)
    images: list[ImageTrace] = []
    for name, source in files.items():
        progress("golden", len(images), len(files) + len(asked))
        images.append(recorder.image(name, source))
    cases: list[CaseTrace] = []
    for done, (name, messages) in enumerate(asked.items(), start=len(files) + 1):
        cases += recorder.case(name, messages)
        progress("golden", done, len(files) + len(asked))
    if not cases:
        raise InputError(f"a context of {recorder.context} tokens holds no golden trace; use a larger one")
    traces = Traces(recorder.reference.name, tuple(images), tuple(cases))
    return write(traces, writer, files)


def takes(file: str, inputs: InputSections) -> bool:
    """Whether a bundle takes one of the built-in files."""
    return inputs.takes_videos if file == CLIP else inputs.takes_images


def conversations(files: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """The built-in conversations, by name, that are about some of `files` or none."""
    asked, known = {**CONVERSATIONS, **VIDEO_CONVERSATIONS}, set(files)
    return {name: messages for name, messages in asked.items() if _media(messages) <= known}


def _media(messages: list[dict[str, Any]]) -> set[str]:
    """The files that a conversation is about."""
    return {str(source) for kind in ("image", "video") for source, _ in find_media(messages, kind)}


def write(traces: Traces, writer: BundleWriter, files: Mapping[str, bytes]) -> Traces:
    """Add traces and the files they were made of to a bundle."""
    for name, data in files.items():
        writer.add(name).write_bytes(data)
    write_traces(traces, writer.add(CASES), writer.add(ARRAYS))
    return traces


class _Recorder:
    """The reference with the prompts and images of one bundle."""

    def __init__(
        self,
        reference: Reference,
        head: Drafter | None,
        theirs: TheirInputs,
        bundle: Bundle,
    ) -> None:
        manifest = bundle.manifest
        self.reference, self.head, self.theirs = reference, head, theirs
        self.context = manifest.limits.context
        self.spec = image_spec(manifest)
        self.prompts: PromptBuilder = open_prompt(bundle.path, prompt_spec(manifest))
        self.positions = position_spec(manifest, self.prompts)
        limits = ImageLimits(), VideoLimits()
        self.media = MediaEncoder(reference.vision, self.spec, video_spec(manifest), *limits)
        self.sources = sources()

    def image(self, name: str, source: bytes) -> ImageTrace:
        """Of an image, or of all frames of a video at once."""
        patches, grid = self.media.cut(source, video=name == CLIP)
        self.theirs.check_image(name, source, patches, grid)
        return ImageTrace(name, grid, hashlib.sha256(patches.data).hexdigest(), self.reference.vision(patches, grid))

    def case(self, name: str, messages: list[dict[str, Any]]) -> Iterator[CaseTrace]:
        request = self.request(messages)
        if len(request.prompt) + STEPS > self.context:
            return
        run = self.reference.greedy(request, STEPS, ignore_eos=True)
        ids = [int(token) for token in request.prompt.ids]
        self.theirs.check_ids(name, messages, self.sources, ids)
        turns = sum(message["role"] == "user" for message in messages)
        follows = self.head is not None and turns == 1  # a later turn goes on behind what the head has not seen
        drafts = tops_of(self.head.guesses(request, run.ids, DRAFTED)) if self.head and follows else None
        yield CaseTrace(name, messages, ids, run.logits[0], run.ids, tops_of(run.logits), drafts)

    def request(self, messages: list[dict[str, Any]]) -> Request:
        given = [with_sources(message, self.sources) for message in messages]
        images, videos = self.media.encode(*self.media.open(given, Timings()), Timings())
        return make_request(self.prompts, self.positions, messages, images, videos)
