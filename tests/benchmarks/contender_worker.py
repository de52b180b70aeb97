"""One contender of `contenders.py`, in a process and, for peers, in an environment of its own.

PYTHON contender_worker.py NAME PATH... < JOB > RESULT

A job is JSON: `threads`, `repeats`, `steps` of decoding, `context`, and either the `size` of a picture that is asked
about or a number of `words` that are to be read. Each repeat has a picture or words of its own, so that no cache of
prefixes answers; the first one warms up and does not count. Nothing of lensmith is imported for a peer.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MEMORY = Path(__file__).parents[2] / "runtimes" / "process" / "memory.py"  # a peer's Python has nothing of lensmith
QUESTION = "Describe this picture in detail."
WORDS = "the old house stood near a river and many people came by with their green boats every day to fish"

# What was asked -> seconds to the first token, tokens a second behind it, tokens of the prompt.
Ask = Callable[[str, Image.Image | None], tuple[float, float, int]]


def picture(width: int, height: int, number: int = 0) -> Image.Image:
    """A smooth picture of any size, the same on every machine; another one for each number."""
    seeds = np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(seeds).resize((width, height), Image.Resampling.BICUBIC)


def prose(words: int, number: int) -> str:
    """Common words without an order, others from the first on for each number."""
    return " ".join(np.random.default_rng(number).choice(WORDS.split(), words))


def lensmith(job: dict[str, Any], bundle: str) -> Ask:
    from lensmith.runtimes import GenerationOptions, load

    model: Any = load(bundle, threads=job["threads"], context=job["context"])
    options = GenerationOptions(max_new_tokens=job["steps"] + 1, ignore_eos=True, draft=False)

    def ask(prompt: str, image: Image.Image | None) -> tuple[float, float, int]:
        model.forget()
        answer = model.ask(prompt, [image] if image else [], options)
        answer.read()
        timings = answer.timings
        return timings.first_token_ms / 1000, timings.tokens_per_s, timings.prompt_tokens

    return ask


def peer(job: dict[str, Any], *paths: str, program: str) -> Ask:
    """One of PROGRAMS, which `lensmith compare` runs, too."""
    opened = PROGRAMS[program](list(paths), job["threads"], job["context"])

    def ask(prompt: str, image: Image.Image | None) -> tuple[float, float, int]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "picture.png"
            if image:
                image.save(file)
            first_ms, decode_ms, tokens = opened.timed(prompt, [str(file)] if image else [], job["steps"])
        return first_ms / 1000, 1000 * job["steps"] / decode_ms, tokens

    return ask


def programs() -> dict[str, Any]:
    """PROGRAMS, from its file: a peer's Python has nothing of lensmith."""
    file = Path(__file__).parents[2] / "exporters" / "comparing" / "other_program.py"
    spec = importlib.util.spec_from_file_location("other_program", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.PROGRAMS)


PROGRAMS = programs()
# What opens a contender, and the package whose version its figures are of.
CONTENDERS: dict[str, tuple[Callable[..., Ask], str]] = {
    "lensmith": (lensmith, "lensmith"),
    "openvino": (partial(peer, program="openvino-genai"), "openvino-genai"),
    "llamacpp": (partial(peer, program="llama.cpp"), "llama-cpp-python"),
    "genai": (partial(peer, program="onnxruntime-genai"), "onnxruntime-genai"),
}


def measured(job: dict[str, Any], ask: Ask) -> list[tuple[float, float, int]]:
    """What each repeat took, without the first."""
    found = []
    for number in range(job["repeats"] + 1):
        if "size" in job:
            width, height = job["size"]
            found.append(ask(QUESTION, picture(width, height, number)))
        else:
            found.append(ask(prose(job["words"], number), None))
    return found[1:]


def main() -> None:
    """Reads the job, prints its figures as one line of JSON."""
    name, *paths = sys.argv[1:]
    job = json.load(sys.stdin)
    opener, package = CONTENDERS[name]
    started = time.perf_counter()
    ask = opener(job, *paths)
    loaded = time.perf_counter() - started
    firsts, speeds, prompts = zip(*measured(job, ask), strict=True)
    peak = runpy.run_path(str(MEMORY))["peak_memory_bytes"]() / 1e9
    figures = {"load s": [loaded], "peak GB": [peak], "first token s": firsts, "decode tokens/s": speeds}
    version = importlib.metadata.version(package)
    print(json.dumps({"figures": figures, "prompt_tokens": prompts[-1], "version": f"{package} {version}"}))


if __name__ == "__main__":
    main()
