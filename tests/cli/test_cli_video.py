"""Videos on the command line, and bundles that take none."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lensmith.exporters.evidence.golden_media import CLIP, sources
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.runtimes.media.frames import open_clip

from tests.cli.test_cli import type_in
from tests.helpers.extras import Ran
from tests.paths import TINY

Cli = Callable[..., Ran]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Three seconds, four frames a second."""
    path = tmp_path / "clip.gif"
    path.write_bytes(sources()[CLIP])
    return path


def video_tokens(ran: Ran) -> int:
    assert ran.code == 0, ran.err
    count: int = json.loads(ran.out)["timings"]["video_tokens"]
    return count


def test_run_takes_videos(cli: Cli, tiny_bundle: Path, clip: Path) -> None:
    arguments = ("run", tiny_bundle, "What moves?", "--video", clip, "--greedy", "--max-new-tokens", 4)
    ran = cli(*arguments, "--timings")
    assert ran.code == 0
    assert "0 image tokens and 18 video tokens" in ran.err  # 6 of 12 frames, 3 temporal patches of 2 x 3 tokens
    assert video_tokens(cli(*arguments, "--json")) == 18
    assert video_tokens(cli(*arguments, "--json", "--frames", 12)) == 36
    assert video_tokens(cli(*arguments, "--json", "--fps", 1.4)) == 12  # at least 4 frames
    assert video_tokens(cli(*arguments, "--json", "--max-video-pixels", 6144)) < 18
    assert video_tokens(cli(*arguments, "--json", "--video", clip)) == 36


def test_inspect_shows_the_limits(cli: Cli, tiny_bundle: Path) -> None:
    assert re.search("video max frames +768", cli("inspect", tiny_bundle).out)


def test_chat_takes_videos(cli: Cli, tiny_bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = (tiny_bundle, "--greedy", "--max-new-tokens", 4, "--frames", 4)
    type_in(monkeypatch, f"/video {clip}\nWhat moves?\n")
    ran = cli("chat", *asked)
    assert ran.code == 0
    assert ran.out == cli("run", tiny_bundle, "What moves?", "--video", clip, *asked[1:]).out
    type_in(monkeypatch, "/video no.gif\n")
    ran = cli("chat", *asked)
    assert ran.code == 2
    assert "no.gif is not a file; expected /video and the path of a video" in ran.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--fps", 1, "--frames", 4), "one of the two"),
        (("--frames", 800), "1 to 768"),
        (("--fps", -1), "positive"),
        (("--max-video-pixels", 5), "outside"),
        (("--video", "no.mp4"), "cannot be read"),
        (("--context", 20), "fewer frames"),
    ],
)
def test_unusable_videos(cli: Cli, tiny_bundle: Path, clip: Path, options: tuple[object, ...], words: str) -> None:
    ran = cli("run", tiny_bundle, "What moves?", "--video", clip, *options)
    assert ran.code == 2
    assert words in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_a_model_without_videos(cli: Cli, clip: Path, tmp_path: Path) -> None:
    bundle = export(prepare(TINY / "llava", Options()), tmp_path / "b", golden="never")
    assert "video" not in bundle.content
    ran = cli("run", bundle.path, "What moves?", "--video", clip)
    assert ran.code == 2
    assert "takes no videos" in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_a_video_config_of_another_model(cli: Cli, tiny_checkpoint: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_checkpoint, source)
    path = source / "video_preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "patch_size": 14}))
    ran = cli("export", source, "-o", tmp_path / "bundle")
    assert ran.code == 2
    assert "video_preprocessor_config.json has patch_size 14" in ran.err


def test_the_built_in_clip_keeps_its_colours() -> None:
    """Its palette is exact, so the same pixels come out of any decoder."""
    frames = [np.asarray(frame) for frame in open_clip(sources()[CLIP]).frames(np.arange(12))]
    colours = {tuple(colour) for frame in frames for colour in frame.reshape(-1, 3).tolist()}
    assert colours == {(250, 220, 30), *((red, green, 40) for red in (0, 180) for green in (0, 60, 120))}
    assert len({frame.tobytes() for frame in frames}) == 12
