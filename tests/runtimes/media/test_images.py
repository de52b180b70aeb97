"""Patches equal Hugging Face's to the bit, for sizes, modes and files; unusable images end in one clear sentence."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import random
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.runtimes.media.image_files import ImageLimits, check_aspect, check_header, open_image
from lensmith.runtimes.media.images import ImageSpec, preprocess, preprocess_images, smart_resize, three
from lensmith.runtimes.media.pixels import image_spec
from lensmith.runtimes.media.resize import axis_weights, resize_bicubic
from lensmith.targets.errors import InputError
from PIL import Image

from tests.helpers import hf
from tests.helpers.contents import inputs
from tests.paths import DATA

SPEC = ImageSpec()
GOLDEN = json.loads((DATA / "image_hashes.json").read_text())


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Pixels from a generator that is the same everywhere: half noise, half hard edges (overshoot of the cubic)."""
    pixels = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (height, width, channels), np.uint8)
    pixels[: height // 2] = (pixels[: height // 2] > 127) * np.uint8(255)
    return pixels


def _palette(pixels: Any) -> Image.Image:
    image = Image.fromarray(pixels[..., 0], "L").convert("P")
    image.putpalette(random.Random(1).randbytes(768))
    return image


def _transparent_palette(pixels: Any, transparency: Any) -> Image.Image:
    image = _palette(pixels)
    image.info["transparency"] = transparency
    return image


MODES: dict[str, Callable[[Any], Image.Image]] = {
    "RGB": lambda p: Image.fromarray(p[..., :3].copy()),
    "L": lambda p: Image.fromarray(p[..., 0].copy()),
    "RGBA": lambda p: Image.fromarray(p.copy(), "RGBA"),
    "LA": lambda p: Image.fromarray(p.copy(), "RGBA").convert("LA"),
    "P": _palette,
    "P+index": lambda p: _transparent_palette(p, 7),
    "P+bytes": lambda p: _transparent_palette(p, bytes(range(256))),
    "PA": lambda p: Image.fromarray(p.copy(), "RGBA").convert("LA").convert("PA"),
    "I;16": lambda p: Image.fromarray(p[..., 0].astype(np.uint16) * 257),
    "1": lambda p: Image.fromarray(p[..., 0].copy()).convert("1"),
    "CMYK": lambda p: Image.fromarray(p.copy(), "CMYK"),
    "YCbCr": lambda p: Image.fromarray(p[..., :3].copy(), "YCbCr"),
    "I": lambda p: Image.fromarray(p[..., 0].astype(np.int32) * 3 - 100),
    "F": lambda p: Image.fromarray(p[..., 0].astype(np.float32) * 1.5 - 20),
}


def hf_processor(spec: ImageSpec) -> Any:
    size = {"shortest_edge": spec.min_pixels, "longest_edge": spec.max_pixels}
    return type(hf.processor().image_processor)(
        patch_size=spec.patch_size, temporal_patch_size=spec.temporal_patch_size, merge_size=spec.merge_size, size=size,
        image_mean=list(spec.mean), image_std=list(spec.std), rescale_factor=spec.rescale_factor,
    )  # fmt: skip


def assert_same_as_hf(image: Image.Image, spec: ImageSpec = SPEC, source: Any = None) -> None:
    """Compare with HF for an image object, and with HF's load_image for `source`; what HF refuses, we refuse."""
    try:
        expected = hf_processor(spec)(images=[image], return_tensors="np")
    except (ValueError, ZeroDivisionError):
        with pytest.raises(InputError):
            preprocess(open_image(image if source is None else source), spec)
        return
    patches, grid = preprocess(open_image(image if source is None else source), spec)
    assert [list(grid)] == expected["image_grid_thw"].tolist()
    assert patches.dtype == np.float32
    assert np.array_equal(patches.view(np.int32), expected["pixel_values"].view(np.int32))


def random_sizes(count: int, seed: int) -> list[tuple[int, int]]:
    """Sizes from 1 x 1 to 4000 x 300 and back, small ones often."""
    draw = random.Random(seed)
    sizes = [(round(4000 ** draw.random()), round(300 ** draw.random())) for _ in range(count)]
    return [size if draw.random() < 0.6 else size[::-1] for size in sizes]


EDGES = [(1, 1), (1, 200), (200, 1), (1, 201), (4000, 300), (4000, 20), (256, 256), (255, 257), (32, 32), (640, 480)]


@pytest.mark.parametrize("batch", range(8))
def test_random_sizes_equal_hf(batch: int) -> None:
    for number, (width, height) in enumerate(random_sizes(25, seed=batch)):
        assert_same_as_hf(Image.fromarray(noise(width, height, seed=number)))


@pytest.mark.parametrize(("width", "height"), EDGES)
def test_edge_sizes_equal_hf(width: int, height: int) -> None:
    assert_same_as_hf(Image.fromarray(noise(width, height)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("ignore:Palette images:UserWarning")
def test_modes_equal_hf(mode: str) -> None:
    for number, (width, height) in enumerate([(90, 70), (333, 40), (512, 300)]):
        assert_same_as_hf(MODES[mode](noise(width, height, 4, seed=number)))


SPECS = [
    ImageSpec(patch_size=8, min_pixels=64, max_pixels=100_000),
    ImageSpec(patch_size=14, merge_size=2, min_pixels=3136, max_pixels=200_704),
    ImageSpec(patch_size=16, merge_size=1, temporal_patch_size=1, min_pixels=256, max_pixels=300_000),
    ImageSpec(patch_size=8, merge_size=4, max_pixels=70_000),
    ImageSpec(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711), max_pixels=90_000),
    ImageSpec(mean=(0.1, 0.2, 0.3), std=(0.7, 0.9, 1.1), rescale_factor=1 / 127.5),
    ImageSpec(min_pixels=1_000_000),
]


@pytest.mark.parametrize("spec", SPECS)
def test_other_specs_equal_hf(spec: ImageSpec) -> None:
    for number, (width, height) in enumerate([(1, 1), (17, 9), (300, 420), (1234, 77), (801, 600)]):
        assert_same_as_hf(Image.fromarray(noise(width, height, seed=number)), spec)


def test_large_downscale_equals_hf() -> None:
    assert_same_as_hf(Image.fromarray(noise(3000, 2000)), SPEC.with_pixels(max_pixels=70_000))


def test_several_images_equal_hf() -> None:
    images = [Image.fromarray(noise(*size)) for size in [(300, 200), (64, 700), (300, 200)]]
    expected = hf_processor(SPEC)(images=images, return_tensors="np")
    patches, grids = preprocess_images(map(open_image, images), SPEC)
    assert np.array_equal(grids, expected["image_grid_thw"])
    assert np.array_equal(patches, expected["pixel_values"])


def test_the_table_has_the_value_of_each_byte() -> None:
    """To the bit those that patches have."""
    spec = replace(SPECS[4], min_pixels=1024)
    for byte in (0, 1, 77, 200, 255):
        patches, _ = preprocess(Image.new("RGB", (32, 32), (byte,) * 3), spec)
        assert patches[0].reshape(3, -1)[:, 0].tolist() == spec.table[:, byte].tolist()


def test_no_images_are_ordinary() -> None:
    patches, grids = preprocess_images([], SPEC)
    assert patches.shape == (0, 1536)
    assert grids.shape == (0, 3)


FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "RGB": ("JPEG", {"quality": 83}), "L": ("JPEG", {}), "CMYK": ("JPEG", {}), "RGBA": ("PNG", {}), "LA": ("PNG", {}),
    "P": ("GIF", {}), "P+index": ("PNG", {"transparency": 7}), "P+bytes": ("PNG", {"transparency": bytes(range(256))}),
    "I;16": ("PNG", {}), "1": ("PNG", {}), "YCbCr": ("JPEG", {}), "I": ("TIFF", {}), "F": ("TIFF", {}),
}  # fmt: skip


@pytest.mark.parametrize("mode", FILES)
@pytest.mark.filterwarnings("ignore:Palette images:UserWarning")
def test_files_equal_hf(mode: str, tmp_path: Path) -> None:
    """A file goes through load_image, then the processor; a path, its bytes and a data URL are the same."""
    load_image = hf.import_transformers().image_utils.load_image
    form, options = FILES[mode]
    path = tmp_path / f"image.{form.lower()}"
    MODES[mode](noise(120, 90, 4)).save(path, form, **options)
    url = "data:image/x;base64," + base64.b64encode(path.read_bytes()).decode()
    for source in (path, str(path), path.read_bytes(), url):
        assert_same_as_hf(load_image(str(path)), source=source)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_equals_hf(orientation: int, form: str, tmp_path: Path) -> None:
    load_image = hf.import_transformers().image_utils.load_image
    path, exif = tmp_path / "image", Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise(120, 90)).save(path, form, exif=exif)
    assert_same_as_hf(load_image(str(path)), source=path)
    assert_same_as_hf(Image.open(path))  # an image object is taken as it lies, by HF too


def test_rgb_png_with_a_transparent_colour_equals_hf(tmp_path: Path) -> None:
    load_image = hf.import_transformers().image_utils.load_image
    path = tmp_path / "image.png"
    Image.fromarray(noise(64, 64) & np.uint8(0xC0)).save(path, transparency=(192, 192, 192))
    assert_same_as_hf(load_image(str(path)), source=path)


def golden_hash(width: int, height: int, mode: str, options: dict[str, Any]) -> str:
    patches, grid = preprocess(open_image(MODES[mode](noise(width, height, 4))), ImageSpec(**options))
    return hashlib.sha256(repr(grid).encode() + patches.astype("<f4").tobytes()).hexdigest()


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['width']}x{case['height']}-{case['mode']}")
def test_golden_hashes(case: dict[str, Any]) -> None:
    """The same bits without transformers: hashes written where the tests above agree with HF."""
    assert golden_hash(case["width"], case["height"], case["mode"], case["options"]) == case["sha256"]


def test_weights_sum_to_one() -> None:
    for size_in, size_out in [(100, 32), (32, 100), (7, 7000), (4000, 16), (5, 5)]:
        plan = axis_weights(size_in, size_out)
        total = plan.weights.sum(axis=1) / (1 << plan.precision)
        assert np.abs(total - 1).max() < 1e-2


@pytest.mark.parametrize(("size_in", "size_out"), [(100, 200), (199, 100), (399, 100), (400, 90), (900, 20), (3, 2)])
def test_sums_are_exact(size_in: int, size_out: int) -> None:
    """The float type of a scale holds the worst sum of pixels less 128 and the result with all its binary places."""
    plan = axis_weights(size_in, size_out)
    places = 24 if plan.exact_type() is np.float32 else 53
    worst = 128 * np.abs(plan.weights).sum(axis=1) + np.abs(plan.offsets())
    assert worst.max() < 1 << places
    assert 8 + plan.precision <= places
    planes = np.where(np.sign(plan.weights[0, : plan.sizes[0]]) > 0, 255, 0).astype(np.uint8)
    pixels = np.zeros((1, 1, size_in), np.uint8)
    pixels[0, 0, plan.starts[0] : plan.starts[0] + plan.sizes[0]] = planes
    total = int(planes.astype(np.int64) @ plan.weights[0, : plan.sizes[0]])
    expected = min(max((total + (1 << plan.precision - 1)) >> plan.precision, 0), 255)
    assert resize_bicubic(pixels, 1, size_out)[0, 0, 0] == expected


def test_unchanged_size_keeps_the_pixels() -> None:
    planes = noise(64, 96).transpose(2, 0, 1)
    assert np.array_equal(resize_bicubic(planes, 96, 64), planes)


def test_pixel_range_of_the_bundle() -> None:
    spec = ImageSpec(min_pixels=100_000, max_pixels=500_000)
    narrow = spec.with_pixels(max_pixels=200_000)
    height, width = smart_resize(3000, 2000, narrow)
    assert height * width <= 200_000
    assert narrow.with_pixels(max_pixels=500_000).max_pixels == 500_000
    for bad in ({"max_pixels": 500_001}, {"min_pixels": 99_999}, {"min_pixels": 300_000, "max_pixels": 200_000}):
        with pytest.raises(InputError, match="pixels"):
            narrow.with_pixels(**bad)


def test_a_size_of_just_the_most_pixels_stays() -> None:
    """50 x 70 pixels round to 64 x 64, which are 4096."""
    assert smart_resize(50, 70, ImageSpec(min_pixels=1024, max_pixels=4096)) == (64, 64)
    assert smart_resize(50, 70, ImageSpec(min_pixels=1024, max_pixels=4095)) == (32, 64)


def test_config_of_the_processor() -> None:
    config = json.loads((hf.TOKENIZER / "preprocessor_config.json").read_text())
    assert ImageSpec.from_config(config) == SPEC
    assert ImageSpec.from_config({**config, "min_pixels": 1024}).min_pixels == 1024
    assert ImageSpec.from_config({**config, "image_mean": 0.25}).mean == (0.25, 0.25, 0.25)
    bads: list[dict[str, Any]] = [
        {"do_resize": False}, {"do_resize": None}, {"resample": 2}, {"resample": []}, {"patch_size": 0},
        {"patch_size": None}, {"patch_size": True}, {"patch_size": "14"}, {"patch_size": 2**70}, {"size": 224},
        {"size": {}}, {"size": {"shortest_edge": 3136}}, {"image_mean": None}, {"image_mean": "half"},
        {"image_mean": math.nan}, {"rescale_factor": None}, {"rescale_factor": []}, {"image_std": [0, 1, 1]},
    ]  # fmt: skip
    for bad in [*bads, {"image_mean": [1]}]:
        with pytest.raises(InputError):
            ImageSpec.from_config({**config, **bad})


def test_the_image_section_of_a_manifest() -> None:
    """Each constant in its own place, and bounds as wide as one image token at least."""
    image = {"patch_size": 14, "temporal_patch_size": 1, "merge_size": 3, "rescale_factor": 0.5,
             "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}  # fmt: skip
    limits = {"context": 100, "min_pixels": 5000, "max_pixels": 9000}
    spec = image_spec(inputs(image={"kind": "patches", **image}, limits=limits))
    assert spec == ImageSpec(14, 1, 3, 5000, 9000, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.5, (1764, 9000))
    assert image_spec(inputs(image=image, limits={**limits, "min_pixels": 1000})) == replace(
        spec, min_pixels=1000, allowed_pixels=(1000, 9000)
    )


def test_defaults_are_those_of_the_class() -> None:
    processor = type(hf.processor().image_processor)()
    spec = ImageSpec.from_config({})
    assert (spec.patch_size, spec.temporal_patch_size, spec.merge_size) == (
        processor.patch_size, processor.temporal_patch_size, processor.merge_size
    )  # fmt: skip
    assert (spec.min_pixels, spec.max_pixels) == (processor.size["shortest_edge"], processor.size["longest_edge"])
    assert (spec.mean, spec.std) == (tuple(processor.image_mean), tuple(processor.image_std))
    assert spec.rescale_factor == processor.rescale_factor


def _file(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(200, 100)).save(buffer, form)
    return buffer.getvalue()


def _huge_png() -> bytes:
    """A PNG whose header promises 60000 x 60000 pixels."""
    data = bytearray(_file("PNG"))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"", "empty"),
        (b"hello", "known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "known format"),
        (_file("JPEG")[:900], "readable image|known"),
        (_file("PNG")[:900], "readable image|known"),
        (_file("WEBP")[:900], "readable image|known"),
        (_huge_png(), "too large|limit"),
        ("no/such/file.png", "cannot be read"),
        ("nul\0byte", "cannot be read"),
        (".", "cannot be read"),
        ("https://example.com/a.png", "download"),
        ("data:image/png;base64,a", "base64|empty"),
        (Image.new("RGB", (0, 5)), "at least 1 pixel"),
        (Image.new("RGB", (402, 2)), "200 times"),
    ],
)
def test_unusable_images(source: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        open_image(source)
    assert "\n" not in str(caught.value)


def test_limits_hold_before_decoding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(_file("PNG"))
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(InputError, match="more than the limit of 19999"):
        open_image(path, ImageLimits(max_decoded_pixels=19_999))
    check_header(Image.open(path), "it", ImageLimits(max_decoded_pixels=20_000))
    with pytest.raises(InputError, match="bytes, more than the limit"):
        open_image(path, ImageLimits(max_file_bytes=100))
    with pytest.raises(InputError):
        ImageLimits(max_decoded_pixels=0)


@pytest.mark.parametrize(("size_in", "size_out"), [(10, 30), (7, 35), (64, 192), (3, 9), (30, 10), (11, 12)])
def test_odd_factors_equal_pytorch(size_in: int, size_out: int) -> None:
    """Where a weight is one, it fills 16 bits to the last: a power of two fewer for all of them."""
    hf.import_transformers()
    import torch

    planes, sizes = noise(size_in, 21).transpose(2, 0, 1), (40, size_out)
    given = torch.from_numpy(np.ascontiguousarray(planes))[None]
    expected = torch.nn.functional.interpolate(given, sizes, mode="bicubic", antialias=True)[0].numpy()
    np.testing.assert_array_equal(resize_bicubic(planes, *sizes), expected)
    if size_out % size_in == 0:
        assert axis_weights(size_in, size_out).precision == 14


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, 0), (0, 0), (-1, 5)])
def test_an_image_has_two_sides(height: int, width: int) -> None:
    with pytest.raises(InputError, match=f"the image is {width} x {height} pixels; expected sides of at least 1 pixel"):
        check_aspect(height, width)


@pytest.mark.parametrize(
    "value", [[0.5, "a", 0.5], ["a", 0.5, 0.5], [0.5, 0.5], [0.5] * 4, "0.5", [0.5, math.inf, 0.5], [True] * 3, None]
)
def test_means_are_three_numbers(value: object) -> None:
    with pytest.raises(InputError, match=r"image_mean .*expected three finite numbers"):
        three("image_mean", value)
    assert three("image_mean", 0.5) == three("image_mean", [0.5] * 3) == (0.5, 0.5, 0.5)
    assert three("image_mean", (1, 2, 3)) == (1, 2, 3)
