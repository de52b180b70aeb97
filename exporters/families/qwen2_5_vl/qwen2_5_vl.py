"""Qwen2.5-VL: its configuration and its two graphs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ....runtimes.media.spaced_video import SpacedVideoSpec
from ....runtimes.media.video import video_constants
from ....runtimes.prompt.tokenizer_parts import PATTERNS
from ....targets.errors import InputError
from ...checkpoint.folder import Checkpoint
from ...checkpoint.tokenizer_files import SourceTokenizer
from ...graphs.dialect import Dialect
from ...graphs.graph_files import Graph, build_decoder, encoder_graph
from ...spec import DecoderSpec, V, VisionLanguageSpec
from ...storage.scheme import Policy
from .. import qwen_configs
from ..configs import DEPTH, Config, never_null, some, whole
from ..family import Family, Sections
from ..prompts import IMAGE_CLASSES, check_class, check_patches, still_sections, takes_videos
from ..qwen_configs import PREFIXES
from .qwen2_5_vl_gguf import GGUF
from .qwen2_5_vl_synth import SYNTH
from .windowed_spec import WindowedModelSpec, WindowedSpec
from .windowed_tower import WindowedEncoder, window_ports

MODEL_TYPE = "qwen2_5_vl"
KINDS = {"window_size": whole(1, 1 << 20), "fullatt_block_indexes": some(whole(0, 1023), 1024),
         "max_window_layers": DEPTH, "tokens_per_second": whole(1, 1 << 20)}  # fmt: skip
# Of transformers' classes, which write what differs from them.
TEXT = {"vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5}  # fmt: skip
VISION = {"depth": 32, "hidden_size": 3584, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14,
          "temporal_patch_size": 2, "spatial_merge_size": 2, "window_size": 112, "out_hidden_size": 3584,
          "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 4}  # fmt: skip

PROCESSOR = "Qwen2_5_VLProcessor"
VIDEO_CLASSES = ("", *(f"Qwen2VLVideoProcessor{kind}" for kind in ("", "Fast", "Pil")))


def describe(values: dict[str, Any]) -> WindowedModelSpec:
    """Turn a Hugging Face config of model_type qwen2_5_vl into a ModelSpec; InputError for what is not supported."""
    config = Config(values, MODEL_TYPE, kinds=KINDS, never_null=refuses_null)
    return model_spec(config, _vision(config.section("vision_config")))


def model_spec(config: Config, vision: V) -> VisionLanguageSpec[V]:
    """A whole config.json with its tower, of Qwen2-VL, too: their decoders are the same."""
    # Published files have the values of the decoder at the top, beside those of the model.
    text = config.section("text_config") if config.get("text_config") is not None else config
    tied = bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings"))
    return VisionLanguageSpec(
        family=config.model_type,
        vision=vision,
        decoder=_decoder(replace(text, values={**TEXT, **text.values}, of_text=True), tied),
        image_token_id=int(config.get("image_token_id", 151655)),
        video_token_id=int(config.get("video_token_id", 151656)),
    )


def refuses_null(config: Config) -> set[str]:
    """Keys for whose null there is an InputError, as transformers' classes of this model have it."""
    taken = {"attention_dropout", "max_window_layers", "use_sliding_window"}
    return never_null(config) - taken | {"image_token_id", "video_token_id", "tokens_per_second"}


def _vision(section: Config) -> WindowedSpec:
    config = replace(section, values={**VISION, **section.values})
    rope = config.rope()
    rope.only("rope_type", "default", "axial")
    qwen_configs.check_names(config)
    merge, patch = config.need("spatial_merge_size"), config.need("patch_size")
    return WindowedSpec(
        depth=config.need("depth"),
        hidden=config.need("hidden_size"),
        heads=config.need("num_heads"),
        intermediate=config.need("intermediate_size"),
        activation=config.activation("hidden_act", "silu", "gelu", "gelu_pytorch_tanh"),
        channels=config.get("in_channels", 3),
        patch_size=patch,
        temporal_patch_size=config.need("temporal_patch_size"),
        merge_size=merge,
        out_hidden=config.need("out_hidden_size"),
        rope_theta=float(rope.get("rope_theta", 10000.0)),
        norm_eps=1e-6,  # a constant of the architecture, not a config value
        window=config.need("window_size") // merge // patch,
        full_layers=frozenset(config.need("fullatt_block_indexes")),
        tokens_per_second=config.need("tokens_per_second"),
    )


def _decoder(config: Config, tied: bool) -> DecoderSpec:
    rope = config.rope()
    rope.only("rope_type", "default", "mrope")
    rope.only("mrope_interleaved", False)
    config.only("use_sliding_window", False)
    layers = config.need("num_hidden_layers")
    kinds = config.get("layer_types", ["full_attention"] * layers)
    if kinds != ["full_attention"] * layers:
        raise InputError(f"config value layer_types is {str(kinds)[:100]}, not supported for {config.model_type}; "
                         f"expected {layers} of 'full_attention'")  # fmt: skip
    heads, hidden = config.need("num_attention_heads"), config.need("hidden_size")
    config.only("head_dim", max(1, hidden // heads))  # no other one fits transformers' class
    return DecoderSpec(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=config.get("num_key_value_heads", heads),
        head_dim=hidden // heads,
        intermediate=config.need("intermediate_size"),
        vocab=config.need("vocab_size"),
        activation=config.activation("hidden_act", "silu"),
        rope_theta=float(rope.get("rope_theta", 1000000.0)),
        mrope_section=tuple(rope.get("mrope_section", (16, 24, 24))),
        mrope_interleaved=False,
        norm_eps=config.need("rms_norm_eps"),
        tied=tied,
        context=config.need("max_position_embeddings"),
        qk_norm=False,
        qkv_bias=True,
    )


def graphs(spec: WindowedModelSpec, policy: Policy, dialect: Dialect, opsets: dict[str, int]) -> tuple[Graph, ...]:
    """The graphs of the family in the order they are written."""
    vision = spec.vision
    places = window_ports(vision) if dialect.ports.indexed else {}
    encoder = WindowedEncoder(dialect, vision, policy)
    return (
        encoder_graph(encoder, vision, PREFIXES.vision, opsets, places, by_frame=True),
        build_decoder(spec, policy, dialect, PREFIXES, opsets),
    )


def sections(
    checkpoint: Checkpoint, tokenizer: SourceTokenizer, spec: WindowedModelSpec, max_pixels: int | None
) -> Sections:
    """The sections of the manifest: prompt, image, limits, and video where its processor is a known one."""
    check_class("image_processor_type", checkpoint.image_settings.get("image_processor_type"), IMAGE_CLASSES)
    check_class("processor_class", checkpoint.processor_class, (PROCESSOR,))
    made = still_sections(checkpoint, tokenizer, spec, max_pixels)
    if not takes_videos(checkpoint, (PROCESSOR,), VIDEO_CLASSES):
        return made
    video = SpacedVideoSpec.from_processor(checkpoint.video_settings, spec.vision.tokens_per_second)
    check_patches("video_preprocessor_config.json", video.patches, spec.vision)
    most = min(video.patches.max_pixels, made["limits"]["max_pixels"])  # of a frame, as the encoder is built for images
    least = min(video.patches.min_pixels, most)
    video = replace(video, patches=replace(video.patches, min_pixels=least, max_pixels=most))
    spaced = {"tokens_per_second": video.tokens_per_second}
    return made | {"video": video_constants(video) | spaced}


FAMILY = Family(
    name=MODEL_TYPE,
    describe=describe,
    prefixes=PREFIXES,
    depths=qwen_configs.depths,
    graphs=graphs,
    dropped=qwen_configs.dropped,
    sections=sections,
    conventions=replace(qwen_configs.CONVENTIONS, words=PATTERNS[2], named_tokenizer=True),
    gguf=GGUF,
    synth=SYNTH,
)
