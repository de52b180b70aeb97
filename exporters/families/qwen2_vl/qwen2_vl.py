"""Qwen2-VL: its configuration and its two graphs. Its decoder and its files are those of Qwen2.5-VL."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...checkpoint.folder import Checkpoint
from ...checkpoint.tokenizer_files import SourceTokenizer
from ...graphs.dialect import Dialect
from ...graphs.graph_files import Graph, build_decoder, encoder_graph
from ...graphs.vit import INDEX_PORTS
from ...storage.scheme import Policy
from .. import qwen_configs
from ..configs import DEPTH, SIZE, Config, whole
from ..family import Family, Sections
from ..prompts import IMAGE_CLASSES, STILL_PROCESSORS, check_class, still_sections
from ..qwen2_5_vl import qwen2_5_vl
from ..qwen_configs import PREFIXES
from .axial_spec import AxialModelSpec, AxialTransformer
from .axial_tower import AxialEncoder
from .qwen2_vl_synth import SYNTH

MODEL_TYPE = "qwen2_vl"
KINDS = {"embed_dim": SIZE, "mlp_ratio": whole(1, 64), "max_window_layers": DEPTH}
# Of transformers' class, which writes what differs from them.
VISION = {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4, "num_heads": 16, "patch_size": 14,
          "spatial_merge_size": 2, "temporal_patch_size": 2}  # fmt: skip


def describe(values: dict[str, Any]) -> AxialModelSpec:
    """Turn a Hugging Face config of model_type qwen2_vl into a ModelSpec; InputError for what is not supported."""
    config = Config(values, MODEL_TYPE, kinds=KINDS, never_null=_never_null)
    return qwen2_5_vl.model_spec(config, _vision(config.section("vision_config")))


def _never_null(config: Config) -> set[str]:
    """As transformers' classes of this model have it."""
    return qwen2_5_vl.refuses_null(config) - {"tokens_per_second"}


def _vision(section: Config) -> AxialTransformer:
    config = replace(section, values={**VISION, **section.values})
    rope = config.rope()
    rope.only("rope_type", "default", "axial")
    qwen_configs.check_names(config)
    hidden, heads = config.need("embed_dim"), config.need("num_heads")
    config.only("head_dim", max(1, hidden // heads))  # no other one fits transformers' class
    return AxialTransformer(
        depth=config.need("depth"),
        hidden=hidden,
        heads=heads,
        intermediate=hidden * config.need("mlp_ratio"),
        activation=config.activation("hidden_act", "quick_gelu", "gelu", "gelu_pytorch_tanh", "silu"),
        channels=config.get("in_channels", 3),
        patch_size=config.need("patch_size"),
        temporal_patch_size=config.need("temporal_patch_size"),
        merge_size=config.need("spatial_merge_size"),
        out_hidden=config.need("hidden_size"),
        rope_theta=float(rope.get("rope_theta", 10000.0)),
        norm_eps=1e-6,  # a constant of the architecture, not a config value
    )


def graphs(spec: AxialModelSpec, policy: Policy, dialect: Dialect, opsets: dict[str, int]) -> tuple[Graph, ...]:
    """The graphs of the family in the order they are written."""
    vision = spec.vision
    encoder, places = AxialEncoder(dialect, vision, policy), INDEX_PORTS if dialect.ports.indexed else {}
    return (
        encoder_graph(encoder, vision, PREFIXES.vision, opsets, places),
        build_decoder(spec, policy, dialect, PREFIXES, opsets),
    )


def sections(
    checkpoint: Checkpoint,
    tokenizer: SourceTokenizer,
    spec: AxialModelSpec,
    max_pixels: int | None,
) -> Sections:
    """The sections of the manifest: prompt, image and limits; videos are not taken."""
    check_class("image_processor_type", checkpoint.image_settings.get("image_processor_type"), IMAGE_CLASSES)
    check_class("processor_class", checkpoint.processor_class, STILL_PROCESSORS)
    return still_sections(checkpoint, tokenizer, spec, max_pixels)


FAMILY = Family(
    name=MODEL_TYPE,
    describe=describe,
    prefixes=PREFIXES,
    depths=qwen_configs.depths,
    graphs=graphs,
    dropped=qwen_configs.dropped,
    sections=sections,
    conventions=qwen2_5_vl.FAMILY.conventions,
    gguf=None,
    synth=SYNTH,
)
