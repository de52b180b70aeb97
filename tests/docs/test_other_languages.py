"""The examples in C++ and JavaScript answer from bundles as the runtime does, and cut pictures to the same bits."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith import runtimes
from lensmith.runtimes.engines.native import LIBRARY, wanted_kernels
from lensmith.runtimes.media.crops import CropSpec, crop
from lensmith.runtimes.media.images import ImageSpec, preprocess
from PIL import Image

from tests.paths import ROOT, TINY

CPP, NODE = ROOT / "examples" / "cpp", ROOT / "examples" / "node"
INSTALLED = ROOT / "build" / "node"  # by `make setup`
# A bundle, a picture, the size that others gave it, and a question.
CASES = [
    ("qwen3_vl", "fp32", "0001", None, "What word is written?"),
    ("qwen3_vl", "int4", "0701", (147, 104), "List the shapes."),
    ("qwen3_5", "fp32", "0701", (90, 64), "List the shapes."),
    ("qwen3_5", "int4", "0001", None, "What word is written?"),
    ("llava", "int4", "0702", (235, 168), "List the shapes."),
    ("llava", "fp32", "0101", None, "Read all the words."),
]
IDS = [" ".join(map(str, case[:3])) for case in CASES]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    pytest.importorskip("onnx_ir", reason="needs lensmith[export]")
    from lensmith.exporters.pipeline import Options, export, prepare

    @cache
    def make(model: str, precision: str) -> Path:
        """Prompts go in pieces that cut an image in two."""
        out = tmp_path_factory.mktemp(model) / precision
        path = export(prepare(TINY / model, Options(precision=precision)), out, golden="never").path
        manifest = json.loads((path / "lensmith.json").read_text(encoding="utf-8"))
        manifest["options"]["prefill_chunk"] = 11
        (path / "lensmith.json").write_text(json.dumps(manifest), encoding="utf-8")
        return path

    return make


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, tuple[int, int] | None], Path]:
    folder = tmp_path_factory.mktemp("pictures")

    def make(name: str, size: tuple[int, int] | None) -> Path:
        image = Image.open(TINY / "heldout" / "images" / f"{name}.png").convert("RGB")
        image = image if size is None else image.resize(size)
        for kind in ("png", "ppm"):
            image.save(folder / f"{name}-{size}.{kind}")
        return folder / f"{name}-{size}.png"

    return make


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where CMake built the example in C++."""
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    include = Path(os.environ.get("ONNXRUNTIME_INCLUDE", "/usr/include/onnxruntime"))
    if not (include / "onnxruntime_cxx_api.h").is_file():
        pytest.skip(f"needs headers of ONNX Runtime in {include} (ONNXRUNTIME_INCLUDE names another folder)")
    spec = importlib.util.find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    library = max((Path(spec.origin).parent / "capi").glob("libonnxruntime.so.*"), default=None)
    if library is None:
        pytest.skip("the onnxruntime that is installed has no library for C++")
    folder = tmp_path_factory.mktemp("cpp")
    places = {"ONNXRUNTIME_INCLUDE": include, "ONNXRUNTIME_LIBRARY": library,
              "JSON_INCLUDE": json_headers()}  # fmt: skip
    ran("cmake", "-S", str(CPP), "-B", str(folder), *(f"-D{name}={place}" for name, place in places.items()))
    ran("cmake", "--build", str(folder))
    return folder


def json_headers() -> Path:
    spec = importlib.util.find_spec("nlohmann_json")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs nlohmann-json, of lensmith[dev]")
    return Path(spec.submodule_search_locations[0]) / "include"


@pytest.fixture(scope="module")
def script() -> Path:
    """The example in JavaScript beside the packages that it needs."""
    if shutil.which("node") is None:
        pytest.skip("needs node")
    if not (INSTALLED / "node_modules").is_dir():
        pytest.skip("needs its packages from npm: make setup installs them")
    for file in NODE.iterdir():
        shutil.copy(file, INSTALLED)
    return INSTALLED / "answer.mjs"


def ran(*command: str, given: str = "") -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def loaded(bundle: Path) -> runtimes.Model:
    model = runtimes.load(bundle)
    assert isinstance(model, runtimes.Model)
    return model


def expected(bundle: Path, picture: Path, question: str) -> tuple[list[int], str]:
    """The runtime's own answer, of more than one token, so that states go on."""
    answer = loaded(bundle).ask(question, [picture], max_new_tokens=64)
    text = answer.read()
    assert len(answer.ids) > 1
    return list(answer.ids), text


def prompt_ids(bundle: Path, question: str) -> list[int]:
    """The rendered prompt's ids, with one image token."""
    model = loaded(bundle)
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = model.prompts.render([{"role": "user", "content": content}])
    ids: list[int] = model.prompts.tokenizer.encode(text).ids
    return ids


@pytest.mark.parametrize(("model", "precision", "name", "size", "question"), CASES, ids=IDS)
def test_cpp_answers_as_the_runtime_does(
    model: str, precision: str, name: str, size: tuple[int, int] | None, question: str,
    built: Path, bundles: Callable[[str, str], Path], pictures: Callable[[str, tuple[int, int] | None], Path],
) -> None:  # fmt: skip
    bundle, picture = bundles(model, precision), pictures(name, size)
    given = " ".join(map(str, prompt_ids(bundle, question)))
    libraries = [[], [str(LIBRARY)]] if wanted_kernels() else [[]]
    for library in libraries:
        out = ran(str(built / "answer"), str(bundle), str(picture.with_suffix(".ppm")), *library, given=given)
        assert list(map(int, out.split())) == expected(bundle, picture, question)[0]


@pytest.mark.parametrize(("model", "precision", "name", "size", "question"), CASES, ids=IDS)
def test_node_answers_as_the_runtime_does(
    model: str, precision: str, name: str, size: tuple[int, int] | None, question: str,
    script: Path, bundles: Callable[[str, str], Path], pictures: Callable[[str, tuple[int, int] | None], Path],
) -> None:  # fmt: skip
    bundle, picture = bundles(model, precision), pictures(name, size)
    answer = json.loads(ran("node", str(script), str(bundle), str(picture), question))
    assert (answer["ids"], answer["text"]) == expected(bundle, picture, question)


# Sizes that stay, shrink, grow and are rounded by halves, thin ones and single pixels.
SIZES = [(64, 64), (16, 16), (1, 1), (40, 24), (331, 250), (97, 211), (1000, 9), (700, 41), (333, 334)]
SPECS: dict[str, tuple[ImageSpec | CropSpec, dict[str, Any]]] = {
    "patches": (ImageSpec(patch_size=8, min_pixels=1024, max_pixels=65536),
                {"patch_size": 8, "temporal_patch_size": 2, "merge_size": 2, "rescale_factor": 1 / 255,
                 "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}),
    "patches of CLIP": (ImageSpec(14, 2, 2, 3136, 40_000, (0.48145466, 0.4578275, 0.40821073),
                                  (0.26862954, 0.26130258, 0.27577711)),
                        {"kind": "patches", "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
                         "rescale_factor": 1 / 255, "mean": [0.48145466, 0.4578275, 0.40821073],
                         "std": [0.26862954, 0.26130258, 0.27577711]}),
    **{f"crop {name}": (spec, spec.to_manifest()) for name, spec in {
        "as CLIP": CropSpec(112, None, (112, 112)), "larger": CropSpec(50, None, (61, 63)),
        "without a crop": CropSpec(None, (30, 40), None), "of what is there": CropSpec(None, None, (30, 20)),
        "bytes": CropSpec(None, (30, 40), None, mean=None, rescale_factor=None),
        "scaled": CropSpec(None, (30, 40), None, mean=None)}.items()},
}  # fmt: skip


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, random = tmp_path_factory.mktemp("samples"), np.random.default_rng(0)
    for width, height in SIZES:
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))
        image.save(folder / f"{width}x{height}.ppm")
        image.save(folder / f"{width}x{height}.png")
    return sorted(folder.glob("*.ppm"))


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of manifests, as far as pictures go."""
    listed = []
    for spec, section in SPECS.values():
        limits = {"min_pixels": spec.min_pixels, "max_pixels": spec.max_pixels} if isinstance(spec, ImageSpec) else {}
        listed.append({"image": section, "limits": limits})
    file = tmp_path_factory.mktemp("specs") / "manifests.json"
    file.write_text(json.dumps(listed), encoding="utf-8")
    return file


def check_values(samples: list[Path], out: str) -> None:
    """Values as hexadecimal bytes of float32, a line for each picture by each spec."""
    lines = iter(out.splitlines())
    for name, (spec, _) in SPECS.items():
        for sample in samples:
            image = Image.open(sample)
            values, _ = preprocess(image, spec) if isinstance(spec, ImageSpec) else crop(image, spec)
            found = np.frombuffer(bytes.fromhex(next(lines)), np.float32)
            np.testing.assert_array_equal(found, values.ravel(), err_msg=f"{name}: {sample.stem}")
    assert next(lines, None) is None


PRINT_CPP = """
#include <iostream>
#include "pixels.hpp"
int main(int, char** arguments) {
  for (const auto& manifest : nlohmann::json::parse(std::ifstream(arguments[1])))
    for (int i = 2; arguments[i]; ++i) {
      for (float value : pixels_of(read_ppm(arguments[i]), manifest).values)
        for (int byte = 0; byte < 4; ++byte) {
          const unsigned part = reinterpret_cast<const unsigned char*>(&value)[byte];
          std::cout << "0123456789abcdef"[part >> 4] << "0123456789abcdef"[part & 15];
        }
      std::cout << std::endl;
    }
}
"""
PRINT_JS = """
import { readFileSync } from "node:fs";
import { pixels, read } from "./pixels.mjs";
const [file, ...pictures] = process.argv.slice(2);
for (const manifest of JSON.parse(readFileSync(file, "utf8")))
  for (const picture of pictures) {
    const { values } = pixels(await read(picture), manifest);
    console.log(Buffer.from(values.buffer, values.byteOffset, values.byteLength).toString("hex"));
  }
"""


def test_cpp_cuts_pictures_to_the_bit(built: Path, samples: list[Path], manifests: Path, tmp_path: Path) -> None:
    (tmp_path / "print.cpp").write_text(PRINT_CPP, encoding="utf-8")
    include = [f"-I{CPP}", f"-I{json_headers()}"]
    ran("c++", "-std=c++17", *include, str(tmp_path / "print.cpp"), "-o", str(tmp_path / "print"))
    check_values(samples, ran(str(tmp_path / "print"), str(manifests), *map(str, samples)))


def test_node_cuts_pictures_to_the_bit(script: Path, samples: list[Path], manifests: Path) -> None:
    (script.parent / "print.mjs").write_text(PRINT_JS, encoding="utf-8")
    files = [str(sample.with_suffix(".png")) for sample in samples]
    check_values(samples, ran("node", str(script.parent / "print.mjs"), str(manifests), *files))
