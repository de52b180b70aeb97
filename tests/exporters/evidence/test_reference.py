"""The PyTorch reference answers as transformers does, and keeps nothing from one prompt to the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.exporters.evidence.reference import Reference
from lensmith.runtimes.evidence.replay import relative_error
from lensmith.targets.errors import InputError
from safetensors.numpy import load_file, save_file

from tests.helpers import ladder
from tests.helpers.ladder import CONVERSATIONS, Pair, compile_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    ladder.need_torch()
    folder = tmp_path_factory.mktemp("reference")
    return compile_pair(ladder.tiny(folder / "tiny"), folder / "bundle")


def test_it_is_what_transformers_generates(pair: Pair) -> None:
    """From pixels, by transformers' own loop: the same tokens as from features, step by step."""
    from lensmith.runtimes.media.image_files import open_image
    from lensmith.runtimes.media.images import ImageSpec, preprocess_images
    from lensmith.runtimes.prompt.messages import find_images

    messages, torch, model = CONVERSATIONS["two turns"], pair.reference.torch, pair.reference.model
    request = pair.theirs(messages)
    spec = pair.model.image_spec
    assert isinstance(spec, ImageSpec)
    patches, grids = preprocess_images(map(open_image, find_images(messages)), spec)
    ids = torch.from_numpy(request.prompt.ids)[None]
    made = model.generate(
        input_ids=ids, pixel_values=torch.from_numpy(patches), image_grid_thw=torch.from_numpy(grids),
        mm_token_type_ids=(ids == model.config.image_token_id).int(), attention_mask=torch.ones_like(ids),
        max_new_tokens=12, min_new_tokens=12, do_sample=False, repetition_penalty=1.0,
    )  # fmt: skip
    assert made[0, ids.shape[1] :].tolist() == pair.reference.greedy(request, 12, ignore_eos=True).ids


def test_prompts_do_not_depend_on_earlier_ones(pair: Pair) -> None:
    plain = pair.theirs(CONVERSATIONS["no image"])
    first = pair.reference.greedy(plain, 4, ignore_eos=True)
    pair.reference.greedy(pair.theirs(CONVERSATIONS["three images"]), 2)
    again = pair.reference.greedy(plain, 4, ignore_eos=True)
    assert np.array_equal(first.logits, again.logits)


def test_phases_are_timed_and_steps_follow_the_prompt(pair: Pair) -> None:
    request = pair.theirs(CONVERSATIONS["one image"])
    run = pair.reference.greedy(request, 5, ignore_eos=True)
    assert len(run.ids) == len(run.logits) == len(run.step_ms) + 1 == 5
    assert min(run.prefill_ms, *run.step_ms) > 0
    whole = pair.reference.logits(request)
    assert len(whole) == len(request.prompt)
    assert relative_error(whole[-1], run.logits[0]) < 1e-5


def test_it_stops_behind_an_end_token(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    request = pair.theirs(CONVERSATIONS["no image"])
    third = pair.reference.greedy(request, 3, ignore_eos=True).ids[2]
    monkeypatch.setattr(pair.reference.model.generation_config, "eos_token_id", [third])
    run = pair.reference.greedy(request, 8)
    assert run.ids[-1] == third
    assert len(run.ids) <= 3


@pytest.mark.parametrize(("named", "expected"), [(None, ()), (7, (7,)), ([7, 9], (7, 9))])
def test_end_tokens_are_those_of_its_generation(
    pair: Pair, named: object, expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair.reference.model.generation_config, "eos_token_id", named)
    assert pair.reference.eos_token_ids == set(expected)


def test_others_end_tokens_are_obeyed_in_place_of_its_own(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    request = pair.theirs(CONVERSATIONS["no image"])
    said = pair.reference.greedy(request, 4, ignore_eos=True).ids
    monkeypatch.setattr(pair.reference.model.generation_config, "eos_token_id", said[0])
    assert pair.reference.greedy(request, 4, ends=()).ids == said
    assert pair.reference.greedy(request, 4, ends={said[1]}).ids == said[: said.index(said[1]) + 1]
    assert pair.reference.greedy(request, 4, ends={said[1]}, ignore_eos=True).ids == said


def test_threads_are_its_own_and_others_keep_theirs(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    torch, run = pair.reference.torch, pair.reference.model.forward
    before, seen = torch.get_num_threads(), []

    def noted(**given: Any) -> Any:
        seen.append(torch.get_num_threads())
        return run(**given)

    monkeypatch.setattr(pair.reference, "threads", before + 1)
    monkeypatch.setattr(pair.reference.model, "forward", noted)
    pair.reference.greedy(pair.theirs(CONVERSATIONS["no image"]), 2, ignore_eos=True)
    assert seen == [before + 1] * 2
    assert torch.get_num_threads() == before
    monkeypatch.setattr(pair.reference.model, "forward", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pair.reference.logits(pair.theirs(CONVERSATIONS["no image"]))
    assert torch.get_num_threads() == before


def test_bfloat16_is_near(pair: Pair) -> None:
    half = Reference(pair.job.checkpoint.path, "bfloat16", threads=1)
    request = pair.theirs(CONVERSATIONS["one image"])
    error = relative_error(half.logits(request), pair.reference.logits(request))
    assert 1e-4 < error < 0.2
    assert "bfloat16" in half.name


def test_unusable_input_is_named(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'float32'"):
        Reference(pair.job.checkpoint.path, "float3")
    source = ladder.variant(pair.job.checkpoint.path, tmp_path / "source", {})
    tensors = load_file(source / "model.safetensors")
    del tensors["model.visual.merger.norm.weight"]
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"merger\.norm\.weight"):
        Reference(source)
    tensors["model.visual.merger.norm.weight"] = np.ones(3, np.float32)
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"merger\.norm\.weight"):
        Reference(source)
