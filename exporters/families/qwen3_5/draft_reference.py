"""Multi-token prediction in PyTorch: transformers leaves `mtp.*` out, so a small module over its own decoder layer."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ....runtimes.engines.contract import Floats
from ....runtimes.prompt.requests import Request
from ...comparing.runners import continued
from ...evidence.reference import Reference

PREFIX = "mtp."


class DraftReference:
    """The head of a checkpoint, with the token table, the output head and the rotary positions of its decoder."""

    def __init__(self, reference: Reference) -> None:
        self.torch, self.model, self.reference = reference.torch, reference.model, reference
        self.decoder = getattr(self.model.model, "language_model", self.model.model)
        config = copy.deepcopy(self.model.config.get_text_config())
        config.layer_types, config.num_hidden_layers = ["full_attention"], 1
        parts = importlib.import_module("transformers.models.qwen3_5.modeling_qwen3_5")
        nn = self.torch.nn
        self.head = nn.Module()
        self.head.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.head.layers = nn.ModuleList([parts.Qwen3_5DecoderLayer(config, 0)])
        for name in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"):
            setattr(self.head, name, parts.Qwen3_5RMSNorm(config.hidden_size, config.rms_norm_eps))
        mine = {name: each for name, each in reference.checkpoint.tensors.items() if name.startswith(PREFIX)}
        self.head.load_state_dict(
            {name.removeprefix(PREFIX): self.torch.from_numpy(each.numpy()).float() for name, each in mine.items()}
        )

    def guesses(self, request: Request, answer: Sequence[int], count: int) -> Floats:
        """Logits [count, vocab] of what follows each of the first tokens of an answer's next ones, before they come."""
        whole = continued(request, np.array(answer[:count], np.int64))
        return self.logits(whole, self.hidden_states(whole)[:, :-1])[0][-count:]

    def hidden_states(self, request: Request) -> Any:
        """The decoder's, behind its last norm [1, seq, hidden]."""
        self.model.model.rope_deltas = None
        ids = self.torch.from_numpy(request.prompt.ids)[None]
        with self.reference.running():
            inputs = self.reference.image_inputs(ids, request)
            return self.model.model(ids, use_cache=False, **inputs).last_hidden_state

    def logits(self, request: Request, hidden_states: Any) -> tuple[Floats, Floats]:
        """From hidden states [1, seq - 1, hidden] of all tokens but the last: logits and hidden states behind them."""
        ids = self.torch.from_numpy(request.prompt.ids)[None]
        positions = self.torch.from_numpy(request.positions)[:, None]
        with self.reference.running():
            embedded = self.model.get_input_embeddings()(ids)
            for (first, last), image in zip(request.prompt.image_spans, request.images, strict=True):
                embedded[0, first:last] = self.torch.from_numpy(image.features.features)
            head = self.head
            pair = [head.pre_fc_norm_embedding(embedded[:, 1:]), head.pre_fc_norm_hidden(hidden_states)]
            x = head.fc(self.torch.cat(pair, dim=-1))
            x = head.norm(head.layers[0](x, self.decoder.rotary_emb(x, positions[:, :, 1:])))
            return self.model.lm_head(x)[0].numpy(), x[0].numpy()
