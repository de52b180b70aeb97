"""Multi-token prediction in PyTorch: transformers leaves `mtp.*` out, so a small module over its own decoder layer."""

from __future__ import annotations

import copy
import importlib
from typing import Any

from lensmith.exporters.reference import Reference
from lensmith.runtimes.engine import Floats
from lensmith.runtimes.model import Model
from lensmith.runtimes.replay import relative_error
from lensmith.runtimes.requests import Request
from safetensors.torch import load_file


class MtpReference:
    """The head of a checkpoint, with the token table, the output head and the rotary positions of its decoder."""

    def __init__(self, reference: Reference) -> None:
        self.torch, self.model = reference.torch, reference.model
        self.reference = reference
        config = copy.deepcopy(self.model.config.text_config)
        config.layer_types, config.num_hidden_layers = ["full_attention"], 1
        parts = importlib.import_module("transformers.models.qwen3_5.modeling_qwen3_5")
        nn = self.torch.nn
        self.head = nn.Module()
        self.head.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.head.layers = nn.ModuleList([parts.Qwen3_5DecoderLayer(config, 0)])
        for name in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"):
            setattr(self.head, name, parts.Qwen3_5RMSNorm(config.hidden_size, config.rms_norm_eps))
        weights = load_file(self.model.config._name_or_path + "/model.safetensors")
        mine = {name.removeprefix("mtp."): value.float() for name, value in weights.items() if name.startswith("mtp.")}
        self.head.load_state_dict(mine)

    def hidden_states(self, request: Request) -> Any:
        """The decoder's, behind its last norm [1, seq, hidden]."""
        self.model.model.rope_deltas = None
        ids = self.torch.from_numpy(request.prompt.ids)[None]
        with self.torch.inference_mode():
            return self.model.model(ids, **self.reference._image_inputs(ids, request)).last_hidden_state

    def logits(self, request: Request, hidden_states: Any) -> tuple[Floats, Floats]:
        """From hidden states [1, seq - 1, hidden] of all tokens but the last: logits and hidden states behind them."""
        ids = self.torch.from_numpy(request.prompt.ids)[None]
        positions = self.torch.from_numpy(request.positions)[:, None]
        with self.torch.inference_mode():
            return self._run(self._embed(ids, request)[:, 1:], positions[:, :, 1:], hidden_states)

    def _embed(self, ids: Any, request: Request) -> Any:
        embedded = self.model.get_input_embeddings()(ids)
        for (first, last), image in zip(request.prompt.image_spans, request.images, strict=True):
            embedded[0, first:last] = self.torch.from_numpy(image.features.features)
        return embedded

    def _run(self, embedded: Any, positions: Any, hidden_states: Any) -> tuple[Floats, Floats]:
        head = self.head
        pair = [head.pre_fc_norm_embedding(embedded), head.pre_fc_norm_hidden(hidden_states)]
        x = head.fc(self.torch.cat(pair, dim=-1))
        angles = self.model.model.language_model.rotary_emb(x, positions)
        x = head.norm(head.layers[0](x, angles))
        return self.model.lm_head(x)[0].numpy(), x[0].numpy()


def assert_drafts(model: Model, reference: MtpReference, request: Request, limit: float) -> None:
    """The head of a bundle over a prompt in chunks: logits and hidden states within `limit` of PyTorch's."""
    hidden = reference.hidden_states(request)
    logits, states = reference.logits(request, hidden[:, :-1])
    head, begin = model.open_draft_head(), 0
    for end in (1, 8, 70, len(request.prompt) - 1):
        span = slice(begin + 1, end + 1)
        images = request.features_between(begin + 1, end + 1)
        ours = head.append(request.prompt.ids[span], request.positions[:, span], hidden[0, begin:end].numpy(), images,
                           num_logits=end - begin)  # fmt: skip
        assert relative_error(ours, logits[begin:end]) < limit
        assert relative_error(head.states.hidden_states, states[begin:end]) < limit
        begin = end
