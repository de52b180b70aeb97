"""The Arlow vision encoder in PyTorch, written from its specification: transformers has no class of it.

Sizes in shapes: S patches of one image or clip in raster order, D hidden, M = merge_size**2 * D.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....runtimes.engines.contract import Floats, ImageFeatures
from ....targets.errors import InputError, closest
from ...checkpoint.folder import Checkpoint
from .arlow_spec import ArlowSpec, Locality

DTYPES = ("float32", "bfloat16")
Grid = tuple[int, int, int]  # frames behind the temporal patching, height and width in patches
ACTIVATIONS = {"gelu_tanh": "tanh", "gelu": "none"}


def positions(grid: Grid) -> Tensor:
    """Time, row and column of each patch, int64 [S, 3]."""
    axes = torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")
    return torch.stack([axis.flatten() for axis in axes], dim=1)


def rotary(grid: Grid, spec: ArlowSpec) -> tuple[Tensor, Tensor]:
    """cos and sin of each patch, float32 [S, head_dim]: the angles of the frequencies, twice."""
    half = spec.head_dim // 2
    frequencies = 1.0 / spec.rope_theta ** (torch.arange(half, dtype=torch.float32) * 2 / spec.head_dim)
    angles = positions(grid)[:, spec.frequency_axes()].float() * frequencies
    doubled = torch.cat([angles, angles], dim=1)
    return doubled.cos(), doubled.sin()


def locality_bias(grid: Grid, locality: Locality) -> Tensor:
    """What is added to the scores, float32 [S, S], from exact distances in float64."""
    extent = torch.tensor([max(size - 1, 1) for size in grid], dtype=torch.float64)
    place = positions(grid).double() / extent
    distance = (place[:, None] - place[None]).square().sum(dim=-1).sqrt()
    bias = -locality.strength * distance
    if locality.radius > 0:
        bias = torch.where(distance <= locality.radius * (1 + 1e-12), bias, bias + locality.outside)
    return bias.float()


def partners(x: Tensor, pairs: str) -> Tensor:
    """R of the specification: the partner of each feature of x [..., head_dim], negated for the first of a pair."""
    if pairs == "neighbours":
        return torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def coarse(x: Tensor, grid: Grid) -> Tensor:
    """x [S, D] averaged over blocks of 2 x 2 patches and interpolated linearly back to S, frame by frame."""
    frames, height, width = grid
    planes = x.reshape(frames, height, width, -1).permute(0, 3, 1, 2)
    small = F.avg_pool2d(planes, 2, ceil_mode=True)
    large = F.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)
    return large.permute(0, 2, 3, 1).reshape(x.shape)


def group(x: Tensor, grid: Grid, merge: int) -> Tensor:
    """The patches of each block of merge x merge side by side: [S, D] to [S / merge**2, M]."""
    frames, height, width = grid
    cells = x.reshape(frames, height // merge, merge, width // merge, merge, x.shape[-1])
    return cells.permute(0, 1, 3, 2, 4, 5).reshape(-1, merge**2 * x.shape[-1])


class TorchPatches(nn.Module):
    """The convolution whose kernel is its stride, as a product with flat patches."""

    def __init__(self, spec: ArlowSpec) -> None:
        super().__init__()
        kernel = (spec.temporal_patch_size, spec.patch_size, spec.patch_size)
        self.proj = nn.Conv3d(spec.channels, spec.hidden, kernel, stride=kernel, bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        return patches @ self.proj.weight.flatten(1).T


class TorchAttention(nn.Module):
    """Attention among all patches, with the rotary pairs and the layout of the output that the revision has."""

    def __init__(self, spec: ArlowSpec) -> None:
        super().__init__()
        self.spec = spec
        self.qkv = nn.Linear(spec.hidden, 3 * spec.hidden)
        self.proj = nn.Linear(spec.hidden, spec.hidden)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], bias: Tensor | None) -> Tensor:
        spec, tokens = self.spec, len(x)
        q, k, v = self.qkv(x).reshape(tokens, 3, spec.heads, spec.head_dim).permute(1, 2, 0, 3)  # [heads, S, head_dim]
        q, k = self._rotate(q, angles), self._rotate(k, angles)
        y = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=bias)[0]
        if spec.conventions.attention_rows == "heads":
            y = y.transpose(0, 1)
        return self.proj(y.reshape(tokens, spec.hidden))  # type: ignore[no-any-return]

    def _rotate(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        wide, (cos, sin) = x.float(), angles
        return (wide * cos + partners(wide, self.spec.conventions.rotary_pairs) * sin).to(x.dtype)


class TorchBlock(nn.Module):
    """One transformer layer."""

    def __init__(self, spec: ArlowSpec) -> None:
        super().__init__()
        self.approximate = ACTIVATIONS[spec.activation]
        self.norm1, self.norm2 = (nn.LayerNorm(spec.hidden, eps=spec.norm_eps) for _ in range(2))
        self.attn = TorchAttention(spec)
        self.fc1 = nn.Linear(spec.hidden, spec.intermediate)
        self.fc2 = nn.Linear(spec.intermediate, spec.hidden)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], bias: Tensor | None) -> Tensor:
        x = x + self.attn(self.norm1(x), angles, bias)
        inner = F.gelu(self.fc1(self.norm2(x)), approximate=self.approximate)
        return x + self.fc2(inner)  # type: ignore[no-any-return]


class TorchMerger(nn.Module):
    """Groups of patches to image tokens; its activation is the exact GELU whatever that of the blocks."""

    def __init__(self, spec: ArlowSpec) -> None:
        super().__init__()
        size = spec.merged_hidden
        self.merge = spec.merge_size
        self.ln_q = nn.LayerNorm(size, eps=spec.norm_eps)
        self.mlp = nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.Linear(size, spec.out_hidden))

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        return self.mlp(self.ln_q(group(x, grid, self.merge)))  # type: ignore[no-any-return]


class TorchArlow(nn.Module):
    """The whole encoder; parameters are named as in the checkpoint."""

    def __init__(self, spec: ArlowSpec) -> None:
        super().__init__()
        self.spec = spec
        self.patch_embed = TorchPatches(spec)
        self.blocks = nn.ModuleList([TorchBlock(spec) for _ in range(spec.depth)])
        if spec.progressive:
            self.progressive_proj = nn.Linear(spec.hidden, spec.hidden)
        self.merger = TorchMerger(spec)
        self.deepstack_mergers = nn.ModuleList([TorchMerger(spec) for _ in spec.deepstack_layers])

    def forward(self, patches: Tensor, grid: Grid) -> tuple[Tensor, list[Tensor]]:
        """Flat patches [S, patch_dim] in raster order to image tokens [S / merge**2, out_hidden] and DeepStack's."""
        spec = self.spec
        x, taps = self.patch_embed(patches), []
        if spec.progressive:
            x = x + self.progressive_proj(coarse(x, grid))
        angles = rotary(grid, spec)
        bias = None if spec.locality is None else locality_bias(grid, spec.locality).to(x.dtype)
        for index, block in enumerate(self.blocks):
            x = block(x, angles, bias)
            if index in spec.deepstack_layers:
                taps.append(self.deepstack_mergers[spec.deepstack_layers.index(index)](x, grid))
        return self.merger(x, grid), taps


class ArlowReference:
    """A checkpoint in PyTorch on the CPU, fed with the patches and grids of lensmith's own runtime.

    `last_ms` is the time of the latest call of `vision`.
    """

    def __init__(
        self, checkpoint: Checkpoint, spec: ArlowSpec, dtype: str = "float32", *, threads: int | None = None
    ) -> None:
        """Load all weights. InputError for an unknown dtype and for tensors that are missing."""
        if dtype not in DTYPES:
            raise InputError(f"the reference cannot run in {dtype!r}; {closest(dtype, DTYPES)}")
        self.spec, self.dtype = spec, getattr(torch, dtype)
        self.threads = threads or torch.get_num_threads()
        self.name = f"PyTorch {torch.__version__}, lensmith's own module, {dtype}"
        self.model = load(checkpoint, spec, self.dtype)
        self.last_ms = 0.0

    def vision(self, patches: Floats, grid: Grid) -> ImageFeatures:
        """Features of one image or clip: patches [S, patch_dim], in the order of the bundle, and their grid."""
        others = torch.get_num_threads()  # the setting belongs to the whole process
        torch.set_num_threads(self.threads)
        started = time.perf_counter()
        try:
            with torch.inference_mode():
                rows = torch.from_numpy(patches)
                if self.spec.conventions.patch_order == "windows":
                    rows = from_windows(rows, grid, self.spec.merge_size)
                out, taps = self.model(rows.to(self.dtype), grid)
            self.last_ms = 1000 * (time.perf_counter() - started)
        finally:
            torch.set_num_threads(others)
        return ImageFeatures(out.float().numpy(), np.stack([tap.float().numpy() for tap in taps]) if taps else None)


def from_windows(rows: Tensor, grid: Grid, merge: int) -> Tensor:
    """Patches ordered by blocks of merge x merge, [S, ...], into raster order."""
    frames, height, width = grid
    cells = rows.reshape(frames, height // merge, width // merge, merge, merge, -1)
    return cells.permute(0, 1, 3, 2, 4, 5).reshape(rows.shape)


def load(checkpoint: Checkpoint, spec: ArlowSpec, dtype: torch.dtype) -> TorchArlow:
    """The module with the weights of a checkpoint, one tensor at a time."""
    with torch.device("meta"):
        model = TorchArlow(spec)
    for name, empty in list(model.named_parameters()):
        values = torch.from_numpy(checkpoint.tensor(name).numpy())
        if math.prod(values.shape) != empty.numel():
            raise InputError(f"tensor {name!r} has shape {list(values.shape)}; config.json implies {list(empty.shape)}")
        owner, _, key = name.rpartition(".")
        setattr(
            model.get_submodule(owner), key, nn.Parameter(values.reshape(empty.shape).to(dtype), requires_grad=False)
        )
    return model.eval()
