"""Graph description of Qwen3.5's multi-token prediction: a head that guesses the token after the next one.

From the decoder's hidden state h_i behind its last norm and the token t_{i+1} that follows,
x = fc([norm(embed(t_{i+1})), norm(h_i)]), one decoder layer with a cache of its own and the positions of t_{i+1}, a
norm, and the decoder's own output head give the logits of t_{i+2}. The same in llama.cpp's `nextn` and
onnxruntime-genai.
"""

from __future__ import annotations

from onnxscript import nn

from ..spec import DecoderSpec
from ..storage.scheme import Policy
from .blocks import Linear, RMSNorm
from .decoder import DecoderOutputs, MtpInputs, make_logits, make_step
from .decoder_layer import Layer
from .dialect import Dialect
from .graph_terms import Op
from .matrices import Table


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
        dialect = self.dialect
        places = dialect.places(op, inputs.input_ids, self.image_token_id)
        embedded = dialect.put(op, dialect.gather_rows(op, inputs.input_ids, table), places, inputs.image_features)
        token = self.pre_fc_norm_embedding(op, embedded)[0]
        hidden = self.pre_fc_norm_hidden(op, dialect.enter(op, inputs.hidden_states))[0]
        stream = self.fc(op, op.Concat(token, hidden, axis=-1))
        step = make_step(op, dialect, inputs, self.spec)
        chosen = dialect.choose(op, inputs.num_logits, op.Shape(inputs.input_ids, start=1))
        stream, delta, present = self.layers[0](op, stream, None, step, inputs.past, chosen)
        hidden = self.norm(op, stream, delta)[0]
        logits = make_logits(op, dialect, hidden, table, head)
        return DecoderOutputs(logits, dialect.leave(op, hidden), [present])
