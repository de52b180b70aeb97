"""The decoder layers of Qwen3 and Qwen3.5 over a `Tree`: transformers' modules, batched over trunks and branches."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.training.trees import Tree, Trunks

CHUNK = 64  # tokens that the delta rule solves for at once; its result does not depend on it


def decode(language_model: Any, embeds: Tensor, tree: Tree) -> list[Tensor]:
    """The hidden states [N, hidden] after each layer, not yet normed, of token embeddings [N, hidden]."""
    tables = rotary_tables(language_model, embeds, tree)
    hidden, states = embeds, []
    for layer in language_model.layers:
        hidden = run_layer(layer, hidden, tables, tree, tree.groups)
        states.append(hidden)
    return states


def rotary_tables(language_model: Any, embeds: Tensor, tree: Tree) -> tuple[Tensor, Tensor]:
    """Cosines and sines [N, 1, rotary], of three position axes where the model has them."""
    rotary = language_model.rotary_emb
    positions = tree.positions[:, None] if hasattr(rotary, "mrope_section") else tree.positions[:1]
    cos, sin = rotary(embeds[None], positions)
    return cos[0, :, None], sin[0, :, None]


def run_layer(layer: Any, hidden: Tensor, tables: tuple[Tensor, Tensor], tree: Tree, groups: list[Trunks]) -> Tensor:
    """One decoder layer over the flat tokens [N, hidden]; `groups` may leave tokens of the tree out."""
    normed = layer.input_layernorm(hidden)
    if hasattr(layer, "linear_attn"):
        hidden = hidden + _delta_net(layer.linear_attn, normed, tree, groups)
    else:
        hidden = hidden + _attention(layer.self_attn, normed, tables, tree, groups)
    result: Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return result


def with_filler(flat: Tensor) -> Tensor:
    """`flat` [N, ...] and a row of zeros, which the index N finds."""
    return torch.cat([flat, flat.new_zeros(1, *flat.shape[1:])])


def gather(padded: Tensor, index: Tensor) -> Tensor:
    """The rows of a tensor `with_filler` at an index of any shape."""
    return padded.index_select(0, index.flatten()).view(*index.shape, *padded.shape[1:])


def _attention(
    attention: Any, hidden: Tensor, tables: tuple[Tensor, Tensor], tree: Tree, groups: list[Trunks]
) -> Tensor:
    """Softmax attention; Qwen3.5's q_proj makes a gate for its output, too."""
    count, size = len(hidden), attention.head_dim
    query, gate = attention.q_proj(hidden), None
    if attention.q_proj.out_features == 2 * attention.o_proj.in_features:
        query, gate = query.view(count, -1, 2 * size).chunk(2, dim=-1)
    query = _rotate(attention.q_norm(query.reshape(count, -1, size)), *tables) * size**-0.5
    key = _rotate(attention.k_norm(attention.k_proj(hidden).view(count, -1, size)), *tables)
    value = attention.v_proj(hidden).view(count, -1, size)
    query, key, value = with_filler(query), with_filler(key), with_filler(value)
    mixed = []
    for group in groups:
        keys, values, seen = gather(key, group.index), gather(value, group.index), group.index < count
        mixed.append(_mix(gather(query, group.index), keys, values, seen))
        for branch in group.branches:
            rows = branch.trunks
            branch_keys = torch.cat([keys[rows], gather(key, branch.index)], dim=1)
            branch_values = torch.cat([values[rows], gather(value, branch.index)], dim=1)
            visible = torch.cat([seen[rows], torch.ones_like(branch.index, dtype=torch.bool)], dim=1)
            mixed.append(_mix(gather(query, branch.index), branch_keys, branch_values, visible))
    flat = torch.cat([rows.flatten(0, 1) for rows in mixed]).index_select(0, tree.where)
    if gate is not None:
        flat = flat * torch.sigmoid(gate)
    projected: Tensor = attention.o_proj(flat.reshape(count, -1))
    return projected


def _mix(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """Causal attention of the last S of K tokens: [B, S, heads, size] over [B, K, key heads, size]."""
    rows, length, heads, size = query.shape
    keys, kinds = key.shape[1:3]
    query = query.view(rows, length, kinds, -1, size).permute(0, 2, 3, 1, 4).reshape(rows, kinds, -1, size)
    scores = query @ key.permute(0, 2, 3, 1)  # [B, key heads, heads / key heads * S, K]
    causal = torch.ones(length, keys, dtype=torch.bool).tril(keys - length)
    bias = torch.where(causal & visible[:, None], 0.0, -1e4).to(scores.dtype)
    scores = scores.view(rows, kinds, -1, length, keys) + bias[:, None, None]
    shares = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    mixed = shares.view(rows, kinds, -1, keys) @ value.transpose(1, 2)
    return mixed.view(rows, heads, length, size).transpose(1, 2)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the first features of each head, as many as the tables have.

    A product with a signed permutation: on the CPU it is many times faster than concatenating a few features.
    """
    size, turned = heads.shape[-1], cos.shape[-1]
    half = turned // 2
    swap = heads.new_zeros(size, size)
    swap[torch.arange(half) + half, torch.arange(half)] = -1
    swap[torch.arange(half), torch.arange(half) + half] = 1
    cos, sin = F.pad(cos, (0, size - turned), value=1), F.pad(sin, (0, size - turned))
    return heads * cos.to(heads.dtype) + (heads @ swap) * sin.to(heads.dtype)


def _delta_net(net: Any, hidden: Tensor, tree: Tree, groups: list[Trunks]) -> Tensor:
    """Qwen3.5's gated delta net."""
    count = len(hidden)
    mixed = _convolve(net.in_proj_qkv(hidden), net.conv1d.weight[:, 0], tree.before)
    query, key, value = torch.split(mixed.float(), [net.key_dim, net.key_dim, net.value_dim], dim=-1)
    repeats = net.num_v_heads // net.num_k_heads
    query, key = (
        _to_unit_length(part.view(count, net.num_k_heads, -1)).repeat_interleave(repeats, dim=1)
        for part in (query, key)
    )
    strength = net.in_proj_b(hidden).float().sigmoid()
    decay = -net.A_log.exp() * F.softplus(net.in_proj_a(hidden).float() + net.dt_bias)
    tokens = [
        query * query.shape[-1] ** -0.5,
        key,
        value.view(count, net.num_v_heads, -1),
        decay[..., None],
        strength[..., None],
    ]
    with torch.autocast("cpu", enabled=False):
        flat = _delta_rows(tokens, groups).index_select(0, tree.where)
    gate = net.in_proj_z(hidden).view(count, net.num_v_heads, -1)
    projected: Tensor = net.out_proj(net.norm(flat, gate).view(count, -1))
    return projected


def _to_unit_length(heads: Tensor) -> Tensor:
    return heads * torch.rsqrt(heads.square().sum(-1, keepdim=True) + 1e-6)


def _convolve(hidden: Tensor, weight: Tensor, before: Tensor) -> Tensor:
    """The causal depthwise convolution [channels, 4] along the tree, and SiLU."""
    weight = weight.to(hidden.dtype)
    total, hidden = hidden * weight[:, -1], with_filler(hidden)
    for steps, index in enumerate(before, start=1):
        total = total + gather(hidden, index) * weight[:, -1 - steps]
    return F.silu(total)


def _delta_rows(tokens: list[Tensor], groups: list[Trunks]) -> Tensor:
    """The rule's outputs for queries, keys, values, decays and strengths [N, heads, size], in padded rows."""
    tokens = [with_filler(part) for part in tokens]
    outputs = []
    for group in groups:
        query, key, value, decay, strength = (gather(part, group.index).transpose(1, 2) for part in tokens)
        state = query.new_zeros(*query.shape[:2], query.shape[-1], value.shape[-1])
        output, state = gated_delta_rule(query, key, value, decay, strength, state)
        outputs.append(output)
        for branch in group.branches:
            query, key, value, decay, strength = (gather(part, branch.index).transpose(1, 2) for part in tokens)
            outputs.append(gated_delta_rule(query, key, value, decay, strength, state[branch.trunks])[0])
    return torch.cat([output.transpose(1, 2).flatten(0, 1) for output in outputs])


def gated_delta_rule(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, strength: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The outputs [B, heads, S, value size] and the last state [B, heads, key size, value size], chunk by chunk.

    `decay` and `strength` are [B, heads, S, 1]. In a chunk the values that the rule writes, each reduced by what its
    key already reads, solve one triangular system (Yang et al., arXiv 2412.06464).
    """
    outputs = []
    for start in range(0, query.shape[2], CHUNK):
        q, k, v, g, beta = (part[:, :, start : start + CHUNK] for part in (query, key, value, decay, strength))
        total = g.cumsum(dim=2)
        causal = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
        fade = (total - total.transpose(2, 3)).masked_fill(~causal, -torch.inf).exp()
        system = (beta * k) @ k.transpose(2, 3) * fade
        grown = total.exp()
        wanted = beta * (v - (k * grown) @ state)
        written = torch.linalg.solve_triangular(system, wanted, upper=False, unitriangular=True)
        outputs.append((q * grown) @ state + (q @ k.transpose(2, 3) * fade) @ written)
        left = (total[:, :, -1:] - total).exp()
        state = state * grown[:, :, -1:] + (k * left).transpose(2, 3) @ written
    return torch.cat(outputs, dim=2), state
