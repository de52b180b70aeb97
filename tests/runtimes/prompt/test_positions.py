"""M-RoPE positions equal transformers' get_rope_index, at once and turn by turn."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import numpy as np
import pytest
from lensmith.runtimes.prompt.positions import (
    PositionSpec,
    mrope_positions,
    rotary_positions,
    text_positions,
)
from lensmith.targets.errors import InputError

from tests.helpers import hf

SPEC = PositionSpec(image_token_id=90)
Turn = tuple[list[int], list[tuple[int, int, int]]]


@cache
def hf_model() -> Any:
    """A model on the meta device: positions need its configuration only."""
    transformers = hf.import_transformers()
    import torch

    rope = {"mrope_section": [2, 1, 1], "rope_type": "default", "rope_theta": 1e4}
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8,
            "num_key_value_heads": 1, "vocab_size": 100, "rope_parameters": rope}  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    with torch.device("meta"):
        return transformers.Qwen3VLModel(transformers.Qwen3VLConfig(text_config=text, vision_config=vision))


def hf_positions(ids: list[int], grids: list[tuple[int, int, int]]) -> tuple[Any, int]:
    import torch

    types = torch.tensor([[int(token == SPEC.image_token_id) for token in ids]])
    positions, delta = hf_model().get_rope_index(
        torch.tensor([ids]), types, image_grid_thw=torch.tensor(grids) if grids else None
    )
    return positions[:, 0].numpy(), int(delta) + len(ids)


def random_turn(draw: random.Random, images: int) -> Turn:
    """Text and images in turn; each image stands between text, as in a prompt (<|vision_start|> ... <|vision_end|>)."""
    ids = [draw.randrange(90) for _ in range(draw.randint(1, 12))]
    grids = []
    for _ in range(images):
        grid = (1, 2 * draw.randint(1, 9), 2 * draw.randint(1, 9))
        grids.append(grid)
        ids += [90] * (grid[1] * grid[2] // 4) + [draw.randrange(90) for _ in range(draw.randint(1, 12))]
    return ids, grids


@pytest.mark.parametrize("seed", range(40))
def test_equal_to_transformers_at_once_and_by_turns(seed: int) -> None:
    hf.import_transformers()
    draw = random.Random(seed)
    turns = [random_turn(draw, draw.randint(0, 3)) for _ in range(draw.randint(1, 4))]
    ids = [token for turn, _ in turns for token in turn]
    grids = [grid for _, of_turn in turns for grid in of_turn]
    expected, expected_next = hf_positions(ids, grids)

    positions, following = mrope_positions(np.array(ids), grids, SPEC)
    assert positions.dtype == np.int64
    assert np.array_equal(positions, expected)
    assert following == expected_next

    start, parts = 0, []
    for turn, of_turn in turns:
        part, start = mrope_positions(np.array(turn), of_turn, SPEC, start)
        parts.append(part)
    assert np.array_equal(np.concatenate(parts, axis=1), expected)
    assert start == expected_next


def test_an_image_at_the_very_end_equals_transformers() -> None:
    hf.import_transformers()
    expected, following = hf_positions([1, 2, *[90] * 6], [(1, 4, 6)])
    positions, ours = mrope_positions(np.array([1, 2, *[90] * 6]), [(1, 4, 6)], SPEC)
    assert np.array_equal(positions, expected)
    assert ours == following == 5


def test_by_hand() -> None:
    """Two words, an image of 2 x 3 tokens, one word."""
    positions, following = mrope_positions(np.array([1, 2, *[90] * 6, 3]), [(1, 4, 6)], SPEC)
    assert positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5],
        [0, 1, 2, 2, 2, 3, 3, 3, 5],
        [0, 1, 2, 3, 4, 2, 3, 4, 5],
    ]
    assert following == 6
    assert np.array_equal(text_positions(2, following), [[6, 7]] * 3)


def test_the_longest_side_counts_whichever_it_is() -> None:
    """Images wider and higher than the other way, behind each other: text goes on behind the longer side.

    Time is no side: generated tokens alone go on behind it, as transformers has it.
    """
    ids = np.array([1, *[90] * 8, 2, *[90] * 8, 3, *[90] * 3, 4])
    positions, following = mrope_positions(ids, [(1, 4, 8), (1, 8, 4), (3, 2, 2)], SPEC, start=10)
    assert positions[:, [0, 9, 18, 22]].tolist() == [[10, 15, 20, 22]] * 3
    assert positions[:, 19:22].tolist() == [[21, 22, 23], [21, 21, 21], [21, 21, 21]]
    assert following == 24


def test_seconds_between_temporal_patches_become_positions_in_time() -> None:
    """Worked out by hand: 3 positions a second, 0.7 seconds apart, cut to whole positions."""
    ids = np.array([1, *[91] * 8, 2])
    spec = PositionSpec(image_token_id=90, video_token_id=91, tokens_per_second=3)
    positions, following = mrope_positions(ids, [(4, 2, 4)], spec, start=10, intervals=(0.7,))
    assert positions[0].tolist() == [10, 11, 11, 13, 13, 15, 15, 17, 17, 13]
    assert positions[1].tolist() == [10, *[11] * 8, 13]
    assert positions[2].tolist() == [10, *[11, 12] * 4, 13]
    assert following == 18


def test_tokens_of_videos_count_as_those_of_images() -> None:
    ids = np.array([1, 90, 90, 2, 91, 91, 3])
    spec = PositionSpec(image_token_id=90, video_token_id=91)
    positions, following = mrope_positions(ids, [(1, 2, 4), (1, 4, 2)], spec)
    assert positions.tolist() == [[0, 1, 1, 3, 4, 4, 6], [0, 1, 1, 3, 4, 5, 6], [0, 1, 2, 3, 4, 4, 6]]
    assert following == 7
    with pytest.raises(InputError, match="2 image tokens"):
        mrope_positions(ids, [(1, 2, 4), (1, 4, 2)], SPEC)


def test_models_without_three_axes_count_every_token() -> None:
    ids, grids = np.array([1, *[90] * 6, 3]), [(1, 4, 6)]
    plain = PositionSpec(image_token_id=90, mrope=False)
    positions, following = rotary_positions(ids, grids, plain, start=5)
    assert positions.tolist() == [list(range(5, 13))] * 3
    assert following == 13
    ours, theirs = rotary_positions(ids, grids, SPEC, 5), mrope_positions(ids, grids, SPEC, 5)
    np.testing.assert_array_equal(ours[0], theirs[0])
    assert ours[1] == theirs[1] == 10


def test_images_without_text_between() -> None:
    """transformers cannot tell such images apart; here the grids do."""
    positions, following = mrope_positions(np.array([90, 90]), [(1, 2, 2), (1, 2, 2)], SPEC)
    assert positions.tolist() == [[0, 1]] * 3
    assert following == 2


def test_no_tokens_and_no_images() -> None:
    positions, following = mrope_positions(np.array([], np.int64), [], SPEC, start=7)
    assert positions.shape == (3, 0)
    assert following == 7
    positions, following = mrope_positions(np.array([4, 5]), np.empty((0, 3), np.int64), SPEC, start=7)
    assert positions.tolist() == [[7, 8]] * 3
    assert following == 9


@pytest.mark.parametrize(
    ("ids", "grids", "words"),
    [
        ([1, 90], [], "1 image tokens"),
        ([1, 90], [(1, 4, 4)], "need 4"),
        ([90, 1, 90], [(1, 2, 4)], "not consecutive"),
        ([90], [(1, 3, 2)], "whole 2 x 2 blocks"),
        ([90], [(0, 2, 2)], "blocks"),
    ],
)
def test_tokens_and_grids_must_match(ids: list[int], grids: list[tuple[int, int, int]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        mrope_positions(np.array(ids), grids, SPEC)
    with pytest.raises(InputError):
        PositionSpec(image_token_id=1, merge_size=0)
