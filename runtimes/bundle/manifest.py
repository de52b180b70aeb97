"""What a manifest may say: one record for each section, with types and ranges that are checked on opening and writing.

How its sections agree with one another stands in agreement.py.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from .calibration_evidence import CalibrationEvidence
from .graph_entries import GraphEntry
from .input_sections import (
    Clips,
    CropImages,
    EncoderEntry,
    FrameVideos,
    Limits,
    NoImagesEntry,
    PatchImages,
    PromptEntry,
    TileImages,
)
from .origin import FileEntry, Part, Source, Stored
from .ranges import Name, Number, Text
from .section import Section

FORMAT_VERSION = 1
MANIFEST = "lensmith.json"
DECODER, VISION_ENCODER, DRAFT_HEAD = "decoder", "vision_encoder", "mtp"  # names of graphs
Role = Literal["model", "encoder"]


class Sampling(msgspec.Struct, frozen=True):
    """What the runtime reads of a checkpoint's generation_config.json; the rest of that file is carried along."""

    do_sample: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    top_k: Annotated[int, Meta(ge=0, lt=1 << 31)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=1e6)] | None = None


class GoldenEntry(Section, frozen=True):
    """The golden traces of a bundle, or why it has none."""

    recorded: bool
    reason: Text | None = None
    advice: Text | None = None  # how a bundle without traces is checked
    proven: Text | None = None  # the reference that its float graphs were proven with, where it has no traces
    graphs: Text | None = None  # what was proven of graphs and of weights where PyTorch took no part
    weights: Text | None = None
    reference: Text | None = None
    cases: list[Name] = []
    steps: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    figures: dict[Name, Number] = {}  # the worst of each
    rounding: dict[Name, Number] = {}  # how near rounding leaves the bundle to the reference: means over all steps


class EvidenceEntry(Section, frozen=True):
    """What was measured when the bundle was built."""

    golden: GoldenEntry | UnsetType = UNSET
    calibration: CalibrationEvidence | UnsetType = UNSET


class OptionEntry(msgspec.Struct, frozen=True):
    """What the runtime reads of the options of the export; the others are carried along."""

    format: Literal["onnx", "gguf", "tensorrt"]
    precision: Name
    prefill_chunk: Annotated[int, Meta(ge=1, le=1 << 20)]
    cpu_features: list[Name] = []
    kv_cache: Literal["float", "float16", "int8"] = "float"


class InputSections(Section, frozen=True, kw_only=True):
    """The sections that say what a bundle takes."""

    image: PatchImages | CropImages | TileImages | NoImagesEntry
    limits: Limits
    graphs: dict[Name, GraphEntry] = {}
    prompt: PromptEntry | UnsetType = UNSET  # needed with a decoder
    video: FrameVideos | Clips | UnsetType = UNSET  # of models that take videos
    encoder: EncoderEntry | UnsetType = UNSET

    @property
    def role(self) -> Role:
        """What a bundle is loaded as: a model that answers, or an encoder of images alone."""
        return "encoder" if self.encoder is not UNSET else "model"

    @property
    def takes_images(self) -> bool:
        """Whether it has a vision encoder."""
        return not isinstance(self.image, NoImagesEntry)

    @property
    def takes_videos(self) -> bool:
        """Whether videos too go through the vision encoder."""
        return self.video is not UNSET

    @property
    def tokens_per_second(self) -> int | None:
        """Positions in time of a second of video; None where timestamps stand in the prompt."""
        return self.video.tokens_per_second if isinstance(self.video, FrameVideos) else None

    @property
    def merge_size(self) -> int:
        """Patches along each side of an image token."""
        return int(getattr(self.image if self.prompt is UNSET else self.prompt, "merge_size", 1))

    @property
    def mrope(self) -> bool:
        """Whether a token has positions along three axes, by the input of the decoder: [3, batch, seq]."""
        return len(self.graphs[DECODER].inputs["position_ids"].shape) == 3

    @property
    def vocab(self) -> int:
        """How many tokens the decoder has logits for."""
        last = self.graphs[DECODER].outputs["logits"].shape[-1]
        assert isinstance(last, int)
        return last

    def token_id(self, role: str, otherwise: int) -> int:
        """The id of the token in a role ("image_token"), where the model has it."""
        section = self.asked()
        return section.token_ids.get(getattr(section.tokens, role) or "", otherwise)

    def asked(self) -> PromptEntry:
        """The section on prompts, of a bundle that has a decoder."""
        assert self.prompt is not UNSET
        return self.prompt


class Manifest(InputSections, frozen=True, kw_only=True):
    """All sections. `BundleWriter` fills in format_version and files."""

    format_version: Annotated[int, Meta(ge=1, le=FORMAT_VERSION)]
    family: Name
    source: Source
    target: Name
    precision: dict[Name, Stored]
    graphs: Annotated[dict[Name, GraphEntry], Meta(min_length=1, max_length=8)]
    generation: Sampling
    evidence: EvidenceEntry
    tools: dict[Name, Name]
    options: OptionEntry
    files: Annotated[dict[str, FileEntry], Meta(max_length=10_000)]
    parts: dict[Name, Part] = {}  # by graph
