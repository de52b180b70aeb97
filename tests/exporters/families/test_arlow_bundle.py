"""A bundle without a decoder: exported, run, verified and refused what it cannot do."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.runtimes import Encoder, load
from lensmith.runtimes.bundle.opening import open_bundle
from lensmith.runtimes.evidence.replay import replay, summarize
from lensmith.runtimes.evidence.traces import read_traces
from lensmith.runtimes.evidence.verification import verify
from lensmith.runtimes.generation.model import Model
from lensmith.targets.errors import InputError
from PIL import Image

from tests.helpers import arlow, ladder
from tests.helpers.arlow import CHECKPOINT
from tests.helpers.extras import load_encoder
from tests.helpers.forking import fork, in_threads

SQUARE, WIDE = (arlow.FOLDER / "images" / f"{name}.png" for name in ("square", "wide"))
# What differs between a processor's weights as stored and as exported: nothing but the order of float32 sums.
EXACT = 2e-5


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In float32, with golden traces."""
    ladder.need_torch()
    job = prepare(CHECKPOINT, Options(precision="fp32"))
    return export(job, tmp_path_factory.mktemp("arlow") / "bundle", golden="always").path


def test_run_writes_features(cli: Any, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.npz"
    ran = cli("run", bundle, "--image", SQUARE, "--image", WIDE, "-o", out)
    assert ran.code == 0
    assert ran.out.splitlines()[-1] == str(out)
    with np.load(out, allow_pickle=False) as arrays:
        for index, name in enumerate(("square", "wide")):
            wanted = arlow.expected(name, "B")
            assert np.abs(arrays[f"features_{index}"] - wanted.features).max() < EXACT
            assert np.abs(arrays[f"deepstack_{index}"] - wanted.deepstack).max() < EXACT
            assert tuple(arrays[f"grid_{index}"]) == arlow.patches_of(name, "B")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "{}", "What is this?", "--image", SQUARE), "has no decoder and takes no question"),
        (("run", "{}", "--image", SQUARE), "expected --image FILE and -o FEATURES.npz"),
        (("run", "{}", "-o", "features.npz"), "expected --image FILE and -o FEATURES.npz"),
        (("run", "{}", "--image", "none.png", "-o", "features.npz"), "none.png cannot be read"),
        (
            ("run", "{}", "--image", WIDE, "-o", "f.npz", "--context", 36),
            "makes 40 patches and the bundle takes up to 36",
        ),
        (("chat", "{}"), "has no decoder"),
        (("plan", CHECKPOINT, "--revision", "C"), "no revision 'C' of arlow; expected A or B"),
        (("plan", CHECKPOINT, "--context", 3), "context 3 holds no image"),
        (("plan", ladder.TRAINED, "--revision", "A"), "qwen3_vl has no revisions"),
    ],
)
def test_refused(cli: Any, bundle: Path, arguments: tuple[Any, ...], message: str) -> None:
    ran = cli(*(bundle if word == "{}" else word for word in arguments))
    assert ran.code == 2
    assert message in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_a_model_is_no_encoder(cli: Any, tiny_bundle: Path) -> None:
    assert "expected a QUESTION" in cli("run", tiny_bundle).err
    assert isinstance(load(tiny_bundle), Model)
    with pytest.raises(InputError, match="answers questions"):
        Encoder(open_bundle(tiny_bundle))


def test_verify_replays_images_and_a_clip(bundle: Path, tmp_path: Path) -> None:
    report = verify(bundle)
    assert report.passed
    assert {row.case for row in report.rows} >= {"golden/image_0.png", "golden/clip.gif"}
    job = prepare(CHECKPOINT, Options(precision="fp32", revision="A"))
    other = Encoder(export(job, tmp_path / "other", golden="always"))
    worst = summarize(replay(other, read_traces(open_bundle(bundle))))
    assert worst["patches_differ"] == 1  # another order
    assert worst["image_features_error"] > 0.1


def test_plan_and_inspect(cli: Any, bundle: Path) -> None:
    planned, shown = cli("plan", CHECKPOINT), cli("inspect", bundle)
    assert planned.code == shown.code == 0
    assert "8192 of one image or clip" in planned.out
    assert "KV cache" not in planned.out
    assert "deepstack_features" in shown.out
    assert "revision B" in " ".join(shown.out.split())


def test_images_and_clips_together(bundle: Path) -> None:
    encoder = load_encoder(bundle, threads=1)
    frames = arlow.case("video4")["video"]
    items = encoder.features([SQUARE, Image.open(WIDE).convert("RGBA")], [list(frames)])
    assert [item.grid for item in items] == [(1, 6, 6), (1, 4, 10), (2, 4, 6)]
    assert np.abs(items[2].features - arlow.expected("video4", "B").features).max() < EXACT
    pictures = encoder.clip([Image.fromarray(frame) for frame in frames])
    assert (pictures.features == items[2].features).all()


def test_a_video_on_the_command_line(cli: Any, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.npz"
    ran = cli("run", bundle, "--video", bundle / "golden" / "clip.gif", "--frames", 4, "-o", out, "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["items"][0]["grid"] == [2, 6, 8]
    by_time = load_encoder(bundle, threads=1).clip(bundle / "golden" / "clip.gif", fps=4 / 3)
    with np.load(out, allow_pickle=False) as arrays:
        assert (arrays["features_0"] == by_time.features).all()
    both = cli("run", bundle, "--video", bundle / "golden" / "clip.gif", "--frames", 4, "--fps", 1, "-o", out)
    assert "give one of the two" in both.err


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "no frames"),
        ([np.zeros((60, 60, 3), np.uint8)], "has 1 frames to take"),
        ([np.zeros((60, 60, 3), np.uint8), np.zeros((60, 61, 3), np.uint8)], "scale them to one size"),
        (SQUARE, "a still image"),
        ([np.zeros((20, 60, 3), np.uint8)] * 4, "expected at least 28 x 28"),
        ([np.zeros((60, 60, 3), np.float32)] * 4, "expected uint8"),
        ([np.zeros((400, 400, 3), np.uint8)] * 40, "the clip of 40 frames makes 15680 patches"),
    ],
)
def test_unusable_clips(frames: Any, message: str, bundle: Path) -> None:
    with pytest.raises(InputError, match=message):
        load_encoder(bundle, threads=1).clip(frames)


def test_alpha_is_dropped(bundle: Path) -> None:
    """As the original processor does, not blended with white."""
    encoder, picture = load_encoder(bundle, threads=1), Image.open(SQUARE).convert("RGBA")
    picture.putalpha(0)
    assert (encoder.cut_image(picture)[0] == encoder.cut_image(SQUARE)[0]).all()


def test_threads_and_forks(bundle: Path) -> None:
    """Each gets the features of its own picture."""
    encoder, found = load_encoder(bundle, threads=2), list[tuple[Any, Any]]()
    wanted = {path: encoder.image(path).features for path in (SQUARE, WIDE)}

    def work(path: Path) -> None:
        found.extend((path, encoder.image(path).features) for _ in range(6))

    in_threads(*(partial(work, path) for path in (SQUARE, WIDE, SQUARE, WIDE)))
    assert len(found) == 24
    assert all((features == wanted[path]).all() for path, features in found)
    children = [fork(partial(digest, encoder, path)) for path in wanted]
    assert [child() for child in children] == [repr(digest(encoder, path)) for path in wanted]


def digest(encoder: Encoder, path: Path) -> str:
    return hashlib.sha256(encoder.image(path).features.tobytes()).hexdigest()
