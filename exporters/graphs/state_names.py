"""The states that decoder layers hand from step to step: KV caches, and recurrent states of fixed size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from ..spec import DecoderSpec
from .kv_cache import KvCache

CAPACITY = "capacity"  # the axis of a KV cache that grows with the context


@dataclass(frozen=True)
class State:
    """One buffer of a layer: its names as an input and as an output (those of onnxruntime-genai), and its shape."""

    past: str
    present: str
    shape: tuple[int | str, ...]  # the first axis is the batch
    bits: int = 32  # 32: float32, 16: float16, 8: int8
    exact: bool = False  # float32 whatever the type of activations, since it carries errors to the last token

    @property
    def grows(self) -> bool:
        """Whether it takes memory for each token."""
        return CAPACITY in self.shape

    @property
    def nbytes(self) -> int:
        """Bytes in one conversation, of each token where it grows."""
        return self.bits // 8 * prod(size for size in self.shape if isinstance(size, int))


def layer_states(spec: DecoderSpec, layer: int, cache: KvCache) -> tuple[State, State]:
    """The two states of a layer: key and value, or those of the convolution and of the delta rule."""
    if layer not in spec.linear_layers:
        return kv_states(spec, layer, cache)
    net = spec.delta_net
    assert net is not None
    shapes = {
        "conv": (net.mixed, net.kernel - 1),
        "recurrent": (net.value_heads, net.key_dim, net.value_dim),
    }
    conv, recurrent = (
        State(f"past.{layer}.{kind}", f"present.{layer}.{kind}", ("batch", *sizes), exact=kind == "recurrent")
        for kind, sizes in shapes.items()
    )
    return conv, recurrent


def kv_states(spec: DecoderSpec, layer: int, cache: KvCache) -> tuple[State, State]:
    """Keys and values of an attention layer."""
    shape, bits = ("batch", spec.kv_heads, CAPACITY, spec.head_dim), cache.bits
    key, value = (
        State(f"past_key_values.{layer}.{kind}", f"present.{layer}.{kind}", shape, bits) for kind in ("key", "value")
    )
    return key, value


def all_states(spec: DecoderSpec, cache: KvCache) -> Iterator[State]:
    """The states of all layers in order."""
    for layer in range(spec.layers):
        yield from layer_states(spec, layer, cache)
