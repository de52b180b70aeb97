"""From graph descriptions to ONNX graphs: inputs and outputs by name, the files of the ort contract."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import onnx_ir as ir
from onnxscript import GraphBuilder, nn

from .blocks import Dialect, Linear, Source, Table, Value, sources
from .decoder import Decoder, DecoderInputs
from .dialects.native import add_functions
from .kv_cache import FLOAT_CACHE, KvCache
from .mtp import MtpHead, MtpInputs
from .scheme import Policy
from .spec import ClipSpec, ModelSpec, VisionSpec
from .states import State, kv_states, layer_states
from .vit import VisionEncoder
from .vit_clip import ClipTower, Projector

F32, I64, I32 = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.INT32
STATE_TYPES = {32: F32, 8: ir.DataType.INT8}  # by bits
IR_VERSION = 10  # with opset 21; the oldest pair that has everything used here


@dataclass(frozen=True)
class Prefixes:
    """Where a checkpoint keeps the parts of the model."""

    vision: str
    text: str
    head: str
    mtp: str = "mtp"
    projector: str = ""  # where it is no part of the vision encoder


@dataclass(frozen=True)
class Graph:
    """A graph without weights, and the source tensors that make them."""

    name: str
    model: ir.Model
    sources: tuple[Source, ...]
    lender: Graph | None = None  # whose data file also holds the bytes of `borrowed`
    borrowed: tuple[Source, ...] = ()


class EncoderShape(Protocol):
    """What the ports of a vision encoder follow from."""

    @property
    def patch_dim(self) -> int: ...
    @property
    def out_hidden(self) -> int: ...
    @property
    def deepstack_layers(self) -> tuple[int, ...]: ...


def build_vision(
    spec: ModelSpec, policy: Policy, dialect: Dialect, prefixes: Prefixes, opsets: dict[str, int]
) -> Graph:
    """The vision encoder: pixel_values and image_grid_thw to image_features (and deepstack_features)."""
    assert isinstance(spec.vision, VisionSpec)
    return encoder_graph(VisionEncoder(dialect, spec.vision, policy), spec.vision, prefixes.vision, opsets)


def encoder_graph(encoder: nn.Module, spec: EncoderShape, prefix: str, opsets: dict[str, int]) -> Graph:
    """The graph of a described encoder of patches of any grid, whose tensors are below `prefix`."""
    pixels = _input("pixel_values", F32, ["patches", spec.patch_dim])
    grid = _input("image_grid_thw", I64, ["images", 3])
    builder = _builder("vision_encoder", [pixels, grid], opsets)
    features, taps = encoder(builder.op, pixels, grid)
    width = spec.out_hidden
    _output(builder, features, "image_features", F32, ["image_tokens", width])
    if taps is not None:
        _output(builder, taps, "deepstack_features", F32, [len(spec.deepstack_layers), "image_tokens", width])
    return _graph(builder, tuple(sources(encoder, prefix)))


def build_clip(spec: ModelSpec, policy: Policy, dialect: Dialect, prefixes: Prefixes, opsets: dict[str, int]) -> Graph:
    """The vision encoder for images of one size: pixel_values [images, 3, side, side] to image_features."""
    vision = spec.vision
    assert isinstance(vision, ClipSpec)
    pixels = _input("pixel_values", F32, ["images", vision.channels, vision.image_size, vision.image_size])
    tower, projector = ClipTower(dialect, vision, policy), Projector(dialect, vision, policy)
    projector._set_name("multi_modal_projector")
    builder = _builder("vision_encoder", [pixels], opsets)
    features = projector(builder.op, tower(builder.op, pixels))
    _output(builder, features, "image_features", F32, ["image_tokens", vision.out_hidden])
    used = (*sources(tower, prefixes.vision), *sources(projector, prefixes.projector))
    return _graph(builder, used)


def build_decoder(
    spec: ModelSpec, policy: Policy, dialect: Dialect, prefixes: Prefixes, opsets: dict[str, int]
) -> Graph:
    """The decoder: token ids, image features, positions and past states to logits and present states."""
    text, taps = spec.decoder, len(spec.vision.deepstack_layers)
    inputs = _decoder_inputs(spec, taps, policy.kv_cache)
    values = [inputs.input_ids, inputs.image_features, inputs.position_ids, inputs.past_lengths, inputs.num_logits]
    values += [inputs.deepstack_features] if taps else []
    values += [] if inputs.num_hidden_states is None else [inputs.num_hidden_states]
    builder = _builder("decoder", [*values, *(v for pair in inputs.past for v in pair)], opsets)
    decoder = Decoder(dialect, text, policy, spec.image_token_id)
    head = None if text.tied else _head(spec, policy, dialect, prefixes)
    out = decoder(builder.op, inputs, head)
    _output(builder, out.logits, "logits", F32, ["batch", "num_logits", text.vocab])
    if text.mtp:
        _output(builder, out.hidden_states, "hidden_states", F32, ["batch", "num_hidden_states", text.hidden])
    for index, pair in enumerate(out.present):
        _present(builder, pair, layer_states(text, index, policy.kv_cache))
    used = tuple(sources(decoder, prefixes.text))
    return _graph(builder, used if head is None else used + tuple(sources(head, prefixes.head)))


def build_mtp(
    spec: ModelSpec, policy: Policy, dialect: Dialect, prefixes: Prefixes, opsets: dict[str, int], lender: Graph
) -> Graph:
    """The multi-token-prediction head; the token table and the output head lie in the data file of the decoder."""
    text = spec.decoder
    inputs = _mtp_inputs(spec)
    builder = _builder("mtp", [*(v for v in vars(inputs).values() if isinstance(v, ir.Value)), *inputs.past], opsets)
    scheme = policy.scheme("table", text.hidden, "embed_tokens")
    table = Table(text.vocab, text.hidden, scheme, shared=text.tied)
    table._set_name("embed_tokens")
    head = None if text.tied else _head(spec, policy, dialect, prefixes)
    mtp = MtpHead(dialect, text, policy.inside("mtp"), spec.image_token_id)
    out = mtp(builder.op, inputs, table, head)
    _output(builder, out.logits, "logits", F32, ["batch", "num_logits", text.vocab])
    _output(builder, out.hidden_states, "draft_hidden_states", F32, ["batch", "num_logits", text.hidden])
    _present(builder, out.present[0], kv_states(text, 0, FLOAT_CACHE))
    graph = _graph(builder, tuple(sources(mtp, prefixes.mtp)))
    borrowed = [*sources(table, f"{prefixes.text}.embed_tokens")]
    borrowed += [] if head is None else [*sources(head, prefixes.head)]
    return replace(graph, lender=lender, borrowed=tuple(borrowed))


def _decoder_inputs(spec: ModelSpec, taps: int, cache: KvCache) -> DecoderInputs:
    text = spec.decoder
    axes = [] if text.mrope_section is None else [3]
    return DecoderInputs(
        input_ids=_input("input_ids", I64, ["batch", "seq"]),
        image_features=_input("image_features", F32, ["image_tokens", text.hidden]),
        deepstack_features=_input("deepstack_features", F32, [taps, "image_tokens", text.hidden]) if taps else None,
        position_ids=_input("position_ids", I64, [*axes, "batch", "seq"]),
        past_lengths=_input("past_lengths", I32, ["batch"]),
        num_logits=_input("num_logits", I64, [1]),
        past=[_past(layer_states(text, layer, cache)) for layer in range(text.layers)],
        taps=taps,
        num_hidden_states=_input("num_hidden_states", I64, [1]) if text.mtp else None,
    )


def _mtp_inputs(spec: ModelSpec) -> MtpInputs:
    text = spec.decoder
    return MtpInputs(
        input_ids=_input("input_ids", I64, ["batch", "seq"]),
        image_features=_input("image_features", F32, ["image_tokens", text.hidden]),
        hidden_states=_input("hidden_states", F32, ["batch", "seq", text.hidden]),
        position_ids=_input("position_ids", I64, [3, "batch", "seq"]),
        past_lengths=_input("past_lengths", I32, ["batch"]),
        num_logits=_input("num_logits", I64, [1]),
        past=_past(kv_states(text, 0, FLOAT_CACHE)),
    )


def _past(states: tuple[State, State]) -> tuple[Value, Value]:
    first, second = (_input(state.past, STATE_TYPES[state.bits], list(state.shape)) for state in states)
    return first, second


def _present(builder: GraphBuilder, values: tuple[Value, Value], states: tuple[State, State]) -> None:
    for value, state in zip(values, states, strict=True):
        _output(builder, value, state.present, STATE_TYPES[state.bits], list(state.shape))


def _head(spec: ModelSpec, policy: Policy, dialect: Dialect, prefixes: Prefixes) -> Linear:
    text = spec.decoder
    head = Linear(dialect, text.hidden, text.vocab, policy.scheme("table", text.hidden, "lm_head"), bias=False)
    head._set_name(prefixes.head)
    return head


def _input(name: str, dtype: ir.DataType, shape: list[Any]) -> Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def _output(builder: GraphBuilder, value: Value, name: str, dtype: ir.DataType, shape: list[Any]) -> None:
    value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
    builder.graph.outputs.append(value)


def _builder(name: str, inputs: list[Value], opsets: dict[str, int]) -> GraphBuilder:
    return GraphBuilder(ir.Graph(inputs, [], nodes=[], opset_imports=dict(opsets), name=name))


def _graph(builder: GraphBuilder, used: tuple[Source, ...]) -> Graph:
    for node in builder.graph:
        node.metadata_props.clear()  # module scopes: half of the file, and the names already say it
    model = ir.Model(
        builder.graph, ir_version=IR_VERSION, producer_name="lensmith", functions=add_functions(builder.graph)
    )
    return Graph(str(builder.graph.name), model, used)
