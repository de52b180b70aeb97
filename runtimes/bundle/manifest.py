"""What a manifest may say: one record for each section, with types and ranges that are checked on opening and writing.

How its sections agree with one another stands in agreement.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from .calibration_evidence import CalibrationEvidence
from .ranges import (
    Area,
    Bits,
    Count,
    Factor,
    GroupSize,
    Hash,
    LeastArea,
    Mean,
    Name,
    Number,
    Shape,
    Side,
    Sides,
    Size,
    Std,
    Text,
    Token,
    TokenId,
)

Profile: TypeAlias = dict[Name, Annotated[list[list[Size]], Meta(min_length=3, max_length=3)]]
Dtype: TypeAlias = Literal["FLOAT", "FLOAT16", "BFLOAT16", "INT64", "INT32", "INT8", "UINT8", "BOOL"]
FORMAT_VERSION = 1
MANIFEST = "lensmith.json"


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A record in which a field that is not listed is an error, since nobody would obey it."""


class FileEntry(Section, frozen=True):
    """A file: its size in bytes and its SHA-256, of large ones also that of the first bytes."""

    size: Count
    sha256: Hash
    begin_sha256: Hash | None = None


class Quantized(Section, frozen=True):
    """How the weights of a checkpoint were stored, and the tensors beside them that had no use."""

    method: Name
    declared_in: Text
    unused: list[Name] = []


class MergedAdapter(Section, frozen=True):
    """The LoRA adapter that was merged into the weights: changed modules, and tensors that were saved as a whole."""

    name: Name
    base: Text
    rank: Count
    alpha: Number
    dora: bool
    modules: Count
    saved: Count


class Repository(Section, frozen=True):
    """Where on the hub a checkpoint or an adapter came from; the commit fixes every byte."""

    repository: Name
    commit: Name


class Source(Section, frozen=True):
    """The checkpoint that a bundle was made of."""

    name: Name
    files: dict[Name, FileEntry]
    license: Text | None
    parameters: Count = 0
    dropped: dict[Name, Text] = {}
    quantization: Quantized | None = None
    adapter: MergedAdapter | None = None
    hub: Repository | None = None
    adapter_hub: Repository | None = None


class Part(Section, frozen=True):
    """A part of the model: its parameters and its size."""

    parameters: Count
    layers: Count
    hidden: Count
    heads: Count
    kv_heads: Count | None = None  # of decoders, like the following
    linear_layers: Count | None = None  # with linear attention in place of a KV cache
    vocab: Count | None = None


class Stored(Section, frozen=True):
    """How a tensor of the checkpoint is stored, and why."""

    bits: Bits
    group_size: GroupSize
    symmetric: bool
    reason: Text
    float8: bool = False
    int8_activations: bool = False
    parameters: Count = 0
    bytes: Count = 0


class PortEntry(Section, frozen=True):
    """An input or an output of a graph; names in a shape stand for sizes that vary."""

    dtype: Dtype
    shape: Shape


class Kernels(Section, frozen=True):
    """What an engine's own text says of its kernels; see exporters/formats/tensorrt/kernels.py."""

    capabilities: list[Name]
    kernels: Count
    fused: Count
    recordable: bool
    written_out: list[Text]


class EngineEntry(Section, frozen=True):
    """An engine of TensorRT."""

    flavour: Name
    version: Name
    capabilities: list[Name]
    profiles: Annotated[list[Profile], Meta(min_length=1, max_length=16)]
    layers: dict[Name, Count] = {}
    inputs: dict[Name, Any] = {}  # as TensorRT names their types and sizes; -1 varies
    outputs: dict[Name, Any] = {}
    kernels: Kernels | None = None
    sha256: Hash | None = None
    warnings: list[Text] = []


class PluginEntry(Section, frozen=True):
    """What ONNX Runtime's TensorRT-RTX plugin is told."""

    profiles: Annotated[list[Profile], Meta(min_length=1, max_length=16)]


class GraphEntry(Section, frozen=True):
    """A graph: its file, and what goes in and comes out."""

    file: Name
    inputs: dict[Name, PortEntry]
    outputs: dict[Name, PortEntry]
    dialect: Literal["ort", "cuda", "tensorrt"] = "ort"
    engine: EngineEntry | UnsetType = UNSET
    plugin: PluginEntry | UnsetType = UNSET


class PatchImages(Section, frozen=True, tag_field="kind", tag="patches"):
    """Images that are cut into patches at their own size."""

    patch_size: Side
    temporal_patch_size: Annotated[int, Meta(ge=1, le=64)]
    merge_size: Annotated[int, Meta(ge=1, le=64)]
    mean: Mean
    std: Std
    rescale_factor: Factor


class CropImages(Section, frozen=True, tag_field="kind", tag="crop"):
    """Images that all become one size."""

    shortest_edge: Side | None
    resized: Sides | None
    cropped: Sides | None
    mean: Mean | None
    std: Std
    rescale_factor: Factor | None
    image_tokens: Annotated[int, Meta(ge=1, le=1 << 20)]


class NoImagesEntry(Section, frozen=True, tag_field="kind", tag="none"):
    """The model takes no images."""


class FrameVideos(PatchImages, frozen=True, tag_field="kind", tag="frames"):
    """Videos as the Qwen models take them; the pixel range is that of all frames together."""

    fps: Annotated[float, Meta(gt=0, le=10_000)]
    min_frames: Annotated[int, Meta(ge=1, le=1 << 20)]
    max_frames: Annotated[int, Meta(ge=1, le=1 << 20)]
    min_pixels: LeastArea
    max_pixels: Area
    max_tokens: Count


class Clips(PatchImages, frozen=True, tag_field="kind", tag="clips"):
    """Videos as an Arlow encoder takes them; the pixel range is that of one frame."""

    strategy: Literal["uniform", "fps_based"]
    min_pixels: LeastArea
    max_pixels: Area
    max_frames: Annotated[int, Meta(ge=1, le=1 << 20)]
    num_frames: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    fps: Annotated[float, Meta(gt=0, le=10_000)] | None = None
    max_tokens: Size | None = None


class Limits(Section, frozen=True):
    """What a bundle accepts: the area of an image in pixels, its tokens, and tokens (or patches) in all."""

    context: Annotated[int, Meta(ge=1, le=1 << 24)]
    min_pixels: LeastArea | UnsetType = UNSET  # these three of models that take images
    max_pixels: Area | UnsetType = UNSET
    max_image_tokens: Size | UnsetType = UNSET


class Tokens(Section, frozen=True):
    """Special tokens by their roles."""

    image_token: Token | None = None
    video_token: Token | None = None
    vision_start_token: Token | None = None
    vision_end_token: Token | None = None


class PromptEntry(Section, frozen=True):
    """How conversations become token ids."""

    template: Literal["chat_template.jinja"]
    tokenizer: Literal["tokenizer.json"]
    tokens: Tokens
    token_ids: Annotated[dict[Token, TokenId], Meta(max_length=1000)]
    eos_token_ids: Annotated[list[TokenId], Meta(min_length=1, max_length=1000)]
    merge_size: Annotated[int, Meta(ge=1, le=64)]
    end_tokens: dict[Token, list[Text]] = {}  # by name, where each was found
    bos_token: Token | None = None
    template_kwargs: dict[Name, Token] = {}


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


class LocalityEntry(Section, frozen=True):
    """The bias that keeps attention local."""

    radius: Number | None
    strength: Number


class EncoderEntry(Section, frozen=True):
    """Conventions of a vision encoder that has no decoder."""

    revision: Name | None
    rotary_pairs: Literal["neighbours", "halves"]
    attention_rows: Literal["memory", "heads"]
    patch_order: Literal["raster", "windows"]
    locality: LocalityEntry | None = None


class OptionEntry(msgspec.Struct, frozen=True):
    """What the runtime reads of the options of the export; the others are carried along."""

    format: Literal["onnx", "gguf", "tensorrt"]
    precision: Name
    prefill_chunk: Annotated[int, Meta(ge=1, le=1 << 20)]
    cpu_features: list[Name] = []
    kv_cache: Literal["float", "int8"] = "float"


class Manifest(Section, frozen=True):
    """All sections. `BundleWriter` fills in format_version and files."""

    format_version: Annotated[int, Meta(ge=1, le=FORMAT_VERSION)]
    family: Name
    source: Source
    target: Name
    precision: dict[Name, Stored]
    graphs: Annotated[dict[Name, GraphEntry], Meta(min_length=1, max_length=8)]
    image: PatchImages | CropImages | NoImagesEntry
    limits: Limits
    generation: Sampling
    evidence: EvidenceEntry
    tools: dict[Name, Name]
    options: OptionEntry
    files: Annotated[dict[str, FileEntry], Meta(max_length=10_000)]
    parts: dict[Name, Part] = {}  # by graph
    prompt: PromptEntry | UnsetType = UNSET  # needed with a decoder
    video: FrameVideos | Clips | UnsetType = UNSET  # of models that take videos
    encoder: EncoderEntry | UnsetType = UNSET
