"""Commands that ran, also as on a device: packages of the extras cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from lensmith.runtimes import Encoder, Model

EXTRAS = ("torch", "torchvision", "transformers", "onnx", "onnx_ir", "onnxscript", "safetensors",
          "ml_dtypes", "gguf", "yaml", "llama_cpp", "matplotlib", "psutil", "pyarrow", "av", "cryptography",
          "fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client", "httpx", "openai", "anthropic",
          "llguidance", "ray")  # fmt: skip
BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""
MAIN = "from lensmith.cli import main; main(sys.argv[1:])"


@dataclass(frozen=True)
class Ran:
    """A finished command."""

    code: int
    out: str
    err: str


def run_without(
    names: tuple[str, ...], code: str, *arguments: object, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter that cannot import `names`; `settings` go to its environment."""
    command = [sys.executable, "-c", BLOCK.format(names=set(names) or "()") + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **settings})


def load(path: str | Path, **options: Any) -> Model:
    """A bundle that answers, loaded."""
    from lensmith import runtimes

    loaded = runtimes.load(path, **options)
    assert isinstance(loaded, runtimes.Model)
    return loaded


def load_encoder(path: str | Path, **options: Any) -> Encoder:
    """A bundle without a decoder, loaded."""
    from lensmith import runtimes

    loaded = runtimes.load(path, **options)
    assert isinstance(loaded, runtimes.Encoder)
    return loaded


def inside(engine: Any) -> Any:
    """A vision encoder or a decoder, to look into how its engine does it."""
    return engine


def latest(model: Model) -> Any:
    """The Conversation that was used last, to look into it or to go on with it."""
    with model.conversation() as conversation:
        return conversation
