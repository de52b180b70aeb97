"""Graph description of Qwen3.5's multi-token prediction: a head that guesses the token after the next one.

From the decoder's hidden state h_i behind its last norm and the token t_{i+1} that follows,
x = fc([norm(embed(t_{i+1})), norm(h_i)]), one decoder layer with a cache of its own and the positions of t_{i+1}, a
norm, and the decoder's own output head give the logits of t_{i+2}. The same in llama.cpp's `nextn` and
onnxruntime-genai.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxscript import nn

from .blocks import Dialect, Linear, Op, RMSNorm, Table, Value
from .decoder import DecoderOutputs, Layer, make_logits, make_step, place_images
from .scheme import Policy
from .spec import DecoderSpec


@dataclass(frozen=True)
class MtpInputs:
    """Values of the head's inputs. Tokens and positions are one further than the hidden states beside them."""

    input_ids: Value  # int64 [batch, seq]
    image_features: Value  # float32 [image_tokens, hidden], for the image tokens of input_ids in order
    hidden_states: Value  # float32 [batch, seq, hidden]
    position_ids: Value  # int64 [3, batch, seq]
    past_lengths: Value  # int32 [batch]
    num_logits: Value  # int64 [1]
    past: tuple[Value, Value]


class MtpHead(nn.Module):
    """`mtp.*` of a checkpoint; the token table and the output head are the decoder's."""

    def __init__(self, dialect: Dialect, spec: DecoderSpec, policy: Policy, image_token_id: int) -> None:
        super().__init__()
        self.dialect, self.spec, self.image_token_id = dialect, spec, image_token_id
        self.pre_fc_norm_embedding = RMSNorm(dialect, spec.hidden, spec.norm_eps, spec.norm_offset)
        self.pre_fc_norm_hidden = RMSNorm(dialect, spec.hidden, spec.norm_eps, spec.norm_offset)
        twice = 2 * spec.hidden
        self.fc = Linear(dialect, twice, spec.hidden, policy.scheme("decoder", twice), bias=False)
        self.layers = nn.ModuleList([Layer(dialect, spec, policy)])
        self.norm = RMSNorm(dialect, spec.hidden, spec.norm_eps, spec.norm_offset)

    def forward(self, op: Op, inputs: MtpInputs, table: Table, head: Linear | None) -> DecoderOutputs:
        """Logits and hidden states of the last positions; the latter are the hidden input of a further draft."""
        places = place_images(op, inputs.input_ids, self.image_token_id)
        embedded = op.ScatterND(self.dialect.gather_rows(op, inputs.input_ids, table), places, inputs.image_features)
        token = self.pre_fc_norm_embedding(op, embedded)[0]
        hidden = self.pre_fc_norm_hidden(op, inputs.hidden_states)[0]
        stream = self.fc(op, op.Concat(token, hidden, axis=-1))
        step = make_step(op, inputs.input_ids, inputs.position_ids, inputs.past_lengths, self.spec)
        first = op.Sub(op.Shape(inputs.input_ids, start=1), inputs.num_logits)
        stream, delta, present = self.layers[0](op, stream, None, step, inputs.past, first)
        hidden = self.norm(op, stream, delta)[0]
        return DecoderOutputs(make_logits(op, self.dialect, hidden, table, head), hidden, [present])
