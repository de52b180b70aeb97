"""What llama.cpp's own converter makes of a checkpoint, fresh where its sources are there, and as stored otherwise.

`python -m tests.helpers.gguf_stock FOLDER` writes the stored data anew; FOLDER is llama.cpp's source, such as
`vendor/llama.cpp` in the source distribution of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
from lensmith.exporters.checkpoint.folder import open_checkpoint
from lensmith.exporters.synth.making import synth
from safetensors.numpy import save_file

from tests.paths import DATA

STORED = DATA / "gguf_stock.json"
SOURCES = os.environ.get("LENSMITH_LLAMA_CPP")  # the folder of convert_hf_to_gguf.py
CASES = {  # by name: architecture to synthesize, how its tokenizer splits text, further arguments
    "qwen3-vl-2b": ("qwen3-vl-2b", "qwen2", ()),
    "tarn-2b": ("tarn-2b", "qwen35", ()),
    "tarn-2b-no-mtp": ("tarn-2b", "qwen35", ("--no-mtp",)),
    "nemotron-4b": ("nemotron-4b", "qwen35", ()),  # more value heads than key heads
    "vqwen3-4b": ("vqwen3-4b", "qwen2", ()),
    "qwen2.5-vl-3b": ("qwen2.5-vl-3b", "qwen2", ()),
    "smolvlm2-500m": ("smolvlm2-500m", "smollm", ()),
}
FILES = {"model.gguf": (), "mmproj.gguf": ("--mmproj",)}
LANGUAGE_ALONE = ("vqwen3-4b",)  # the converter refuses the rest of a LLaVA of CLIP and Qwen3
# The converter knows tokenizers by the hash of what they make of one text, which no small vocabulary can match.
# It asks for sentencepiece before it finds that there is no tokenizer for it.
CONVERT = """
import os, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
import convert_hf_to_gguf
from conversion.base import TextModel
name = sys.argv[2]
TextModel.get_vocab_base_pre = lambda self, tokenizer: name
TextModel._set_vocab_sentencepiece = lambda self: (self.dir_model / "tokenizer.model").open()
sys.argv[1:] = sys.argv[3:]
convert_hf_to_gguf.main()
"""


def checkpoint(case: str, folder: Path) -> Path:
    """The checkpoint of a case, of random weights that are always the same."""
    name, _, arguments = CASES[case]
    path = synth(name, folder / case, tiny=True)
    if "--no-mtp" in arguments:
        kept = {k: t.raw() for k, t in open_checkpoint(path).tensors.items() if not k.startswith("mtp.")}
        save_file(kept, path / "model.safetensors")
    return path


def language_model(path: Path, folder: Path) -> Path:
    """The decoder of a LLaVA as a checkpoint of its own, which the converter takes; its name stays."""
    out = Path(shutil.copytree(path, folder / "language" / path.name, ignore=shutil.ignore_patterns("*.safetensors*")))
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    text = {**config["text_config"], "architectures": ["Qwen3ForCausalLM"]}
    (out / "config.json").write_text(json.dumps(text), encoding="utf-8")
    tensors = open_checkpoint(path).tensors.items()
    prefix = "language_model."
    save_file({k.removeprefix(prefix): t.raw() for k, t in tensors if k.startswith(prefix)}, out / "model.safetensors")
    return out


def convert(sources: str, path: Path, out: Path, split: str, outtype: str, *arguments: str) -> None:
    """Run llama.cpp's converter."""
    command = [sys.executable, "-c", CONVERT, sources, split, str(path), "--outfile", str(out), "--outtype", outtype]
    subprocess.run([*command, *arguments], check=True, capture_output=True, env={**os.environ, "PYTHONPATH": ""})


def describe(path: Path) -> dict[str, dict[str, str]]:
    """One line for each piece of metadata, and of each tensor its type, shape and SHA-256."""
    reader = gguf.GGUFReader(path)
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    tensors = {t.name: f"{t.tensor_type.name} {t.shape.tolist()} {_content(t)}" for t in reader.tensors}
    return {"metadata": {key: _line(field) for key, field in sorted(fields.items())},
            "tensors": dict(sorted(tensors.items()))}  # fmt: skip


def _content(tensor: Any) -> str:
    """The SHA-256; the values of a decay, which are few and results of exp()."""
    if tensor.name.endswith("ssm_a"):
        return " ".join(str(value) for value in tensor.data)
    return hashlib.sha256(tensor.data.tobytes()).hexdigest()


def _line(field: Any) -> str:
    """Types and value; a long value as its SHA-256."""
    text = json.dumps(field.contents(), ensure_ascii=False)
    short = text if len(text) < 80 else hashlib.sha256(text.encode()).hexdigest()
    return f"{' '.join(kind.name for kind in field.types)} {short}"


def fresh(sources: str, case: str, folder: Path) -> dict[str, Any]:
    """What the converter makes of a case."""
    path, (_, split, arguments) = checkpoint(case, folder), CASES[case]
    found, files = {}, FILES
    if case in LANGUAGE_ALONE:
        path, files = language_model(path, folder), {"model.gguf": ()}
    for name, more in files.items():
        convert(sources, path, folder / f"{case}-{name}", split, "f32", *more, *(() if more else arguments))
        found[name] = describe(folder / f"{case}-{name}")
    return found


def stored() -> dict[str, Any]:
    """What the converter of llama-cpp-python 0.3.36 made of all cases."""
    return dict(json.loads(STORED.read_text(encoding="utf-8")))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        everything = {name: fresh(sys.argv[1], name, Path(work)) for name in CASES}
    STORED.write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
