"""Runs a wheel for Windows under Wine, without a Python: its kernels, and with them ONNX Runtime and a bundle.

    python -m tests.wheels.windows WHEEL BUNDLE PICTURE [QUESTION]

Needs Debian's wine64, ziglang, nlohmann-json, the headers of ONNX Runtime in ONNXRUNTIME_INCLUDE and an index with its
wheel for Windows. Compiles examples/cpp for Windows, which answers in turn without the kernels and with them, and
compares its tokens with those of the runtime here.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from lensmith.runtimes import Model, load
from PIL import Image

from build_wheels import PLATFORMS
from tests.paths import ROOT

INCLUDE = os.environ.get("ONNXRUNTIME_INCLUDE", "/usr/include/onnxruntime")
WINE = "/usr/lib/wine/wine64"
KERNELS = "lensmith/runtimes/engines/kernels/kernels.dll"
EXPORTS = "LIBRARY onnxruntime.dll\nEXPORTS\nOrtGetApiBase\n"  # all that programs link to


def zig(*arguments: object) -> None:
    """Run zig, as a compiler for Windows or another of its tools."""
    subprocess.run([sys.executable, "-m", "ziglang", *map(str, arguments)], check=True)


def settings(folder: Path) -> dict[str, str]:
    """Wine's: its own drives and registry stay in a folder."""
    return {"WINEPREFIX": str(folder / "prefix"), "WINEDEBUG": "-all"}


def wine(folder: Path, *command: str, given: str = "") -> str:
    """What a program for Windows prints."""
    ran = subprocess.run([WINE, *command], cwd=folder, input=given, env={**os.environ, **settings(folder)},
                         stdout=subprocess.PIPE, text=True, check=True)  # fmt: skip
    return ran.stdout


def prepare(folder: Path, wheel: Path) -> None:
    """The program, the kernels of a wheel and ONNX Runtime in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kernels.dll").write_bytes(zipfile.ZipFile(wheel).read(KERNELS))
    fetched = f"onnxruntime=={version('onnxruntime')}"
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", fetched,
                    "--platform=win_amd64", "--python-version=3.12", f"--dest={folder}"], check=True)  # fmt: skip
    library = zipfile.ZipFile(next(folder.glob("onnxruntime-*.whl")))
    (folder / "onnxruntime.dll").write_bytes(library.read("onnxruntime/capi/onnxruntime.dll"))
    (folder / "onnxruntime.def").write_text(EXPORTS)
    zig("dlltool", "-m", "i386:x86-64", "-d", folder / "onnxruntime.def", "-l", folder / "libonnxruntime.a")
    json = importlib.util.find_spec("nlohmann_json")
    assert json is not None, "pip install nlohmann-json"
    headers = Path(next(iter(json.submodule_search_locations or ()))) / "include"
    zig("c++", "-target", PLATFORMS["win_amd64"], "-std=c++17", "-O2", "-isystem", INCLUDE, "-isystem", headers,
        ROOT / "examples/cpp/answer.cpp", "-L", folder, "-lonnxruntime", "-o", folder / "answer.exe")  # fmt: skip


def answers(folder: Path, bundle: Path, picture: Path, question: str) -> dict[str, list[int]]:
    """The tokens of one answer: of the runtime here, and of the program with and without kernels."""
    model = load(bundle)
    assert isinstance(model, Model), "expected a bundle with a decoder"
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt = model.prompts.tokenizer.encode(model.prompts.render([{"role": "user", "content": content}])).ids
    here = model.ask(question, [picture], max_new_tokens=64)
    here.read()
    Image.open(picture).convert("RGB").save(folder / "picture.ppm")
    command = ("answer.exe", "Z:" + str(bundle.resolve()).replace("/", "\\"), "picture.ppm")
    given = " ".join(map(str, prompt))
    return {
        "the runtime here": list(here.ids),
        "Windows, ONNX Runtime's kernels": [*map(int, wine(folder, *command, given=given).split())],
        "Windows, the wheel's kernels": [*map(int, wine(folder, *command, "kernels.dll", given=given).split())],
    }


def main(arguments: Sequence[str]) -> int:
    """Print the answers; 1 where they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("question", nargs="?", default="List the shapes.")
    given = parser.parse_args(arguments)
    folder = ROOT / "build" / "windows"
    prepare(folder, given.wheel)
    found = answers(folder, given.bundle, given.picture, given.question)
    for name, ids in found.items():
        print(f"{name:<32} {ids}")
    return 0 if len({tuple(ids) for ids in found.values()}) == 1 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
