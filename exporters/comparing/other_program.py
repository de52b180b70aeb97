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
LIFELINE = MEMORY.with_name("lifeline.py")
CONTEXT = 8192  # tokens
MOST_ANSWER = 64  # tokens, where a job does not say
SPENT = "image_ms", "vision_ms", "image_tokens"  # what these programs do not tell


class LlamaCpp:
    """llama.cpp through llama-cpp-python: the decoder's GGUF file and that of its vision encoder."""

    package = "llama-cpp-python"

    def __init__(self, files: list[str], threads: int, context: int = CONTEXT) -> None:
        from llama_cpp import Llama
        from llama_cpp.llama_chat_format import MTMDChatHandler

        model, mmproj = files
        handler = MTMDChatHandler(clip_model_path=mmproj, verbose=False, use_gpu=False)
        self.model: Any = Llama(model, chat_handler=handler, n_ctx=context, n_threads=threads, n_threads_batch=threads,
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

    def __init__(self, files: list[str], threads: int, context: int = CONTEXT) -> None:
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
        if found.get_num_generated_tokens() != steps + 1:
            raise ValueError(f"it made {found.get_num_generated_tokens()} tokens, not {steps + 1}")
        return found.get_ttft().mean, found.get_tpot().mean * steps, found.get_num_input_tokens()


class OnnxRuntimeGenAi:
    """onnxruntime-genai: the folder that its builder made of a decoder, which takes text alone."""

    package = "onnxruntime-genai"

    def __init__(self, files: list[str], threads: int, context: int = CONTEXT) -> None:
        import onnxruntime_genai

        self.genai, self.context = onnxruntime_genai, context
        config = onnxruntime_genai.Config(files[0])
        decoder = {"session_options": {"intra_op_num_threads": threads, "inter_op_num_threads": 1}}
        config.overlay(json.dumps({"model": {"decoder": decoder}}))
        self.model = onnxruntime_genai.Model(config)
        self.tokenizer: Any = onnxruntime_genai.Tokenizer(self.model)

    def _begin(self, prompt: str, images: list[str], **lengths: int) -> tuple[Any, Any]:
        """The ids of a prompt, and what makes its answer of the given lengths."""
        if images:
            raise ValueError("it takes no images: its builder makes the decoder of this model alone")
        messages = json.dumps([{"role": "user", "content": prompt}])
        ids = self.tokenizer.encode(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True))
        options = self.genai.GeneratorParams(self.model)
        longest = {name: min(len(ids) + length, self.context) for name, length in lengths.items()}
        options.set_search_options(do_sample=False, **longest)
        return ids, self.genai.Generator(self.model, options)

    def answer(self, prompt: str, images: list[str], tokens: int) -> tuple[str, int]:
        """The greedy answer, and the tokens of the prompt."""
        ids, generator = self._begin(prompt, images, max_length=tokens)
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
        return str(self.tokenizer.decode(generator.get_sequence(0)[len(ids) :])), len(ids)

    def timed(self, prompt: str, images: list[str], steps: int) -> tuple[float, float, int]:
        """As of llama.cpp; nothing is kept from one run to the next."""
        ids, generator = self._begin(prompt, images, max_length=steps + 1, min_length=steps + 1)
        started = time.perf_counter()
        generator.append_tokens(ids)
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(steps):
            generator.generate_next_token()
        return 1000 * (first - started), 1000 * (time.perf_counter() - first), len(ids)


PROGRAMS: Mapping[str, Callable[..., Any]] = {
    "llama.cpp": LlamaCpp, "openvino-genai": OpenVino, "onnxruntime-genai": OnnxRuntimeGenAi
}  # fmt: skip


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
        "in_parts": False,
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
    runpy.run_path(str(LIFELINE))["end_with_parent"]()
    path = Path(sys.argv[1])
    try:
        result = measure(json.loads(path.read_text(encoding="utf-8")))
    except Exception as error:  # of another program, whatever it is
        result = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    path.with_name("result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
