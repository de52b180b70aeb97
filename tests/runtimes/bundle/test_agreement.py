"""Sections of a manifest that contradict one another, each by the least that can be wrong."""

from __future__ import annotations

from typing import Any

import pytest
from lensmith.runtimes.bundle.checked_manifest import check_manifest
from lensmith.targets.errors import InputError

from tests.helpers.manifests import CONTENT, DELETE, damaged, port

FILE = {"size": 1, "sha256": "0" * 64}
ENCODER: dict[str, Any] = {**CONTENT, "format_version": 1, "files": {"decoder.onnx": FILE}}
PROFILE = {"pixel_values": [[1, 24], [2, 24], [3, 24]]}
TOLD = {**ENCODER["graphs"]["vision_encoder"], "dialect": "tensorrt", "plugin": {"profiles": [PROFILE]}}
PLUGIN = damaged(damaged(ENCODER, ("options", "format"), "tensorrt"), ("graphs", "vision_encoder"), TOLD)
STATES = {"past_key_values.0.key": port(1, 2, "capacity", 4), "past_key_values.0.value": port(1, 2, "capacity", 4),
          "past.1.conv": port(1, 8, 3), "past.1.recurrent": port(1, 2, 4, 4)}  # fmt: skip
VISION = {**ENCODER["graphs"]["vision_encoder"], "file": "vision.onnx"}
DECODER: dict[str, Any] = {
    **{key: value for key, value in ENCODER.items() if key not in ("encoder", "video")},
    "graphs": {
        "vision_encoder": VISION,
        "decoder": {
            "file": "decoder.onnx",
            "inputs": {"position_ids": port(3, "b", "s", dtype="INT64"), "image_features": port("n", 8), **STATES},
            "outputs": {
                "logits": port(1, "s", 10),
                **{"present." + name.split(".", 1)[1]: state for name, state in STATES.items()},
            },
        },
    },
    "prompt": {"template": "chat_template.jinja", "tokenizer": "tokenizer.json", "tokens": {"image_token": "<i>"},
               "token_ids": {"<i>": 9}, "eos_token_ids": [9], "merge_size": 1},
    "files": dict.fromkeys(("decoder.onnx", "vision.onnx", "chat_template.jinja", "tokenizer.json"), FILE),
}  # fmt: skip
HEAD = {"file": "decoder.onnx", "inputs": {"image_features": port("n", 8)}, "outputs": {"logits": port(1, "s", 10)}}
DRAFTS = damaged(DECODER, ("graphs", "mtp"), HEAD)
TEXT = {**damaged(DECODER, ("graphs", "vision_encoder"), DELETE), "image": {"kind": "none"}, "limits": {"context": 4}}
CROP = {**damaged(DECODER, ("graphs", "vision_encoder", "inputs", "pixel_values"), port(1, 3, 6, 4)),
        "image": {"kind": "crop", "shortest_edge": 4, "resized": None, "cropped": [6, 4], "mean": None,
                  "std": [1.0, 1.0, 1.0], "rescale_factor": None, "image_tokens": 4}}  # fmt: skip
TILES = {**damaged(damaged(DECODER, ("graphs", "vision_encoder", "inputs", "pixel_values"), port(1, 3, 4, 4)),
                   ("prompt", "tiles"), {"around": "<a>", "cell": "<{row}>", "whole": "<w>"}),
         "image": {"kind": "tiles", "longest_edge": 7, "tile": 4, "tile_tokens": 1, "split": True,
                   "resample": "lanczos", "mean": None, "std": [1.0, 1.0, 1.0], "rescale_factor": None},
         "limits": {**DECODER["limits"], "max_image_tokens": 5}}  # fmt: skip
FRAMES = {**{key: value for key, value in CONTENT["video"].items() if key not in ("strategy", "max_frames")},
          "fps": 2.0, "min_frames": 4, "max_frames": 4, "max_tokens": 4}  # fmt: skip
VIDEO = {**damaged(DECODER, ("prompt", "tokens", "video_token"), "<i>"), "video": FRAMES}

DEC, ENC = ("graphs", "decoder"), ("graphs", "vision_encoder")
INPUTS, OUTPUTS = (*DEC, "inputs"), (*DEC, "outputs")
PROFILES = (*ENC, "plugin", "profiles", 0)
# A manifest, the place of a change, values that are right there, and values that are not with words of the sentence.
CASES: dict[str, tuple[dict[str, Any], tuple[str | int, ...], list[Any], list[Any], str]] = {
    "least pixels": (ENCODER, ("limits", "min_pixels"), [1, 16], [17], "limits.min_pixels is above"),
    "tokens": (ENCODER, ("limits", "max_image_tokens"), [4], [3, 5], "limits.max_image_tokens should be 4"),
    "patches": (ENCODER, (*ENC, "inputs", "pixel_values", "shape"), [["n", 24]], [["n", 23], ["n", 3, 8], ["n"]],
                "expected [24] each"),
    "features": (ENCODER, (*ENC, "outputs", "image_features", "shape"), [["n", 1 << 20]], [["n", (1 << 20) + 1]],
                 "wider than can be"),
    "width": (ENCODER, (*ENC, "outputs", "image_features", "shape"), [], [["n", "h"], ["n", 1, 8], [8]],
              "expected 2 sizes of which the last is a number"),
    "values": (ENCODER, (*ENC, "inputs", "x"), [port(1 << 17, "n", 1 << 17)], [port(1 << 17, "n", (1 << 17) + 1)],
               "more than can be"),
    "pixels of clips": (ENCODER, ("video", "min_pixels"), [16], [17], "video.min_pixels is above"),
    "patches of clips": (ENCODER, ("video", "patch_size"), [2], [1, 3], "video.patch_size is not"),
    "frames of a patch": (ENCODER, ("video", "temporal_patch_size"), [2], [1], "video.temporal_patch_size is not"),
    "merged patches": (ENCODER, ("video", "merge_size"), [1], [2], "video.merge_size is not"),
    "frames by the second": (ENCODER, ("video", "strategy"), ["uniform"], ["fps_based"], "video.fps is missing"),
    "no clips": (ENCODER, ("video",), [], [DELETE], "'video' is missing"),
    "no encoder": (ENCODER, ("encoder",), [], [DELETE], "'encoder' is missing"),
    "no graphs of its own": (ENCODER, ("options", "format"), ["onnx"], ["gguf", "tensorrt"],
                             "options.format is|dialect is"),
    "a file": (ENCODER, (*ENC, "file"), [], ["other.onnx", "decoder.txt"], "not one of its files|expected .onnx"),
    "an engine": (ENCODER, (*ENC, "plugin"), [], [{"profiles": [{}]}], "does not name each of its inputs"),
    "a file for an engine": ({**PLUGIN, "files": {"decoder.onnx": FILE, "e.engine": FILE}}, (*ENC, "file"), [],
                             ["e.engine"], "engine does not fit the file"),
    "traces": (ENCODER, ("evidence", "golden"), [{"recorded": False}], [{"recorded": True}], "golden/cases.json"),
    "a profile": (PLUGIN, (*PROFILES, "pixel_values"),
                  [[[1, 24], [1, 24], [1, 24]], [[1, 24], [3, 24], [3, 24]]],
                  [[[1, 24], [4, 24], [3, 24]], [[2, 24], [1, 24], [3, 24]], [[3, 24], [3, 24], [1, 24]],
                   [[1, 23], [2, 24], [3, 24]], [[1, 24], [2, 24], [3, 25]], [[1], [2], [3]],
                   [[1, 24], [2, 24], [3, 24, 1]]], "has a profile in which pixel_values goes"),
    "another profile": (PLUGIN, (*PROFILES, "other"), [], [[[1], [1], [1]]], "does not name each of its inputs"),
    "end tokens": (DECODER, ("prompt", "eos_token_ids"), [[9], [0, 9]], [[10], [1, 10]], "prompt.eos_token_ids has 10"),
    "token ids": (DECODER, ("prompt", "token_ids", "<x>"), [9], [10], "prompt.token_ids has 10"),
    "image token": (DECODER, ("prompt", "tokens", "image_token"), ["<i>", None], ["<j>"], "lacks the image_token"),
    "video token": (DECODER, ("prompt", "tokens", "video_token"), ["<i>", None], ["<j>"], "lacks the video_token"),
    "merge": (DECODER, ("prompt", "merge_size"), [1], [2], "prompt.merge_size is not"),
    "no prompt": (DECODER, ("prompt",), [], [DELETE], "'prompt' is missing"),
    "an encoder section": (DECODER, ("encoder",), [], [ENCODER["encoder"]], "'encoder' is for bundles without"),
    "clips with a decoder": (DECODER, ("video",), [], [CONTENT["video"]], "'video' is that of a bundle without"),
    "positions": (DECODER, (*INPUTS, "position_ids", "shape"), [[3, "b", "s"], ["b", "s"]],
                  [[4, "b", "s"], ["b"], [3, 1, "b", "s"], []], "expected [3, batch, seq]"),
    "no positions": (DECODER, (*INPUTS, "position_ids"), [], [DELETE], "expected [3, batch, seq]"),
    "logits": (DECODER, (*OUTPUTS, "logits", "shape"), [[1, "s", 11]], [[1, "s", "v"], ["s", 10]], "expected 3 sizes"),
    "logits of drafts": (DRAFTS, ("graphs", "mtp", "outputs", "logits", "shape"), [[1, "s", 10]],
                         [[1, "s", "v"], ["s", 10], [1, 1, "s", 10]], "['mtp'].outputs['logits'].shape"),
    "features of drafts": (DRAFTS, ("graphs", "mtp", "inputs", "image_features", "shape"), [["n", 8]],
                           [["n", "h"], [8]], "['mtp'].inputs['image_features'].shape"),
    "widths": (DECODER, (*INPUTS, "image_features", "shape"), [["n", 8]], [["n", 7], ["n", 9]], "is not the encoder's"),
    "a state that ends": (DECODER, (*OUTPUTS, "present.0.key"), [],
                          [DELETE, port(1, 2, "capacity", 3), port(1, 2, "capacity", 4, dtype="FLOAT16")],
                          "is not as inputs"),
    "a state of no layer": (DECODER, (*INPUTS, "past_key_values.x.key"), [], [port(1, 2, "c", 4)], "a state named"),
    "a state of another kind": (DECODER, (*INPUTS, "past.0.other"), [], [port(1, 2, 3, 4)], "is no state of a layer"),
    "no vision": (TEXT, ("limits", "min_pixels"), [], [4], "limits has sizes of images"),
    "no videos": (TEXT, ("video",), [], [FRAMES], "does not go with image.kind 'none'"),
    "an encoder for nothing": (TEXT, ENC, [], [VISION], "has a vision_encoder"),
    "tokens of a crop": (CROP, ("limits", "max_image_tokens"), [4], [3], "is not image.image_tokens"),
    "no size": (CROP, ("image",), [], [{**CROP["image"], "shortest_edge": None, "cropped": None}],
                "image.cropped is missing"),
    "size of a crop": (CROP, ("image", "cropped"), [[6, 4]], [[4, 6], [6, 5]], "expected [3, "),
    "tokens of tiles": (TILES, ("limits", "max_image_tokens"), [5], [4, 6], "should be 5"),
    "longest edge": (TILES, ("image", "longest_edge"), [8, 7], [9, 4], "limits.max_image_tokens should be"),
    "tiles of a pixel": (TILES, ("image", "tile_tokens"), [], [1 << 20], "tokens of an image"),
    "size of a tile": (TILES, ("image", "tile"), [], [3], "should be 10"),
    "pixels of a tile": (TILES, (*ENC, "inputs", "pixel_values", "shape"), [[1, 3, 4, 4]], [[1, 3, 4, 5], [1, 48]],
                         "expected [3, 4, 4] each"),
    "no words for tiles": (TILES, ("prompt", "tiles"), [], [DELETE, None], "do not go without each other"),
    "words for no tiles": (CROP, ("prompt", "tiles"), [None], [TILES["prompt"]["tiles"]], "without each other"),
    "videos of a crop": (CROP, ("video",), [], [FRAMES],
                         "prompt.tokens.video_token|does not go with images of one size"),
    "frames": (VIDEO, ("video", "min_frames"), [1, 4], [5], "video.min_frames is above"),
    "videos without a token": (VIDEO, ("prompt", "tokens", "video_token"), [], [None], "video_token is missing"),
}  # fmt: skip


@pytest.mark.parametrize("manifest", [ENCODER, PLUGIN, DECODER, TEXT, CROP, VIDEO])
def test_manifests_that_agree(manifest: dict[str, Any]) -> None:
    check_manifest(manifest, "here")


@pytest.mark.parametrize("case", CASES)
def test_one_change_is_one_sentence(case: str) -> None:
    manifest, place, right, wrong, words = CASES[case]
    for value in right:
        check_manifest(damaged(manifest, place, value), "here")
    for value in wrong:
        with pytest.raises(InputError) as caught:
            check_manifest(damaged(manifest, place, value), "here")
        assert any(each in str(caught.value) for each in words.split("|")), (value, caught.value)


@pytest.mark.parametrize(
    ("name", "largest", "larger"),
    [
        ("0.key", port(1, 1 << 9, "capacity", 1 << 9), port(1, 1 << 9, "capacity", (1 << 9) + 1)),
        ("0.key", port(1, 1 << 9, 1 << 10, 1 << 10), port(1, 1 << 20, 1 << 10, 1 << 10)),  # of a fixed size
        ("1.conv", port(1, 1 << 14, 1 << 14), port(1, 1 << 14, (1 << 14) + 1)),
        ("1.recurrent", port(1, 1 << 8, 1 << 10, 1 << 10), port(1, (1 << 8) + 1, 1 << 10, 1 << 10)),
    ],
)
def test_states_are_no_larger_than_in_models(name: str, largest: dict[str, Any], larger: dict[str, Any]) -> None:
    past = ("past_key_values." if name == "0.key" else "past.") + name

    def sized(kept: dict[str, Any]) -> dict[str, Any]:
        return damaged(damaged(DECODER, (*INPUTS, past), kept), (*OUTPUTS, f"present.{name}"), kept)

    check_manifest(sized(largest), "here")
    with pytest.raises(InputError, match="more than can be"):
        check_manifest(sized(larger), "here")
