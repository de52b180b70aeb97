"""Speed of a bundle for CUDA next to PyTorch on the same GPU, eager and compiled, each in a process of its own.

    python tests/benchmarks/gpu.py BUNDLE CHECKPOINT [--repeats 5] [--steps 128]

PyTorch runs in bfloat16; "compiled" is transformers' own generation with a static cache, whose decode steps
torch.compile records as CUDA graphs, and a compiled vision encoder. All get the same patches and token ids. Prints
medians: seconds from patches to the first token, and milliseconds of each further one; GPU memory at its peak.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

QUESTION = "Describe this picture in detail."


def picture(width: int, height: int) -> Image.Image:
    """A smooth picture of any size, the same on every machine."""
    seeds = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(seeds).resize((width, height), Image.Resampling.BICUBIC)


def lensmith(args: argparse.Namespace) -> dict[str, Any]:
    from lensmith.runtimes import GenerationOptions

    from tests.helpers.extras import inside, load

    started = time.perf_counter()
    model = load(args.bundle, context=args.context)
    loaded = time.perf_counter() - started
    image, options = picture(*args.size), GenerationOptions(max_new_tokens=args.steps + 1, ignore_eos=True)
    runs = []
    for _ in range(args.repeats + 2):
        model.forget()
        answer = model.ask(QUESTION, [image], options)
        answer.read()
        runs.append(answer.timings)
    runs = runs[2:]  # the first ones load kernels and record graphs
    return {
        "load_s": loaded,
        "vision_s": [t.vision_ms / 1000 for t in runs],
        "prefill_s": [t.prefill_ms / 1000 for t in runs],
        "first_token_s": [(t.vision_ms + t.prefill_ms) / 1000 for t in runs],
        "step_ms": [t.decode_ms / args.steps for t in runs],
        "prompt_tokens": runs[0].prompt_tokens,
        "recorded": bool(getattr(inside(model.decoder).executor, "recorded", False)),
        "gpu_bytes": _gpu_bytes(),
    }


def _gpu_bytes() -> int:
    """What this process holds of the first GPU."""
    found = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
                           capture_output=True, text=True)  # fmt: skip
    return int(found.stdout.split()[0]) * 2**20 if found.stdout.strip() else 0


def _torch_inputs(args: argparse.Namespace, torch: Any, model: Any) -> dict[str, Any]:
    """Token ids and patches as the bundle makes them."""
    from lensmith.runtimes.bundle.opening import open_bundle
    from lensmith.runtimes.media.pixels import image_spec, preprocess
    from lensmith.runtimes.prompt.manifest_specs import prompt_spec
    from lensmith.runtimes.prompt.prompt_builder import open_prompt
    from lensmith.runtimes.prompt.requests import user_message

    bundle = open_bundle(args.bundle)
    image = picture(*args.size)
    patches, grid = preprocess(image, image_spec(bundle.manifest))
    prompts = open_prompt(bundle.path, prompt_spec(bundle.manifest))
    ids = torch.from_numpy(prompts.build([user_message(QUESTION, [image])], [grid], []).ids)[None].cuda()
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.from_numpy(patches).cuda().to(torch.bfloat16),
        "image_grid_thw": torch.tensor([grid]).cuda(),
        "mm_token_type_ids": (ids == model.config.image_token_id).int(),
    }


def _pytorch(args: argparse.Namespace, **generation: Any) -> dict[str, Any]:
    import torch
    import transformers

    model: Any = transformers.AutoModelForImageTextToText.from_pretrained(
        args.checkpoint, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    model = model.cuda().eval()
    if generation:
        model.model.visual = torch.compile(model.model.visual)
    inputs, firsts, steps = _torch_inputs(args, torch, model), [], []
    for _ in range(args.repeats + 2):
        times: list[float] = []

        def clock(ids: Any, scores: Any, times: list[float] = times, **_: Any) -> Any:
            torch.cuda.synchronize()
            times.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.inference_mode():
            model.generate(**inputs, do_sample=False, max_new_tokens=args.steps + 1, min_new_tokens=args.steps + 1,
                           stopping_criteria=transformers.StoppingCriteriaList([clock]), **generation)  # fmt: skip
        firsts.append(times[0] - started)
        steps.append(1000 * (times[-1] - times[0]) / (len(times) - 1))
    return {"first_token_s": firsts[2:], "step_ms": steps[2:], "gpu_bytes": torch.cuda.max_memory_reserved()}


def eager(args: argparse.Namespace) -> dict[str, Any]:
    return _pytorch(args)


def compiled(args: argparse.Namespace) -> dict[str, Any]:
    return _pytorch(args, cache_implementation="static")


CONTENDERS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "lensmith": lensmith, "PyTorch eager": eager, "PyTorch compiled": compiled,
}  # fmt: skip


def measured(name: str, timeout_s: float) -> dict[str, Any]:
    """The figures of one contender, from a process of its own; why there are none, where it fails."""
    command = [sys.executable, __file__, *sys.argv[1:], "--contender", name]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return {"failed": f"took more than {timeout_s:.0f} s"}
    if run.returncode:
        return {"failed": " ".join(run.stderr.strip().splitlines()[-3:])[-600:]}
    found: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--size", type=int, nargs=2, default=(896, 672), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--timeout", type=float, default=600, metavar="SECONDS")
    parser.add_argument("--only", choices=CONTENDERS, nargs="+", default=list(CONTENDERS))
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        print(json.dumps(CONTENDERS[args.contender](args)))
        return
    for name in args.only:
        figures = measured(name, args.timeout)
        shown = {key: statistics.median(value) if isinstance(value, list) else value for key, value in figures.items()}
        print(f"{name:18s}", json.dumps(shown), flush=True)


if __name__ == "__main__":
    main()
