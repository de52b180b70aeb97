"""Another program as an entrant, run by the Python that has it: `PYTHON other_program.py JOB.json`.

Nothing of lensmith is imported here, since that Python may not have it; one of its files is run that imports as little.
A job is that of `contender.py`, the result has the same form; the time to the first token is not split, as these
programs do not tell.
"""

from __future__ import annotations

import base64
import importlib.metadata
import json
import os
import runpy
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MEMORY = Path(__file__).parents[2] / "runtimes" / "process" / "memory.py"
CONTEXT = 8192  # tokens
MOST_ANSWER = 64  # tokens, where a job does not say
SPENT = "image_ms", "vision_ms", "image_tokens"  # what these programs do not tell


class LlamaCpp:
    """llama.cpp through llama-cpp-python: the decoder's GGUF file and that of its vision encoder."""

    package = "llama-cpp-python"

    def __init__(self, files: list[str], threads: int) -> None:
        from llama_cpp import Llama
        from llama_cpp.llama_chat_format import MTMDChatHandler

        model, mmproj = files
        handler = MTMDChatHandler(clip_model_path=mmproj, verbose=False, use_gpu=False)
        self.model: Any = Llama(model, chat_handler=handler, n_ctx=CONTEXT, n_threads=threads, n_threads_batch=threads,
                           n_gpu_layers=0, verbose=False)  # fmt: skip

    def answer(self, prompt: str, images: list[str], tokens: int) -> tuple[str, int]:
        """The greedy answer, and the tokens of the prompt."""
        links = [{"type": "image_url", "image_url": {"url": _link(image)}} for image in images]
        content: Any = [*links, {"type": "text", "text": prompt}]
        messages: Any = [{"role": "user", "content": content}]
        self.model.reset()
        made: Any = self.model.create_chat_completion(messages, max_tokens=tokens, temperature=0)
        return made["choices"][0]["message"]["content"] or "", made["usage"]["prompt_tokens"]

    def timed(self, prompt: str, images: list[str], steps: int) -> tuple[float, float, int]:
        """Milliseconds to the first token and of the steps behind it, and the tokens of the prompt."""
        started = time.perf_counter()
        _, tokens = self.answer(prompt, images, 1)
        first = time.perf_counter()
        for token in range(steps):  # single steps behind what the context holds, whatever they say
            self.model.eval([token])
        return 1000 * (first - started), 1000 * (time.perf_counter() - first), tokens


class OpenVino:
    """OpenVINO GenAI: the folder of a converted model."""

    package = "openvino-genai"

    def __init__(self, files: list[str], threads: int) -> None:
        import openvino_genai

        self.genai = openvino_genai
        self.pipeline = openvino_genai.VLMPipeline(files[0], "CPU", INFERENCE_NUM_THREADS=threads)
        self.runs = 0

    def _run(self, prompt: str, images: list[str], mark: int = 0, **settings: Any) -> Any:
        """Asks about the images; a mark of 1 to 255 changes the first pixel of each."""
        import numpy
        from openvino import Tensor
        from PIL import Image

        pixels = [numpy.array(Image.open(image).convert("RGB")) for image in images]
        for picture in pixels:
            picture[0, 0, 0] ^= mark
        tensors = [Tensor(picture[None]) for picture in pixels]
        config = self.genai.GenerationConfig(do_sample=False, **settings)
        return self.pipeline.generate(prompt, images=tensors, generation_config=config)

    def answer(self, prompt: str, images: list[str], tokens: int) -> tuple[str, int]:
        """The greedy answer, and the tokens of the prompt."""
        made = self._run(prompt, images, max_new_tokens=tokens)
        return str(made.texts[0]), made.perf_metrics.get_num_input_tokens()

    def timed(self, prompt: str, images: list[str], steps: int) -> tuple[float, float, int]:
        """As of llama.cpp; each run has a picture of its own, since known ones come from a cache of prefixes."""
        self.runs += 1
        found = self._run(prompt, images, self.runs % 256, max_new_tokens=steps + 1, ignore_eos=True).perf_metrics
        return found.get_ttft().mean, found.get_tpot().mean * steps, found.get_num_input_tokens()


PROGRAMS: Mapping[str, Callable[[list[str], int], Any]] = {"llama.cpp": LlamaCpp, "openvino-genai": OpenVino}


def _link(image: str) -> str:
    return "data:image;base64," + base64.b64encode(Path(image).read_bytes()).decode()


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Speed first, then the answers; the first run is for warming up."""
    if job["pinned"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job["threads"]])
    started = time.perf_counter()
    program = PROGRAMS[job["program"]](job["files"], job["threads"])
    load_ms = 1000 * (time.perf_counter() - started)
    images = [job["image"]] if job["image"] else []
    runs = [program.timed(job["prompt"], images, job["decode_steps"]) for _ in range(job["repeats"] + 1)]
    return {
        "engine": f"{job['program']}, {program.package} {importlib.metadata.version(program.package)}",
        "load_ms": load_ms,
        "timings": [_timing(run, job["decode_steps"]) for run in runs[1:]],
        "peak_memory_bytes": runpy.run_path(str(MEMORY))["peak_memory_bytes"](),
        "answers": [_answer(program, case) for case in job["cases"]] if job["answers"] else [],
    }


def _timing(run: tuple[float, float, int], steps: int) -> dict[str, float]:
    first_ms, decode_ms, prompt_tokens = run
    spent = dict.fromkeys(SPENT, 0)
    return {
        **spent,
        "prefill_ms": first_ms,
        "decode_ms": decode_ms,
        "new_tokens": steps + 1,
        "prompt_tokens": prompt_tokens,
    }


def _answer(program: Any, case: Mapping[str, Any]) -> str:
    text: str = program.answer(case["prompt"], list(case["images"]), case["new_tokens"] or MOST_ANSWER)[0]
    return text


def main() -> None:
    """Runs a job file; what goes wrong is the result's error."""
    sys.path.pop(0)  # lensmith's own folder
    path = Path(sys.argv[1])
    try:
        result = measure(json.loads(path.read_text(encoding="utf-8")))
    except Exception as error:  # of another program, whatever it is
        result = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    path.with_name("result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
