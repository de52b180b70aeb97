"""The head of Qwen3.5 that predicts a second token ahead, and how often its guess is the decoder's next token."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.training.hugging_face import Qwen3_5DecoderLayer, Qwen3_5RMSNorm
from tests.training.tree_decoder import gather, rotary_tables, run_layer, with_filler
from tests.training.trees import Tree, without_first

FULL_ATTENTION = 3  # the number of a layer of that type


class MtpHead(nn.Module):
    """From the embedding of a token and the decoder's final state of the token before: the state of the next token.

    Parameters are named as in Qwen3.5's checkpoints, below `mtp.`; the output head is the decoder's.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.fc = nn.Linear(2 * width, width, bias=False)
        self.pre_fc_norm_embedding = Qwen3_5RMSNorm(width, eps=eps)
        self.pre_fc_norm_hidden = Qwen3_5RMSNorm(width, eps=eps)
        self.layers = nn.ModuleList([Qwen3_5DecoderLayer(config, FULL_ATTENTION)])
        self.norm = Qwen3_5RMSNorm(width, eps=eps)

    def forward(self, language_model: Any, embeds: Tensor, hidden: Tensor, tree: Tree) -> Tensor:
        """The head's final states [N, hidden]; at a trunk's first token, which has none before it, without meaning."""
        before = gather(with_filler(hidden), tree.before[0])
        joined = torch.cat([self.pre_fc_norm_embedding(embeds), self.pre_fc_norm_hidden(before)], dim=-1)
        tables = rotary_tables(language_model, embeds, tree)
        state = run_layer(self.layers[0], self.fc(joined), tables, tree, without_first(tree.groups, tree.before))
        normed: Tensor = self.norm(state)
        return normed
