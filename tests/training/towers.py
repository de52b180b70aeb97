"""The training forward pass over transformers' own modules, batched: no loop over pictures, several questions a row."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.training.batches import CLASS_COUNT, IGNORED, MARKS, MOST, PLACES, Batch
from tests.training.drawing import WORDS
from tests.training.hugging_face import (
    Qwen3VLForConditionalGeneration,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

if TYPE_CHECKING:
    from tests.training.trees import Tree

PROBES = [CLASS_COUNT, MARKS, PLACES, MOST, MOST, MOST]  # the outputs of a probe


def see(visual: Any, pictures: Tensor) -> list[Tensor]:
    """Merged tokens and DeepStack taps, each [n * tokens, hidden], of pictures [n, 3, height, width] of one size."""
    config = visual.config
    grid = torch.tensor([[1, pictures.shape[2] // config.patch_size, pictures.shape[3] // config.patch_size]])
    hidden = _embed_patches(visual, pictures, grid)
    position_ids = get_vision_position_ids(grid, config.spatial_merge_size)
    cos, sin = visual.rotary_pos_emb(hidden, position_ids)
    taps: list[Tensor] = []
    for number, block in enumerate(visual.blocks):
        hidden = hidden + _attend(block.attn, block.norm1(hidden), cos, sin)
        hidden = hidden + block.mlp(block.norm2(hidden))
        if number in config.deepstack_visual_indexes:
            taps.append(visual.deepstack_merger_list[len(taps)](hidden))
    return [visual.merger(hidden), *taps]


def _embed_patches(visual: Any, pictures: Tensor, grid: Tensor) -> Tensor:
    """Patches in the order of 2 by 2 blocks; a still picture shows both frames of a temporal patch the same pixels."""
    count, channels = pictures.shape[:2]
    side, merge = visual.config.patch_size, visual.config.spatial_merge_size
    rows, cols = int(grid[0, 1]) // merge, int(grid[0, 2]) // merge
    patches = pictures.view(count, channels, rows, merge, side, cols, merge, side).permute(0, 2, 5, 3, 6, 1, 4, 7)
    projection = visual.patch_embed.proj
    weight = projection.weight.sum(2).flatten(1)
    hidden = F.linear(patches.reshape(count, -1, weight.shape[1]), weight, projection.bias)
    indices, weights = get_vision_interpolation_indices_and_weights(
        grid, num_grid_per_side=visual.num_grid_per_side, mode="bilinear", align_corners=True, spatial_merge_size=merge
    )
    placed: Tensor = hidden + (visual.pos_embed(indices) * weights[:, :, None]).sum(1).to(hidden.dtype)
    return placed


def _attend(attention: Any, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    count, tokens, width = hidden.shape
    query, key, value = (
        attention.qkv(hidden).view(count, tokens, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    )
    cos, sin = cos.to(query.dtype), sin.to(query.dtype)
    query, key = query * cos + _rotate_half(query) * sin, key * cos + _rotate_half(key) * sin
    shares = torch.softmax(query * attention.scaling @ key.transpose(-1, -2), dim=-1, dtype=torch.float32)
    mixed = shares.to(value.dtype) @ value
    projected: Tensor = attention.proj(mixed.transpose(1, 2).reshape(count, tokens, width))
    return projected


def _rotate_half(hidden: Tensor) -> Tensor:
    first, second = hidden.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


class Probes(nn.Module):
    """Throw-away heads on the merged tokens and each tap: they teach the tower what lies under each token."""

    def __init__(self, hidden: int, taps: int) -> None:
        super().__init__()
        self.found = [0.0] * 4  # running shares of the last merger: words, shapes, places and counts named rightly
        self.heads = nn.ModuleList(nn.Linear(hidden, sum(PROBES)) for _ in range(1 + taps))

    def forward(self, features: list[Tensor], batch: "Batch | Tree") -> Tensor:
        """The mean loss; empty tokens count a tenth."""
        weights = torch.where(batch.classes > 0, 1.0, 0.1)
        total = torch.zeros(())
        for number, (head, feature) in enumerate(zip(self.heads, features, strict=True)):
            classes, marks, places, *orders = head(feature).float().split(PROBES, dim=-1)
            loss = F.cross_entropy(classes, batch.classes, reduction="none")
            letters = F.binary_cross_entropy_with_logits(marks, batch.marks, reduction="none").sum(-1)
            total = total + ((loss + letters) * weights).sum() / weights.sum()
            total = total + 0.5 * F.cross_entropy(places, batch.places)
            for guess, order in zip(orders, batch.orders.unbind(-1), strict=True):
                total = total + 0.3 * F.cross_entropy(guess, order, ignore_index=IGNORED)
            if number == 0:
                self._note(classes, places, orders[0], batch)
        return total / len(features)

    def _note(self, classes: Tensor, places: Tensor, orders: Tensor, batch: "Batch | Tree") -> None:
        right, centre = classes.argmax(-1) == batch.classes, batch.orders[:, 0] != IGNORED
        shares = (
            right[(batch.classes > 0) & (batch.classes <= len(WORDS))],
            right[batch.classes > len(WORDS)],
            places.argmax(-1) == batch.places,
            (orders.argmax(-1) == batch.orders[:, 0])[centre],
        )
        self.found = [
            old + 0.05 * (new.float().mean().item() - old) for old, new in zip(self.found, shares, strict=True)
        ]


def predict(model: Qwen3VLForConditionalGeneration, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """The logits at the labelled places, and the image features that `Probes` takes."""
    seen = [see(model.model.visual, pictures) for pictures in batch.pictures]
    features = [torch.cat(parts)[batch.order] for parts in zip(*seen, strict=True)]
    embeds = model.get_input_embeddings()(batch.ids)
    embeds = embeds.masked_scatter(batch.image_mask[..., None], features[0].to(embeds.dtype))
    hidden = model.model.language_model(
        inputs_embeds=embeds,
        position_ids=batch.positions,
        attention_mask=torch.where(batch.visible, 0.0, -1e4).to(embeds.dtype),
        visual_pos_masks=batch.image_mask,
        deepstack_visual_embeds=features[1:],
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden[batch.labels != IGNORED]), features
