"""SmolVLM and Idefics3: a SigLIP tower over tiles, a pixel shuffle and a Llama decoder; one family, two model types."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...checkpoint import names
from ...checkpoint.conventions import Conventions
from ...checkpoint.folder import Checkpoint
from ...graphs.dialect import Dialect
from ...graphs.graph_files import Graph, Prefixes, build_decoder, pixel_graph
from ...spec import VisionLanguageSpec
from ...storage.scheme import Policy
from ..configs import Config, never_null, whole
from ..family import Family
from ..text_decoders import describe_text
from .siglip_spec import SiglipSpec, SmolModelSpec
from .siglip_tower import Connector, SiglipTower
from .smolvlm_gguf import GGUF
from .smolvlm_sections import sections
from .smolvlm_synth import SYNTH

PREFIXES = Prefixes(vision="model.vision_model", text="model.text_model", head="lm_head", projector="model.connector")
TEXT = names.TEXT
NAMES = (
    names.HEAD,
    (r"(?:model\.)*vision_model\.(?:vision_model\.)?", "model.vision_model."),
    (r"(?:model\.)*connector\.", "model.connector."),
    (rf"(?:model\.)*(?:text_model|language_model)\.(?:model\.)?{TEXT}", "model.text_model."),
    (rf"(?:model\.)*{TEXT}", "model.text_model."),
)
KINDS = {"scale_factor": whole(1, 64)}
# Of transformers' classes, which write what differs from them.
VISION = {"hidden_size": 1152, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 16,
          "num_channels": 3, "image_size": 224, "patch_size": 32, "hidden_act": "gelu_pytorch_tanh",
          "layer_norm_eps": 1e-6}  # fmt: skip
ACTIVATIONS = ("gelu_pytorch_tanh", "gelu", "gelu_new", "quick_gelu", "silu", "swish")
TEXT_NULLS = {"attention_dropout", "head_dim", "max_window_layers", "use_sliding_window"}  # that Llama's class takes


def describe(values: dict[str, Any], model_type: str) -> SmolModelSpec:
    """Turn a Hugging Face config of one of the two types into a ModelSpec; InputError for what is not supported."""
    config = Config(values, model_type, kinds=KINDS, never_null=_never_null)
    text = config.section("text_config")
    tied = bool(config.get("tie_word_embeddings"))  # what the section of the decoder says has no effect
    decoder = describe_text(replace(text, values={**text.values, "tie_word_embeddings": tied}), "llama")
    return VisionLanguageSpec(
        model_type, _vision(config, decoder.hidden), decoder, int(config.get("image_token_id", 128257))
    )


def _never_null(config: Config) -> set[str]:
    """As transformers' classes of these models have it."""
    never = never_null(config) | {"model_type", "image_token_id", "scale_factor"}
    return (never | {"mlp_bias"}) - TEXT_NULLS if config.of_text else never


def _vision(config: Config, out_hidden: int) -> SiglipSpec:
    section = config.section("vision_config")
    vision = replace(section, values={**VISION, **section.values})
    return SiglipSpec(
        hidden=vision.need("hidden_size"),
        heads=vision.need("num_attention_heads"),
        intermediate=vision.need("intermediate_size"),
        activation=vision.activation("hidden_act", *ACTIVATIONS),
        channels=vision.need("num_channels"),
        image_size=vision.need("image_size"),
        patch_size=vision.need("patch_size"),
        norm_eps=vision.need("layer_norm_eps"),
        depth=vision.need("num_hidden_layers"),
        shuffle=config.get("scale_factor", 2),
        out_hidden=out_hidden,
    )


def graphs(spec: SmolModelSpec, policy: Policy, dialect: Dialect, opsets: dict[str, int]) -> tuple[Graph, ...]:
    """The graphs of the family in the order they are written."""
    vision = spec.vision
    tower, connector = SiglipTower(dialect, vision, policy), Connector(dialect, vision, policy)
    connector._set_name("connector")
    return (
        pixel_graph(tower, connector, vision, PREFIXES, opsets),
        build_decoder(spec, policy, dialect, PREFIXES, opsets),
    )


def depths(spec: SmolModelSpec) -> dict[str, int]:
    """Layers by what the names of their tensors begin with."""
    assert spec.vision is not None
    layers = f"{PREFIXES.vision}.encoder.layers."
    return {f"{PREFIXES.text}.layers.": spec.decoder.layers, layers: spec.vision.used_depth}


def dropped(checkpoint: Checkpoint, spec: SmolModelSpec) -> dict[str, str]:
    """Source tensors that no graph uses, each with its reason."""
    unused = {}
    if spec.decoder.tied and f"{PREFIXES.head}.weight" in checkpoint.tensors:
        unused[f"{PREFIXES.head}.weight"] = "tied to the embedding table"
    for name in checkpoint.tensors:
        if name.endswith("rotary_emb.inv_freq"):
            unused[name] = "rotary frequencies are computed from the configuration"
        if name == f"{PREFIXES.vision}.embeddings.position_ids":
            unused[name] = "positions are counted"
    return unused


def _family(model_type: str, **more: Any) -> Family[SmolModelSpec]:
    return Family(
        name=model_type,
        describe=lambda values: describe(values, model_type),
        prefixes=PREFIXES,
        depths=depths,
        graphs=graphs,
        dropped=dropped,
        sections=sections,
        conventions=Conventions(names=NAMES, one_size=True, tiled=True),
        gguf=GGUF,
        **more,
    )


FAMILY = _family("smolvlm", synth=SYNTH)
IDEFICS3 = _family("idefics3")
