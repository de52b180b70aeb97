"""From graph descriptions to ONNX graphs: inputs and outputs by name, the two files of the ort contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnxscript import GraphBuilder

from .blocks import Dialect, Linear, Source, Value, sources
from .decoder import Decoder, DecoderInputs
from .scheme import Policy
from .spec import ModelSpec
from .vit import VisionEncoder

F32, I64, I32 = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.INT32
IR_VERSION = 10  # with opset 21; the oldest pair that has everything used here


@dataclass(frozen=True)
class Prefixes:
    """Where a checkpoint keeps the parts of the model."""

    vision: str
    text: str
    head: str


@dataclass(frozen=True)
class Graph:
    """A graph without weights, and the source tensors that make them."""

    name: str
    model: ir.Model
    sources: tuple[Source, ...]


def build_vision(
    spec: ModelSpec, policy: Policy, dialect: Dialect, prefixes: Prefixes, opsets: dict[str, int]
) -> Graph:
    """The vision encoder: pixel_values and image_grid_thw to image_features (and deepstack_features)."""
    pixels = _input("pixel_values", F32, ["patches", spec.vision.patch_dim])
    grid = _input("image_grid_thw", I64, ["images", 3])
    encoder = VisionEncoder(dialect, spec.vision, policy)
    builder = _builder("vision_encoder", [pixels, grid], opsets)
    features, taps = encoder(builder.op, pixels, grid)
    width = spec.vision.out_hidden
    _output(builder, features, "image_features", F32, ["image_tokens", width])
    if taps is not None:
        _output(builder, taps, "deepstack_features", F32, [len(spec.vision.deepstack_layers), "image_tokens", width])
    return _graph(builder, tuple(sources(encoder, prefixes.vision)))


def build_decoder(
    spec: ModelSpec, policy: Policy, dialect: Dialect, prefixes: Prefixes, opsets: dict[str, int]
) -> Graph:
    """The decoder: token ids, image features, positions and past states to logits and present states."""
    text, taps = spec.decoder, len(spec.vision.deepstack_layers)
    inputs = _decoder_inputs(spec, taps)
    values = [inputs.input_ids, inputs.image_features, inputs.position_ids, inputs.past_lengths, inputs.num_logits]
    values += [inputs.deepstack_features] if taps else []
    builder = _builder("decoder", [*values, *(v for pair in inputs.past for v in pair)], opsets)
    decoder = Decoder(dialect, text, policy, spec.image_token_id)
    head = None if text.tied else _head(spec, policy, dialect, prefixes)
    logits, present = decoder(builder.op, inputs, head)
    _output(builder, logits, "logits", F32, ["batch", "num_logits", text.vocab])
    for index, pair in enumerate(present):
        for kind, value in zip(("key", "value"), pair, strict=True):
            shape = ["batch", text.kv_heads, "capacity", text.head_dim]
            _output(builder, value, f"present.{index}.{kind}", F32, shape)
    used = tuple(sources(decoder, prefixes.text))
    return _graph(builder, used if head is None else used + tuple(sources(head, prefixes.head)))


def _decoder_inputs(spec: ModelSpec, taps: int) -> DecoderInputs:
    text = spec.decoder
    past = ["batch", text.kv_heads, "capacity", text.head_dim]
    return DecoderInputs(
        input_ids=_input("input_ids", I64, ["batch", "seq"]),
        image_features=_input("image_features", F32, ["image_tokens", text.hidden]),
        deepstack_features=_input("deepstack_features", F32, [taps, "image_tokens", text.hidden]) if taps else None,
        position_ids=_input("position_ids", I64, [3, "batch", "seq"]),
        past_lengths=_input("past_lengths", I32, ["batch"]),
        num_logits=_input("num_logits", I64, [1]),
        past=[
            (_input(f"past_key_values.{i}.key", F32, past), _input(f"past_key_values.{i}.value", F32, past))
            for i in range(text.layers)
        ],
        taps=taps,
    )


def _head(spec: ModelSpec, policy: Policy, dialect: Dialect, prefixes: Prefixes) -> Linear:
    text = spec.decoder
    head = Linear(dialect, text.hidden, text.vocab, policy.scheme("decoder", text.hidden), bias=False)
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
    model = ir.Model(builder.graph, ir_version=IR_VERSION, producer_name="lensmith")
    return Graph(str(builder.graph.name), model, used)
