"""Images and clips into patches as Arlow's processors make them, and where a checkpoint keeps its settings."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.exporters.checkpoint.folder import open_checkpoint
from lensmith.exporters.families.arlow.processors import clip_spec, image_spec
from lensmith.exporters.pipeline import Options, prepare
from lensmith.runtimes.media import clips
from lensmith.runtimes.media.clips import cut_clip, plan_clip
from lensmith.runtimes.media.images import smart_resize
from lensmith.runtimes.media.resize import resize_bicubic
from lensmith.targets.errors import InputError

from tests.helpers import arlow
from tests.helpers.arlow import CASES, CHECKPOINT

RULES = json.loads((arlow.FOLDER / "resize_cases.json").read_text())
DEFAULTS = clip_spec({})


def test_image_sizes() -> None:
    for row in RULES["image"]:
        height, width = row["in"]
        settings = {"patch_size": row["patch"], "merge_size": row["merge"]}
        spec = image_spec({**settings, "min_pixels": row["min_pixels"], "max_pixels": row["max_pixels"]})
        if row["out"] == "error":
            with pytest.raises(InputError, match="at most 200 times"):
                smart_resize(height, width, spec)
        else:
            assert list(smart_resize(height, width, spec)) == row["out"], row


def test_frames_and_sizes_of_clips() -> None:
    for row in RULES["video"]:
        height, width = row["in"]
        if row["out"] == "error":
            with pytest.raises(InputError):
                plan_clip(row["frames"], height, width, DEFAULTS)
            continue
        plan = plan_clip(row["frames"], height, width, DEFAULTS)
        assert plan.frames.tolist() == row["frame_indices"], row
        assert [plan.height, plan.width] == row["out"], row
        assert list(plan.grid(DEFAULTS.image)) == row["encoder_grid"], row


def test_frames_are_spread_as_by_torch() -> None:
    torch = pytest.importorskip("torch")
    for count in range(2, 120):
        for frames in range(2, 120, 2):
            wanted = torch.linspace(0, count - 1, frames).round().long().numpy()
            assert count == frames or (clips._spread(count, frames) == wanted).all(), (count, frames)


@pytest.mark.parametrize("name", CASES)
def test_pixels_and_patches(name: str) -> None:
    """Bit for bit: resized frames, then patches in the order of either revision."""
    arrays = arlow.case(name)
    source = arrays["video"][arrays["frame_indices"]] if "video" in arrays else arrays["image"][None]
    resized = arrays["resized"].reshape(len(source), *arrays["resized"].shape[-3:]).transpose(0, 3, 1, 2)
    planes = np.stack([resize_bicubic(frame.transpose(2, 0, 1), *resized.shape[2:]) for frame in source])
    assert (planes == resized).all()
    frames = planes if "video" in arrays else np.concatenate([planes, planes])
    for revision, order in (("A", "windows"), ("B", "raster")):
        wanted, grid = arlow.patches_of(name, revision)
        patches, found = cut_clip(frames, DEFAULTS.image, order)  # type: ignore[arg-type]
        assert found == grid
        assert (patches == wanted).all()


def test_sampling() -> None:
    assert plan_clip(100, 60, 60, clip_spec({"num_frames": 4})).frames.tolist() == [0, 25, 50, 75]
    by_time = clip_spec({"sample_strategy": "fps_based", "fps": 2})
    assert plan_clip(100, 60, 60, by_time, 25.0).frames.tolist() == [0, 12, 25, 37, 50, 62, 75, 87]
    with pytest.raises(InputError, match="has no frame rate"):
        plan_clip(100, 60, 60, by_time)
    with pytest.raises(InputError, match=r"'motion_adaptive'.*at random"):
        clip_spec({"sample_strategy": "motion_adaptive"})
    with pytest.raises(InputError, match="no fps"):
        clip_spec({"sample_strategy": "fps_based"})


def test_tokens_of_a_clip_are_limited() -> None:
    whole = plan_clip(12, 480, 640, DEFAULTS).grid(DEFAULTS.image)
    assert whole[0] * whole[1] * whole[2] // 4 > 700
    for limit in (700, 250, 100, 4):
        spec = clip_spec({"max_tokens_per_video": limit})
        times, height, width = plan_clip(12, 480, 640, spec).grid(spec.image)
        assert times * height * width // 4 <= max(limit, 2)
        assert times % 2 == 0


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        ("image_processor/preprocessor_config.json", {"do_pan_and_scan": True}, "do_pan_and_scan"),
        ("image_processor/preprocessor_config.json", {"patch_size": 16}, "has patch_size 16"),
        ("image_processor/preprocessor_config.json", {"resample": 2}, "resample is 2"),
        ("video_processor/video_preprocessor_config.json", {"sample_strategy": "motion_adaptive"}, "motion_adaptive"),
        ("video_processor/video_preprocessor_config.json", {"max_frames": 0}, "max_frames 0"),
        ("video_processor/video_preprocessor_config.json", {"merge_size": 4}, "video_preprocessor.*merge_size 4"),
    ],
)
def test_refused_settings(file: str, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = arlow.changed(tmp_path / "source")
    path = source / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    with pytest.raises(InputError, match=message):
        prepare(source, Options())


def clip_pixels(path: Path) -> int:
    """The most pixels of a frame in the settings found, which differ from the defaults."""
    opened = open_checkpoint(path)
    return clip_spec(opened.video_preprocessor_config or {}).image.max_pixels


def test_layouts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "arlow"
    for step in ("checkpoint-9", "checkpoint-10"):
        shutil.copytree(CHECKPOINT / "vision_encoder", root / step / "vision_encoder")
        (root / step / "config.json").write_text("{}")  # of the training model, as the next ones
        (root / step / "optimizer.pt").touch()
    (root / "checkpoint-200").mkdir()  # holds no encoder
    shutil.copytree(CHECKPOINT / "video_processor", root / "video_processor")
    with caplog.at_level(logging.WARNING):
        opened = open_checkpoint(root)
    assert opened.model_path == root / "checkpoint-10" / "vision_encoder"
    assert "taking checkpoint-10, the highest number" in caplog.text
    assert {"config.json", "model.safetensors", "video_preprocessor_config.json"} == set(opened.source_files())
    for place in (root, root / "checkpoint-9", root / "checkpoint-9" / "vision_encoder"):
        assert clip_pixels(place) == 200704, place
    assert prepare(root / "checkpoint-10" / "vision_encoder", Options()).family.name == "arlow"
    shutil.copytree(root / "checkpoint-9", root / "checkpoint-30-old")  # no step of the training
    assert open_checkpoint(root).model_path == opened.model_path
    near = json.loads((root / "video_processor" / "video_preprocessor_config.json").read_text())
    near["size"]["longest_edge"] = 150528
    (root / "checkpoint-9" / "video_processor").mkdir()
    (root / "checkpoint-9" / "video_processor" / "video_preprocessor_config.json").write_text(json.dumps(near))
    assert clip_pixels(root / "checkpoint-9") == 150528  # the nearer one
    assert clip_pixels(root) == 200704
    caplog.clear()
    shutil.rmtree(root / "checkpoint-10")
    assert clip_pixels(root) == 150528
    assert not caplog.records


def test_settings_of_processors(tmp_path: Path) -> None:
    """The separate files first, then processor_config.json, then the defaults."""
    source = arlow.changed(tmp_path / "source")
    combined = json.loads((source / "processor_config.json").read_text())
    combined["video_processor"]["size"]["longest_edge"] = 150528
    (source / "processor_config.json").write_text(json.dumps(combined))
    assert clip_pixels(source) == 200704
    shutil.rmtree(source / "video_processor")
    assert clip_pixels(source) == 150528
    (source / "processor_config.json").unlink()
    assert clip_pixels(source) == 786432


def test_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config.json.*vision_encoder/config.json"):
        open_checkpoint(tmp_path)


def test_layers_that_the_weights_lack(tmp_path: Path) -> None:
    """Said before anything is built, with what there is."""
    depth = json.loads((CHECKPOINT / "vision_encoder" / "config.json").read_text())["depth"]
    with pytest.raises(
        InputError, match=rf"has {depth + 1} layers of blocks\.\*, of which .* holds {depth}: the weigh"
    ):
        prepare(arlow.changed(tmp_path / "source", depth=depth + 1), Options())
