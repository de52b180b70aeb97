"""Graph description of text decoders: embedding, attention with a cache or a delta net, gated MLP, output head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from ..spec import DecoderSpec
from ..storage.scheme import Policy
from .blocks import Linear, RMSNorm
from .decoder_layer import Layer, StepTables
from .dialect import Angles, Dialect
from .graph_terms import Op, Value
from .matrices import Table
from .rope import inverse_frequencies


@dataclass(frozen=True)
class DecoderInputs:
    """Values of the decoder's inputs; `past` holds the two states of each layer, see states.py."""

    input_ids: Value  # int64 [batch, seq]
    image_features: Value  # float32 [image_tokens, hidden], for the image tokens of input_ids in order
    deepstack_features: Value | None  # float32 [taps, image_tokens, hidden]
    position_ids: Value  # int64 [3, batch, seq] with M-RoPE, else [batch, seq]
    past_lengths: Value  # int32 [batch]
    num_logits: Value  # int64 [1], or as `Dialect.choose` has it
    past: Sequence[tuple[Value, Value]]
    taps: int = 0
    num_hidden_states: Value | None = None  # as num_logits, which counts from these; None: no more than these
    lengths: tuple[Value, Value] | None = None  # `StepTables.last` and `.total`, where dialects want them as inputs


@dataclass(frozen=True)
class MtpInputs:
    """Values of the inputs of a head for multi-token prediction.

    Tokens and positions are one further than the hidden states beside them.
    """

    input_ids: Value  # int64 [batch, seq]
    image_features: Value  # float32 [image_tokens, hidden], for the image tokens of input_ids in order
    hidden_states: Value  # float32 [batch, seq, hidden]
    position_ids: Value  # int64 [3, batch, seq]
    past_lengths: Value  # int32 [batch]
    num_logits: Value  # int64 [1], or as `Dialect.choose` has it
    past: tuple[Value, Value]
    lengths: tuple[Value, Value] | None = None  # as of DecoderInputs


@dataclass(frozen=True)
class DecoderOutputs:
    """Values of the decoder's outputs."""

    logits: Value  # float32 [batch, num_logits, vocab]
    hidden_states: Value  # float32 [batch, num_hidden_states, hidden], of the last positions behind the last norm
    present: list[tuple[Value, Value]]  # the two states of each layer


def mrope_source(section: tuple[int, int, int], *, interleaved: bool = True) -> list[int]:
    """Which of the three position rows (time, height, width) turns each frequency: one behind the other, or mixed.

    Interleaved as in Qwen3-VL, height takes every third frequency from 1 and width every third from 2, as many as their
    sections; time the rest.
    """
    if not interleaved:
        return [axis for axis, count in enumerate(section) for _ in range(count)]
    source = [0] * sum(section)
    for axis in (1, 2):
        for index in range(axis, min(3 * section[axis], len(source)), 3):
            source[index] = axis
    return source


def token_angles(op: Op, dialect: Dialect, position_ids: Value, spec: DecoderSpec) -> Angles:
    """Rotary angles of the tokens of this step: no table, so any context length costs nothing."""
    size, half = spec.rotated, spec.rotated // 2
    inverse = inverse_frequencies(size, spec.rope_theta, spec.rope_scaling)
    pick = np.zeros((3, 1, 1, half), np.float32)
    if spec.mrope_section is None:
        position_ids, pick = op.Unsqueeze(position_ids, [0]), inverse[None, None, None]
    else:
        pick[mrope_source(spec.mrope_section, interleaved=spec.mrope_interleaved), 0, 0, np.arange(half)] = inverse
    frequencies = op.initializer(ir.tensor(pick), name="inverse_frequencies")
    positions = op.Unsqueeze(op.Cast(position_ids, to=ir.DataType.FLOAT), [3])
    # At most one of the products of an axis is not zero, so the sum is exact.
    angles = op.Reshape(op.ReduceSum(op.Mul(positions, frequencies), [0], keepdims=0), [-1, half])
    shape = op.Shape(position_ids, start=1)
    rows = op.Reshape(op.Range(0, op.ReduceProd(shape, keepdims=0), 1), shape)
    cos, sin = (dialect.enter(op, turned) for turned in (op.Cos(angles), op.Sin(angles)))
    return Angles(cos, sin, rows, 0 if size == spec.head_dim else size)


def make_step(op: Op, dialect: Dialect, inputs: DecoderInputs | MtpInputs, spec: DecoderSpec) -> StepTables:
    """Angles and lengths of this step."""
    angles = token_angles(op, dialect, inputs.position_ids, spec)
    if inputs.lengths is not None:
        return StepTables(angles, inputs.past_lengths, *inputs.lengths)
    new = op.Cast(op.Shape(inputs.input_ids, start=1), to=ir.DataType.INT32)
    total = op.Add(inputs.past_lengths, new)
    one = op.Constant(value=ir.tensor(np.array([1], np.int32)))
    return StepTables(angles, inputs.past_lengths, op.Sub(total, one), op.ReduceMax(total, keepdims=0))


def make_logits(op: Op, dialect: Dialect, hidden: Value, table: Table, head: Linear | None) -> Value:
    """Logits float32 [batch, seq, vocab]; a tied model has no `head`."""
    return dialect.leave(op, dialect.matmul(op, hidden, table.weight, None) if head is None else head(op, hidden))


class Decoder(nn.Module):
    """Token ids and image features to logits of the last positions."""

    def __init__(self, dialect: Dialect, spec: DecoderSpec, policy: Policy, image_token_id: int) -> None:
        super().__init__()
        self.dialect, self.spec, self.image_token_id = dialect, spec, image_token_id
        table = policy.scheme("table", spec.hidden, "embed_tokens")
        self.embed_tokens = dialect.table(spec.vocab, spec.hidden, table, shared=spec.tied)
        self.layers = nn.ModuleList([
            Layer(dialect, spec, policy.inside(f"layers.{index}"), linear=index in spec.linear_layers,
                  cache_scales=policy.kv_cache.of(index, spec))
            for index in range(spec.layers)
        ])  # fmt: skip
        self.norm = RMSNorm(dialect, spec.hidden, spec.norm_eps, spec.norm_offset)

    def forward(self, op: Op, inputs: DecoderInputs, head: Linear | None) -> DecoderOutputs:
        """Logits, hidden states and present states. A tied model has no `head`."""
        dialect = self.dialect
        places = dialect.places(op, inputs.input_ids, self.image_token_id)
        embedded = dialect.gather_rows(op, inputs.input_ids, self.embed_tokens)
        stream, delta = dialect.put(op, embedded, places, inputs.image_features), None
        step = make_step(op, dialect, inputs, self.spec)
        kept = inputs.num_logits if inputs.num_hidden_states is None else inputs.num_hidden_states
        chosen = dialect.choose(op, kept, op.Shape(inputs.input_ids, start=1))
        present = []
        for index, layer in enumerate(self.layers):
            cut = chosen if index == self._last_full_layer(inputs) else None
            stream, delta, states = layer(op, stream, delta, step, inputs.past[index], cut)
            if index < inputs.taps:
                feature = op.Gather(inputs.deepstack_features, index, axis=0)
                stream, delta = dialect.add_at(op, op.Add(stream, delta), places, feature), None
            present.append(states)
        hidden = self.norm(op, stream, delta)[0]
        if self._last_full_layer(inputs) is None:
            hidden = dialect.keep(op, hidden, chosen)
        wanted = hidden
        if inputs.num_hidden_states is not None:
            wanted = dialect.keep(op, hidden, dialect.choose(op, inputs.num_logits, inputs.num_hidden_states))
        logits = make_logits(op, dialect, wanted, self.embed_tokens, head)
        return DecoderOutputs(logits, dialect.leave(op, hidden), present)

    def _last_full_layer(self, inputs: DecoderInputs) -> int | None:
        """The layer behind whose attention only the positions with logits matter, unless DeepStack adds to it."""
        last = self.spec.layers - 1
        return last if inputs.taps <= last else None
