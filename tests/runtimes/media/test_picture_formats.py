"""Pictures in every format that Pillow writes and reads give Hugging Face's pixels; others say what reads them."""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.runtimes.media import picture_formats
from lensmith.runtimes.media.image_files import ImageLimits, open_image
from lensmith.targets.errors import InputError
from PIL import Image

from tests.helpers import hf
from tests.runtimes.media.test_images import MODES, noise

Image.init()
UNREADABLE = {"PDF", "PALM"}  # Pillow writes these only
FORMATS = sorted(name for name in Image.SAVE if name not in UNREADABLE | picture_formats.LEFT_OUT)
ICON = 64  # ICNS and ICO hold squares of these sides


def written(form: str, mode: str) -> bytes | None:
    """A picture as a file; None where the format does not hold that mode."""
    size = (ICON, ICON) if form in ("ICNS", "ICO") else (96, 66)
    buffer = io.BytesIO()
    try:
        MODES[mode](noise(*size, 4)).save(buffer, form)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return buffer.getvalue()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_every_format_gives_the_pixels_of_hugging_face(form: str, tmp_path: Path) -> None:
    utilities = hf.import_transformers().image_utils
    from transformers.image_transforms import convert_to_rgb

    tried = 0
    for mode in MODES:
        if (data := written(form, mode)) is None:
            continue
        path = tmp_path / "picture"
        path.write_bytes(data)
        try:
            expected = np.asarray(convert_to_rgb(utilities.load_image(str(path))))
        except OSError:
            continue  # Pillow 11.0 cannot read a TIFF that it wrote
        for source in (path, data):
            np.testing.assert_array_equal(np.asarray(open_image(source)), expected, f"{form} {mode}")
        tried += 1
    assert tried


def box(brand: bytes) -> bytes:
    return b"\0\0\0\x18ftyp" + brand + bytes(500)


@pytest.mark.parametrize(("data", "package"), [
    (box(b"heic"), "pip install pillow-heif"), (box(b"mif1"), "pip install pillow-heif"),
    (box(b"hevx"), "pip install pillow-heif"), (b"\xff\x0a" + bytes(200), "pip install pillow-jxl-plugin"),
    (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(200), "pip install pillow-jxl-plugin"),
])  # fmt: skip
def test_formats_of_further_packages_are_named(data: bytes, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, _ in picture_formats.PACKAGES.values():
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=package):
        open_image(data)


def test_an_installed_package_reads_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package registers a plugin with Pillow; here one that takes the rest of the file for a PNG."""
    png = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(png, "PNG")
    package = types.ModuleType("pillow_heif")

    def register() -> None:
        monkeypatch.setitem(Image.OPEN, "HEIF", (lambda file, _: Image.open(io.BytesIO(file.read()[24:])),
                                                 lambda begin: begin[4:12] == b"ftypheic"))  # fmt: skip
        monkeypatch.setattr(Image, "ID", [*Image.ID, "HEIF"])

    package.register_heif_opener = register  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    opened = open_image(box(b"heic")[:24] + png.getvalue())
    assert opened.getpixel((3, 3)) == (1, 2, 3)


def test_no_format_starts_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("started"))
    eps = io.BytesIO()
    Image.new("RGB", (8, 8)).save(eps, "EPS")
    with pytest.raises(InputError, match="known format"):
        open_image(eps.getvalue())


def test_the_limit_is_that_of_transformers_and_adjustable() -> None:
    """178,956,970 pixels are taken and one row more is not, by the header alone; a higher limit is obeyed."""
    assert ImageLimits().max_decoded_pixels == 2 * (Image.MAX_IMAGE_PIXELS or 0)
    for width, height, limits, words in (
        (10, 17_895_698, None, "more than the limit of 178956970"),
        (13_378, 13_377, None, "raise the limit: --max-image-megapixels 179"),
        (20_000, 20_000, ImageLimits(max_decoded_pixels=400_000_000), "readable"),
        (20_000, 20_001, ImageLimits(max_decoded_pixels=400_000_000), "more than the limit of 400000000"),
        (13_377, 13_377, None, "readable"),
    ):
        with pytest.raises(InputError, match=words):
            open_image(b"P6 %d %d 255\n" % (width, height), limits)  # without pixels, so that decoding fails


@pytest.mark.parametrize("pixels", [500, 5000])
def test_pictures_within_containers_keep_to_the_limit(pixels: int, tmp_path: Path) -> None:
    """An icon learns the size of its largest picture when that is decoded."""
    icon = io.BytesIO()
    Image.new("RGB", (64, 64), (9, 9, 9)).save(icon, "ICO", sizes=[(64, 64)])
    limits = ImageLimits(max_decoded_pixels=pixels)
    if pixels < 64 * 64:
        with pytest.raises(InputError, match="more than the limit of 500"):
            open_image(icon.getvalue(), limits)
    else:
        assert open_image(icon.getvalue(), limits).size == (64, 64)


@pytest.mark.parametrize("megapixels", ["0.001", "0", "nan", "inf"])
def test_limit_on_the_command_line(cli: Callable[..., Any], tiny_bundle: Path, tmp_path: Path, megapixels: str) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    asked = ("run", tiny_bundle, "Hi", "--image", tmp_path / "a.png", "--max-new-tokens", 1, "--max-image-megapixels")
    ran = cli(*asked, megapixels)
    assert ran.code == 2
    assert ("more than the limit of 1000" if megapixels == "0.001" else "--max-image-megapixels") in ran.err
    assert cli(*asked, "0.0041").code == 0


def test_formats_with_a_mark_are_tried_first_and_those_that_take_anything_last() -> None:
    Image.init()
    order = [*picture_formats._ordered()]
    ranks = [(name not in picture_formats.MARKED, Image.OPEN[name][1] is None) for name in order]
    assert ranks == sorted(ranks)
    assert len(set(ranks)) >= 2
    assert not picture_formats.LEFT_OUT & {*order}
