"""Records golden traces from a checkpoint in PyTorch: features of pictures, and answers to conversations."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from ...runtimes.bundle.bundle_writer import BundleWriter
from ...runtimes.bundle.manifest import DRAFT_HEAD, InputSections
from ...runtimes.bundle.opening import Bundle
from ...runtimes.engines.contract import Floats
from ...runtimes.evidence.outputs import with_sources
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
from ...runtimes.generation.timings import Timings
from ...runtimes.media.frames import VideoLimits
from ...runtimes.media.image_files import ImageLimits
from ...runtimes.media.media_encoder import MediaEncoder
from ...runtimes.media.pixels import image_spec
from ...runtimes.media.spaced_video import video_spec
from ...runtimes.prompt.manifest_specs import position_spec, prompt_spec
from ...runtimes.prompt.messages import find_media
from ...runtimes.prompt.prompt_builder import PromptBuilder, open_prompt
from ...runtimes.prompt.requests import Request, make_request, user_message
from ...targets.errors import InputError
from ..checkpoint.folder import Checkpoint
from ..progress import Progress
from ..spec import ModelSpec
from .golden_media import CLIP, FILES, sources
from .reference import Reference
from .their_inputs import TheirInputs

S_contra = TypeVar("S_contra", contravariant=True)


STEPS = 32  # tokens of each answer


GOLDEN = "golden"  # the folder of traces


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
