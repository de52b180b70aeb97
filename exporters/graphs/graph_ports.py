"""Inputs and outputs of the graphs by name, type and shape."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript import GraphBuilder

from ..spec import ModelSpec
from .decoder import DecoderInputs, MtpInputs
from .dialect import Ports
from .graph_terms import Port, Value
from .kv_cache import FLOAT_CACHE, KvCache
from .state_names import (
    CAPACITY,
    State,
    kv_states,
    layer_states,
)

F32, I64, I32 = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.INT32


def decoder_inputs(spec: ModelSpec, taps: int, ports: Ports, cache: KvCache) -> DecoderInputs:
    """Of the decoder."""
    text = spec.decoder
    axes = [] if text.mrope_section is None else [3]
    features = add_input("deepstack_features", F32, [taps, "image_tokens", text.hidden]) if taps else None
    return DecoderInputs(
        input_ids=add_input("input_ids", I64, [ports.batch, "seq"]),
        image_features=add_input("image_features", F32, ["image_tokens", text.hidden]),
        deepstack_features=features,
        position_ids=add_input("position_ids", I64, [*axes, ports.batch, "seq"]),
        past_lengths=add_input("past_lengths", I32, [ports.batch]),
        num_logits=_wanted("logit", "num_logits", ports),
        past=[_past(layer_states(text, layer, cache), ports) for layer in range(text.layers)],
        taps=taps,
        num_hidden_states=_wanted("hidden", "num_hidden_states", ports) if text.mtp else None,
        lengths=_lengths(ports),
    )


def mtp_inputs(spec: ModelSpec, ports: Ports) -> MtpInputs:
    """Of the head for multi-token prediction."""
    text = spec.decoder
    return MtpInputs(
        input_ids=add_input("input_ids", I64, [ports.batch, "seq"]),
        image_features=add_input("image_features", F32, ["image_tokens", text.hidden]),
        hidden_states=add_input("hidden_states", F32, [ports.batch, "seq", text.hidden]),
        position_ids=add_input("position_ids", I64, [3, ports.batch, "seq"]),
        past_lengths=add_input("past_lengths", I32, [ports.batch]),
        num_logits=_wanted("logit", "num_logits", ports),
        past=_past(kv_states(text, 0, FLOAT_CACHE), ports),
        lengths=_lengths(ports),
    )


def add_input(name: str, dtype: ir.DataType, shape: list[Any]) -> Value:
    """An input of a graph."""
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def add_output(builder: GraphBuilder, value: Value, name: str, dtype: ir.DataType, shape: list[Any]) -> None:
    """Make a value an output of the graph."""
    value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
    builder.graph.outputs.append(value)


def add_states(builder: GraphBuilder, values: tuple[Value, Value], states: tuple[State, State], ports: Ports) -> None:
    """Make the present states of a layer outputs of the graph."""
    for value, state in zip(values, states, strict=True):
        add_output(builder, value, state.present, *_port(state, ports))


def _past(states: tuple[State, State], ports: Ports) -> tuple[Value, Value]:
    first, second = (add_input(state.past, *_port(state, ports)) for state in states)
    return first, second


def _port(state: State, ports: Ports) -> Port:
    named: dict[int | str, int | str] = {"batch": ports.batch, CAPACITY: ports.capacity}
    return _state_type(state, ports), [named.get(size, size) for size in state.shape]


def _state_type(state: State, ports: Ports) -> ir.DataType:
    if state.bits < 32:
        return ir.DataType.INT8 if state.bits == 8 else ir.DataType.FLOAT16
    return F32 if state.exact else ports.states


def _lengths(ports: Ports) -> tuple[Value, Value] | None:
    """As GroupQueryAttention names and wants them: the index of the last position, and the length behind the step."""
    if not ports.lengths:
        return None
    return add_input("seqlens_k", I32, [ports.batch]), add_input("total_sequence_length", I32, [])


def _wanted(kind: str, count: str, ports: Ports) -> Value:
    """How many of the last positions, or which ones."""
    return add_input(f"{kind}_positions", I64, [count]) if ports.indexed else add_input(count, I64, [1])
