"""One contender of `contenders.py`, in a process and, for peers, in an environment of its own.

PYTHON contender_worker.py NAME PATH... < JOB > RESULT

A job is JSON: `threads`, `repeats`, `steps` of decoding, `context`, and either the `size` of a picture that is asked
about or a number of `words` that are to be read. Each repeat has a picture or words of its own, so that no cache of
prefixes answers; the first one warms up and does not count. Nothing of lensmith is imported for a peer.
"""

from __future__ import annotations

import base64
import importlib.metadata
import io
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

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


def openvino(job: dict[str, Any], folder: str) -> Ask:
    import openvino_genai as genai
    from openvino import Tensor

    pipeline = genai.VLMPipeline(folder, "CPU", INFERENCE_NUM_THREADS=job["threads"])
    settings = genai.GenerationConfig(max_new_tokens=job["steps"] + 1, ignore_eos=True, do_sample=False)

    def ask(prompt: str, image: Image.Image | None) -> tuple[float, float, int]:
        images = [Tensor(np.asarray(image)[None])] if image else []
        found = pipeline.generate(prompt, images=images, generation_config=settings).perf_metrics
        if found.get_num_generated_tokens() != job["steps"] + 1:
            raise SystemExit(f"OpenVINO made {found.get_num_generated_tokens()} tokens")
        return found.get_ttft().mean / 1000, 1000 / found.get_tpot().mean, found.get_num_input_tokens()

    return ask


def llamacpp(job: dict[str, Any], model: str, mmproj: str) -> Ask:
    from llama_cpp import Llama
    from llama_cpp.llama_chat_format import MTMDChatHandler

    handler = MTMDChatHandler(clip_model_path=mmproj, verbose=False, use_gpu=False)
    llama = Llama(model, chat_handler=handler, n_ctx=job["context"], n_batch=512, n_threads=job["threads"],
                  n_threads_batch=job["threads"], n_gpu_layers=0, verbose=False)  # fmt: skip

    def ask(prompt: str, image: Image.Image | None) -> tuple[float, float, int]:
        content: Any = [{"type": "text", "text": prompt}]
        if image:
            content.insert(0, {"type": "image_url", "image_url": {"url": data_link(image)}})
        started = time.perf_counter()
        messages: Any = [{"role": "user", "content": content}]
        made: Any = llama.create_chat_completion(messages, max_tokens=1, temperature=0)
        first = time.perf_counter() - started
        started = time.perf_counter()
        for token in range(100, 100 + job["steps"]):  # single steps behind what the context holds
            llama.eval([token])
        return first, job["steps"] / (time.perf_counter() - started), made["usage"]["prompt_tokens"]

    return ask


def data_link(image: Image.Image) -> str:
    """The picture as PNG in a link, which is what llama.cpp's handler takes."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# The function that opens a contender, and the package whose version its figures are of.
CONTENDERS: dict[str, tuple[Callable[..., Ask], str]] = {
    "lensmith": (lensmith, "lensmith"),
    "openvino": (openvino, "openvino-genai"),
    "llamacpp": (llamacpp, "llama-cpp-python"),
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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    figures = {"load s": [loaded], "peak GB": [peak], "first token s": firsts, "decode tokens/s": speeds}
    version = importlib.metadata.version(package)
    print(json.dumps({"figures": figures, "prompt_tokens": prompts[-1], "version": f"{package} {version}"}))


if __name__ == "__main__":
    main()
