"""What runs engines: traffic with the GPU on a fake one, clear words where there is none, parity where there is."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.exporters.formats.tensorrt.profiles import profiles
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.runtimes.bundle.opening import Bundle, open_bundle
from lensmith.runtimes.engines.contract import Step
from lensmith.runtimes.engines.cuda.cuda import Cuda
from lensmith.runtimes.engines.tensorrt import tensorrt_executor as tensorrt
from lensmith.runtimes.evidence.replay import relative_error
from lensmith.runtimes.generation.model import Model
from lensmith.runtimes.generation.options import GenerationOptions
from lensmith.targets.errors import InputError, LensmithError, MissingExtra

from tests.helpers import fake_gpu, ladder
from tests.helpers.dialect_pairs import CONTEXT, TARGET
from tests.helpers.extras import inside, latest
from tests.helpers.fake_gpu import HostCuda, HostTensorRT
from tests.helpers.ladder import CONVERSATIONS, IMAGES, random_image

FAMILIES = ("qwen3-vl-2b", "nemotron-4b", "vqwen3-4b")


def gpu_reason() -> str:
    """Why tests on a GPU are skipped; "" where they can run."""
    try:
        Cuda()
        importlib.import_module("tensorrt_rtx")
    except (InputError, ImportError) as error:
        return f"needs an NVIDIA GPU and tensorrt_rtx: {error}"
    return ""


@pytest.fixture(scope="module", params=FAMILIES)
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Graphs in float32 for ONNX Runtime."""
    folder = tmp_path_factory.mktemp("plain")
    source = ladder.tiny(folder / "source", request.param)
    options = Options(format="tensorrt", target=TARGET, precision="fp32", context=CONTEXT)
    return export(prepare(source, options), folder / "bundle", golden="never")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> HostCuda:
    cuda = HostCuda()
    monkeypatch.setattr(importlib, "import_module", lambda name: cuda)
    monkeypatch.setattr(tensorrt, "load_library", lambda flavour: HostTensorRT())
    return cuda


def with_fake_engines(plain: Bundle, folder: Path) -> Bundle:
    """The bundle with "engines": files that name the graph that the fake runs."""
    manifest = json.loads((plain.path / "lensmith.json").read_text())
    folder.mkdir()
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copy(plain.path / name, folder / name)
    for name, entry in manifest["graphs"].items():
        (folder / f"{name}.engine").write_text(str(plain.graph(name)))
        made = {"flavour": "tensorrt_rtx", "version": "fake", "capabilities": ["8.9"],
                "profiles": profiles(name, entry["inputs"], manifest)}  # fmt: skip
        manifest["graphs"][name] = {**entry, "file": f"{name}.engine", "engine": made}
    return Bundle(folder, manifest | {"files": {f"{name}.engine": {} for name in manifest["graphs"]}})


def test_engines_answer_as_their_graphs(plain: Bundle, fake: HostCuda, tmp_path: Path) -> None:
    """Prompts, decoding, second turns and going back, over buffers whose bytes are not zero at first."""
    graphs = Model(plain, threads=1)
    engines = Model(with_fake_engines(plain, tmp_path / "engines"), threads=1)
    assert isinstance(inside(engines.decoder).executor, tensorrt.TensorRTExecutor)
    options = GenerationOptions(max_new_tokens=12, ignore_eos=True)
    turns = CONVERSATIONS["two turns"]
    for messages in (CONVERSATIONS["one image"], turns[:1], turns, CONVERSATIONS["no image"], turns):
        found, expected = (model.generate(messages, options) for model in (engines, graphs))
        assert (found.read(), found.ids) == (expected.read(), expected.ids)
        assert found.timings.reused_tokens == expected.timings.reused_tokens
    request = graphs.prepare(CONVERSATIONS["three images"])
    ours, theirs = (model.prefill(request, chunk=64, reuse=False).copy() for model in (engines, graphs))
    assert relative_error(ours, theirs) < 1e-6  # the same kernels on the same numbers


def test_answers_side_by_side(plain: Bundle, fake: HostCuda, tmp_path: Path) -> None:
    """Conversations share the contexts of an engine and have buffers of their own."""
    engines = Model(with_fake_engines(plain, tmp_path / "engines"), threads=1)
    questions = [CONVERSATIONS[name] for name in ("one image", "no image", "two turns")]
    alone = [ladder.side_by_side(engines, question)[0] for question in questions]
    engines.forget()
    assert ladder.side_by_side(engines, *questions) == alone
    assert [ladder.side_by_side(engines, question)[0] for question in questions] == alone


def test_single_tokens_are_recorded(plain: Bundle, fake: HostCuda, tmp_path: Path) -> None:
    """Their profile alone, and after the first step nothing about sizes and addresses is said again."""
    model = Model(with_fake_engines(plain, tmp_path / "engines"), threads=1)
    model.generate(CONVERSATIONS["one image"], GenerationOptions(max_new_tokens=8, ignore_eos=True)).read()
    prompts, single = (bound._context for bound in inside(model.decoder).executor._contexts)
    assert (prompts.recorded, single.recorded) == (None, "whole graph")
    assert (prompts.profile, single.profile) == (0, 1)
    assert [context._context.recorded for context in inside(model.vision).executor._contexts] == [None]
    assert single.steps[0]
    assert len(single.steps) > 4
    assert not any(single.steps[1:])


def test_an_engine_that_cannot_be_recorded(plain: Bundle, fake: HostCuda, tmp_path: Path) -> None:
    bundle = with_fake_engines(plain, tmp_path / "engines")
    kernels = {"capabilities": [], "kernels": 0, "fused": 0, "recordable": False, "written_out": []}
    bundle.content["graphs"]["decoder"]["engine"]["kernels"] = kernels
    model = Model(bundle, threads=1)
    assert [bound._context.recorded for bound in inside(model.decoder).executor._contexts] == [None, None]


def test_memory_is_given_back(plain: Bundle, fake: HostCuda, tmp_path: Path) -> None:
    engines = Model(with_fake_engines(plain, tmp_path / "engines"), threads=1)
    assert sum(map(len, fake.held.values())) >= sum(
        buffer.nbytes for buffer in latest(engines).states.kept.buffers.values()
    )
    del engines
    assert not fake.held


def test_an_engine_for_another_gpu(plain: Bundle, fake: HostCuda, tmp_path: Path) -> None:
    bundle = with_fake_engines(plain, tmp_path / "engines")
    (bundle.path / "decoder.engine").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"compute capabilities 8\.9"):
        Model(bundle)


def test_sizes_beyond_the_profiles_are_named() -> None:
    shapes = [{"input_ids": [[1, 1], [1, 4], [1, 8]]}, {"input_ids": [[1, 1]] * 3}]
    choose: Any = tensorrt.fitting
    assert choose(shapes, {"input_ids": np.zeros((1, 1))}) == 1
    assert choose(shapes, {"input_ids": np.zeros((1, 2))}) == 0
    with pytest.raises(InputError, match=r"input_ids from \[1, 1\] to \[1, 8\], found \[1, 9\]"):
        choose(shapes, {"input_ids": np.zeros((1, 9))})


def test_what_is_beyond_an_engine_is_refused(plain: Bundle, fake: HostCuda, tmp_path: Path) -> None:
    """More tokens than the cache holds, longer chunks and larger images than the profiles take."""
    model = Model(with_fake_engines(plain, tmp_path / "engines"), threads=1)
    chunk = int(plain.content["options"]["prefill_chunk"])
    for tokens, message in ((CONTEXT + 1, f"needs {CONTEXT + 1} tokens but the context holds {CONTEXT}"),
                            (chunk + 1, rf"input_ids from \[1, 1\] to \[1, {chunk}\]")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            latest(model).run(Step(np.zeros(tokens, np.int64), np.zeros((3, tokens), np.int64)))
    assert latest(model).length == 0
    if "merge_size" in plain.content["prompt"]:
        most = inside(model.vision).executor.profiles[0]["pixel_values"][2]
        patches = np.zeros((most[0] + 4, most[1]), np.float32)
        with pytest.raises(InputError, match="smaller images"):
            model.vision(patches, (1, 2, len(patches) // 2))


def test_what_tensorrt_refuses_is_said(
    plain: Bundle, fake: HostCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = with_fake_engines(plain, tmp_path / "engines")
    context = latest(Model(bundle, threads=1)).decoder.executor._contexts[0]
    with pytest.raises(LensmithError, match="the engine has no 'other': TensorRT gives no reason"):
        context.bind("other", context._cuda.buffer(4))
    monkeypatch.setattr(fake_gpu.Context, "execute_async_v3", lambda self, stream: False)
    with pytest.raises(LensmithError, match="TensorRT cannot run the engine"):
        context.run([])
    monkeypatch.setattr(fake_gpu.Context, "set_optimization_profile_async", lambda self, index, stream: False)
    with pytest.raises(LensmithError, match="TensorRT makes no context for profile 0"):
        Model(bundle, threads=1)
    monkeypatch.setattr(fake_gpu.Engine, "create_execution_context", lambda self, *configs: None)
    with pytest.raises(LensmithError, match="TensorRT makes no context for profile 0"):
        Model(bundle, threads=1)


def test_the_last_warning_is_kept() -> None:
    log = tensorrt._logger(HostTensorRT)
    assert log.last == "TensorRT gives no reason"
    for severity, message in ((0, "worst"), (2, "a warning"), (3, "news"), (4, "chatter")):
        log.log(severity, message)
    assert log.last == "a warning"


@pytest.mark.parametrize("found", [(0, 0), (35, 1), (35, 0)])
def test_cuda_without_a_gpu(found: tuple[int, int], fake: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "cudaGetDeviceCount", lambda: found)
    with pytest.raises(InputError, match=r"need an NVIDIA GPU, and CUDA finds none \(no error\)"):
        Cuda()


def test_buffers_on_a_gpu(fake: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda()
    buffer, other, none = cuda.buffer(24), cuda.buffer(24), cuda.buffer(0)
    assert (buffer.nbytes, none.nbytes, len(fake.held)) == (24, 1, 3)
    values = np.arange(6, dtype=np.int32).reshape(2, 3)
    buffer.put(values.T)  # which lies in memory in another order
    reused = np.full(6, 7, np.int32)
    other.put(reused)
    reused[:] = 0
    assert other.get((6,), np.int32).tolist() == [7] * 6
    np.testing.assert_array_equal(buffer.get((3, 2), np.int32), values.T)
    other.copy(buffer)
    buffer.put(values[:1])  # only the beginning
    np.testing.assert_array_equal(buffer.get((6,), np.int32), [0, 1, 2, 4, 2, 5])
    np.testing.assert_array_equal(other.get((6,), np.int32), values.T.ravel())
    for byte in (7, 9):
        none.put(np.array([byte], np.uint8))
        assert none.get((1,), np.uint8).tolist() == [byte]
    none.put(values[:0])
    assert none.get((0, 3), np.int32).shape == (0, 3)
    other.clear()
    assert not other.get((6,), np.int32).any()
    assert not cuda.buffer(24).get((6,), np.int32).any()
    del other
    assert len(fake.held) == 2
    monkeypatch.setattr(fake, "cudaMalloc", lambda nbytes: (2, 0))
    with pytest.raises(LensmithError, match="cudaMalloc fails: no error"):
        cuda.buffer(24)


def test_no_gpu_is_said(plain: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "load_library", lambda flavour: HostTensorRT())
    if not gpu_reason():
        pytest.skip("there is a GPU")
    with pytest.raises((InputError, MissingExtra), match=r"NVIDIA GPU|lensmith\[tensorrt\]"):
        Model(with_fake_engines(plain, tmp_path / "engines"))


@pytest.mark.gpu
@pytest.mark.skipif(bool(gpu_reason()), reason=gpu_reason())
@pytest.mark.parametrize("family", FAMILIES)
def test_engines_on_a_gpu_agree_with_pytorch(family: str, tmp_path: Path) -> None:
    """16-bit engines against float32: errors of bfloat16 add up to a few hundredths, wrong graphs to 0.5 and more."""
    ladder.need_torch()
    source = ladder.tiny(tmp_path / "source", family)
    job = prepare(source, Options(format="tensorrt", target="rtx", precision="fp16", context=CONTEXT))
    pair = ladder.Pair(job, Model(open_bundle(export(job, tmp_path / "bundle", golden="never").path)))
    request = pair.model.prepare(CONVERSATIONS["one image"])
    theirs = pair.reference.logits(pair.theirs(CONVERSATIONS["one image"]), 1)
    assert relative_error(pair.model.prefill(request), theirs) < 0.1
    ours, wanted = pair.features(random_image(256, 256) if family != "vqwen3-4b" else IMAGES[0])
    assert relative_error(ours.features, wanted.features) < 0.1
