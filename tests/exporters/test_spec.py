"""Models in our own words: sizes that follow from others, by hand, and values that no model can have, by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from lensmith.exporters.graphs.kv_cache import FLOAT_CACHE, KvCache, make_kv_cache
from lensmith.exporters.graphs.state_names import all_states, kv_states
from lensmith.exporters.spec import DecoderSpec, DeltaNetSpec, ModelSpec
from lensmith.exporters.tower_specs import ClipTowerSpec, VisionSpec
from lensmith.targets.errors import InputError
from numpy.typing import NDArray

Floats = NDArray[np.float32]
VISION = VisionSpec(
    depth=4, hidden=96, heads=4, intermediate=192, activation="gelu_tanh", channels=3, patch_size=16,
    temporal_patch_size=2, merge_size=2, positions=2304, out_hidden=128, deepstack_layers=(3, 0), rope_theta=1e4,
    norm_eps=1e-6,
)  # fmt: skip
CLIP = ClipTowerSpec(
    hidden=96, heads=4, intermediate=192, activation="quick_gelu", channels=3, image_size=60, patch_size=14,
    norm_eps=1e-5, depth=4, feature_depths=(3,), keep_class=False, out_hidden=128, projector_activation="gelu",
    projector_bias=True,
)  # fmt: skip
NET = DeltaNetSpec(key_heads=2, value_heads=4, key_dim=8, value_dim=16, kernel=4)
DECODER = DecoderSpec(
    layers=4, hidden=128, heads=4, kv_heads=2, head_dim=32, intermediate=384, vocab=1000, activation="silu",
    rope_theta=1e6, mrope_section=(6, 5, 5), norm_eps=1e-6, tied=True, context=4096,
)  # fmt: skip
HYBRID = replace(DECODER, delta_net=NET, linear_layers=frozenset({0, 1, 2}), rotary_dim=16, mrope_section=(3, 3, 2))


def test_sizes_of_vision_encoders() -> None:
    assert (VISION.head_dim, VISION.patch_dim, VISION.merged_hidden) == (24, 3 * 2 * 16 * 16, 384)
    assert (CLIP.side, CLIP.patch_dim, CLIP.image_tokens, CLIP.used_depth) == (4, 588, 16, 3)  # 4 pixels are not seen
    assert replace(CLIP, keep_class=True, feature_depths=(0, 2)).image_tokens == 17
    assert replace(CLIP, feature_depths=(0, 2)).used_depth == 2
    assert replace(CLIP, patch_size=60, feature_depths=(4,)).side == 1


def test_sizes_of_decoders() -> None:
    assert (NET.keys, NET.values, NET.mixed) == (16, 64, 96)
    assert (DECODER.rotated, HYBRID.rotated) == (32, 16)
    model = ModelSpec("qwen3_vl", VISION, DECODER)
    assert (model.taps, model.merge_size, model.context) == (2, 2, 4096)
    text = replace(model, vision=None)
    assert (text.taps, text.merge_size) == (0, 1)


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (VISION, {"positions": 2305}, "num_position_embeddings is 2305; expected a square number"),
    (VISION, {"positions": 2303}, "num_position_embeddings is 2303"),
    (VISION, {"hidden": 98}, "vision hidden_size is 98; expected a multiple of 4 heads"),
    (VISION, {"hidden": 88}, "vision head size is 22; expected a multiple of 4"),
    (VISION, {"deepstack_layers": (4,)}, r"deepstack_visual_indexes is \[4\]; expected layers below depth 4"),
    (VISION, {"deepstack_layers": (-1,)}, r"deepstack_visual_indexes is \[-1\]"),
    (NET, {"value_heads": 3}, "linear_num_value_heads is 3; expected a multiple of 2"),
    (NET, {"kernel": 1}, "linear_conv_kernel_dim is 1"),
    (CLIP, {"hidden": 98}, "vision hidden_size is 98"),
    (CLIP, {"channels": 1}, "num_channels is 1; expected 3"),
    (CLIP, {"patch_size": 61}, "patch_size is 61; expected up to 60"),
    (CLIP, {"patch_size": 0}, "patch_size is 0"),
    (CLIP, {"feature_depths": (5,)}, r"vision_feature_layer is \[5\]; expected layers up to 4"),
    (CLIP, {"feature_depths": (-1,)}, r"vision_feature_layer is \[-1\]"),
    (CLIP, {"feature_depths": ()}, r"vision_feature_layer is \[\]"),
    (DECODER, {"heads": 3}, "num_attention_heads is 3; expected a multiple of 2"),
    (DECODER, {"head_dim": 31}, "head_dim is 31; expected an even number"),
    (DECODER, {"head_dim": 0}, "head_dim is 0"),
    (DECODER, {"mrope_section": (6, 5, 4)}, r"mrope_section is \[6, 5, 4\]; expected a sum of 16"),
    (DECODER, {"mrope_section": (6, 5, 6)}, r"mrope_section is \[6, 5, 6\]"),
    (HYBRID, {"mrope_section": (6, 5, 5)}, "expected a sum of 8"),
]


@pytest.mark.parametrize(("spec", "changes", "message"), REFUSED)
def test_what_no_model_can_have(spec: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(spec, **changes)


def test_contexts_and_revisions() -> None:
    model = ModelSpec("qwen3_vl", VISION, DECODER)
    assert model.limited(None) == model
    assert [model.limited(tokens).context for tokens in (1, 100, 4096)] == [1, 100, 4096]
    for tokens in (4097, 0, -1):
        with pytest.raises(InputError, match=f"context {tokens} is outside the model's range of 1 to 4096 tokens"):
            model.limited(tokens)
    assert model.revised(None) == model
    with pytest.raises(InputError, match="qwen3_vl has no revisions; leave out --revision A"):
        model.revised("A")


def test_states_of_layers() -> None:
    """Three layers of a delta net and one of attention, whose cache alone grows."""
    states = list(all_states(HYBRID, FLOAT_CACHE))
    assert [(state.past, state.present) for state in states[:2]] == [
        ("past.0.conv", "present.0.conv"), ("past.0.recurrent", "present.0.recurrent")]  # fmt: skip
    assert [state.past for state in states[6:]] == ["past_key_values.3.key", "past_key_values.3.value"]
    assert [state.shape for state in states[:2]] == [("batch", 96, 3), ("batch", 4, 8, 16)]
    assert states[6].shape == ("batch", 2, "capacity", 32)
    assert [state.grows for state in states] == [False] * 6 + [True] * 2
    assert [state.exact for state in states] == [False, True] * 3 + [False] * 2
    assert [state.nbytes for state in (*states[:2], states[6])] == [96 * 3 * 4, 4 * 8 * 16 * 4, 2 * 32 * 4]
    rounded = kv_states(HYBRID, 3, KvCache("int8"))
    assert [(state.bits, state.nbytes) for state in rounded] == [(8, 2 * 32)] * 2
    assert [state.nbytes for state in all_states(HYBRID, KvCache("int8"))][:2] == [96 * 3 * 4, 4 * 8 * 16 * 4]


def test_int8_caches_belong_to_decoders() -> None:
    assert make_kv_cache("float", None, None) is FLOAT_CACHE
    with pytest.raises(InputError, match="a vision encoder alone has no KV cache"):
        make_kv_cache("int8", None, None)
    with pytest.raises(InputError, match="unknown KV cache 'int7'; did you mean 'int8'"):
        make_kv_cache("int7", None, DECODER)
    assert not make_kv_cache("int8", None, DECODER).complete


def _scales(*layers: int, size: float = 1.0) -> dict[int, tuple[Floats, Floats]]:
    """Scales that differ from layer to layer, and of keys and values."""
    shape = (DECODER.kv_heads, DECODER.head_dim)
    return {layer: (np.full(shape, size + layer, np.float32), np.full(shape, size / 8 + layer, np.float32))
            for layer in layers}  # fmt: skip


def test_scales_of_caches_are_those_of_their_layers() -> None:
    made = make_kv_cache("int8", _scales(0, 1, 2, 3), DECODER)
    assert made.complete
    for layer in range(4):
        keys, values = made.of(layer, DECODER) or (None, None)
        assert keys is not None
        assert values is not None
        assert (keys[0, 0], values[0, 0]) == (1 + layer, 0.125 + layer)
    hybrid = make_kv_cache("int8", _scales(3), HYBRID)
    assert [hybrid.of(layer, HYBRID) is None for layer in range(4)] == [True, True, True, False]
    assert FLOAT_CACHE.of(0, DECODER) is None
    ones = KvCache("int8").of(0, DECODER)  # for a plan
    assert ones is not None
    assert all(scales.shape == (2, 32) and (scales == 1).all() for scales in ones)


def test_every_scale_counts_in_the_digest() -> None:
    plain = make_kv_cache("int8", _scales(0, 1, 2, 3), DECODER)
    others = [plain.digest]
    for layer, which in ((0, 0), (0, 1), (3, 0), (3, 1)):
        scales = _scales(0, 1, 2, 3)
        scales[layer][which][1, 31] *= 2
        others.append(make_kv_cache("int8", scales, DECODER).digest)
    swapped = _scales(0, 1, 2, 3)
    swapped[1], swapped[2] = swapped[2], swapped[1]
    others.append(make_kv_cache("int8", swapped, DECODER).digest)
    assert len(set(others)) == len(others)
    assert make_kv_cache("int8", dict(reversed(_scales(0, 1, 2, 3).items())), DECODER).digest == plain.digest


def test_scales_that_do_not_fit_a_decoder() -> None:
    for layers in ((0, 1, 2), (0, 1, 2, 4), (0, 1, 2, 3, 4)):
        with pytest.raises(ValueError, match=r"attention layers are \[0, 1, 2, 3\]"):
            make_kv_cache("int8", _scales(*layers), DECODER)
    for wrong in (0.0, -1.0, np.nan, np.inf):
        scales = _scales(0, 1, 2, 3)
        scales[2][1][0, 5] = wrong
        with pytest.raises(ValueError, match=r"the scales of layer 2 are not positive numbers"):
            make_kv_cache("int8", scales, DECODER)
    with pytest.raises(ValueError, match=r"layer 3 .* = \(2, 32\)"):
        make_kv_cache("int8", {**_scales(0, 1, 2, 3), 3: (np.ones((2, 32)), np.ones((2, 16)))}, DECODER)  # type: ignore[dict-item]
