"""How bundles for CUDA are driven: buffers, steps that are recorded, devices. Host memory stands in for the GPU's."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.exporters.planning.planned_bundle import make_plan
from lensmith.runtimes.bundle.opening import open_bundle
from lensmith.runtimes.engines.cuda import cuda_executor
from lensmith.runtimes.engines.cuda.cuda_executor import CudaExecutor, need_cuda
from lensmith.runtimes.engines.device_executor import Place
from lensmith.runtimes.engines.onnx.sessions import load_session
from lensmith.runtimes.engines.onnxruntime_packages import conflict
from lensmith.runtimes.engines.run_wishes import usable_device
from lensmith.runtimes.generation.model import Model
from lensmith.runtimes.generation.options import GenerationOptions
from lensmith.runtimes.prompt.requests import user_message
from lensmith.targets.errors import InputError, MissingExtra
from PIL import Image

from tests.helpers import ladder
from tests.helpers.extras import inside, latest, load

QUESTION = [user_message("What is it?", [Image.new("RGB", (96, 64), "red")])]
FAMILIES = ("qwen3-vl-2b", "nemotron-4b")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of tiny models with an attention cache, and with recurrent states as well."""
    folder, made = tmp_path_factory.mktemp("cuda"), {}
    for name in FAMILIES:
        job = prepare(ladder.tiny(folder / name, name), Options(precision="int4", target="cuda"))
        made[name] = export(job, folder / f"{name}-b", golden="never").path
    return made


class Recording:
    """A session that runs a step three times when it is recorded, as ONNX Runtime does on a GPU."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self.session, self.known = session, {"-1"}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
        name = "-1" if options is None else options.get_run_config_entry("gpu_graph_id")
        for _ in range(1 if name in self.known else 3):
            self.session.run_with_iobinding(binding)
        self.known.add(name)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Sessions on the CPU in place of those on the GPU; the files that were opened, and whether to record steps."""
    opened: list[tuple[str, bool]] = []

    def session(path: Path, *, graphs: bool, profile: bool = False) -> Any:
        opened.append((path.name, graphs))
        return Recording(load_session(path, ort.SessionOptions(), ["CPUExecutionProvider"]))

    monkeypatch.setattr(cuda_executor, "GPU", Place(("cpu", 0), "cpu"))
    monkeypatch.setattr(cuda_executor, "need_cuda", lambda: None)
    monkeypatch.setattr(cuda_executor, "cuda_session", session)
    return opened


def answer(model: Model, tokens: int = 24, question: list[dict[str, Any]] = QUESTION) -> list[int]:
    made = model.generate(question, GenerationOptions(max_new_tokens=tokens, ignore_eos=True))
    made.read()
    return made.ids


@pytest.mark.parametrize("name", FAMILIES)
def test_buffers_and_recorded_steps_give_the_same_tokens(
    bundles: dict[str, Path], host: list[tuple[str, bool]], name: str
) -> None:
    model, plain = load(bundles[name], context=256), load(bundles[name], context=256, device="cpu")
    executor = inside(model.decoder).executor
    assert isinstance(executor, CudaExecutor)
    assert host == [("vision_encoder.onnx", False), ("decoder.onnx", True)]
    assert answer(model) == answer(plain)
    assert latest(model).states.kept.singles.keys() == ({0, 1} if name == "nemotron-4b" else {0})
    assert answer(model) == answer(plain)  # behind a prompt that is in the cache already
    model.forget()
    assert answer(model) == answer(plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_recorded_steps_take_what_they_are_given(
    bundles: dict[str, Path], host: list[tuple[str, bool]], name: str
) -> None:
    """Tokens of an image one by one, and drafts behind hidden states."""
    model, plain = load(bundles[name], context=256), load(bundles[name], context=256, device="cpu")
    request = plain.prepare(QUESTION)
    for _ in range(2):
        ours, theirs = (each.prefill(request, chunk=1, reuse=False) for each in (model, plain))
        np.testing.assert_array_equal(ours, theirs)
    if name == "nemotron-4b":
        hidden = np.random.default_rng(0).standard_normal((4, plain.decoder.hidden), np.float32)
        drafts = [each.open_draft_head().draft(np.array([5, 6, 7, 8]), 0, hidden, 6) for each in (model, plain)]
        assert drafts[0] == drafts[1]


@pytest.mark.parametrize("name", FAMILIES)
def test_each_conversation_records_its_own_steps(
    bundles: dict[str, Path], host: list[tuple[str, bool]], name: str
) -> None:
    model, plain = load(bundles[name], context=256), load(bundles[name], context=256, device="cpu")
    other = [user_message("Is it red?", [Image.new("RGB", (96, 64), "blue")])]
    alone = [answer(plain, 8, question) for question in (QUESTION, other)]
    for _ in range(2):
        assert ladder.side_by_side(model, QUESTION, other) == alone
    assert answer(model, 8, other) == alone[1]
    idle: list[Any] = model.conversations._idle
    singles = [conversation.states.kept.singles for conversation in idle]
    names = [single.options.get_run_config_entry("gpu_graph_id") for some in singles for single in some.values()]
    assert len(set(names)) == len(names) == 2 * len(singles[0])


def test_states_are_read_and_written(bundles: dict[str, Path], host: list[tuple[str, bool]]) -> None:
    model = load(bundles["nemotron-4b"], context=256)
    model.prefill(model.prepare(QUESTION), reuse=False)
    copies = latest(model).states.copies()
    assert {values.dtype for values in copies.values()} == {np.dtype(np.float16), np.dtype(np.float32)}
    assert all(np.abs(values).max() > 0 for values in copies.values())
    latest(model).rewind(0)
    assert all(np.abs(values).max() == 0 for values in latest(model).states.copies().values())
    name, values = next(iter(copies.items()))
    kept = latest(model).states.kept
    kept.write(name, values)
    np.testing.assert_array_equal(kept.read(name), values)


def test_steps_are_not_recorded_where_that_fails(
    bundles: dict[str, Path], host: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = cuda_executor.cuda_session

    def refusing(path: Path, *, graphs: bool, profile: bool = False) -> Any:
        if graphs:
            raise InputError("cannot be recorded")
        return plain(path, graphs=graphs, profile=profile)

    monkeypatch.setattr(cuda_executor, "cuda_session", refusing)
    model = load(bundles["qwen3-vl-2b"], context=256)
    assert not inside(model.decoder).executor.recorded
    assert answer(model) == answer(load(bundles["qwen3-vl-2b"], context=256, device="cpu"))


def test_the_context_bounds_the_cache(bundles: dict[str, Path], host: list[tuple[str, bool]]) -> None:
    model = load(bundles["qwen3-vl-2b"], context=100)
    assert model.decoder.capacity == 100
    made = model.generate(QUESTION, GenerationOptions(max_new_tokens=100, ignore_eos=True))
    made.read()
    assert made.finish_reason == "context"


def test_without_cuda_the_extra_is_named(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingExtra, match=r"lensmith\[gpu\]"):
        load(bundles["qwen3-vl-2b"])
    assert usable_device(open_bundle(bundles["qwen3-vl-2b"]).manifest) == "cpu"


def both(name: str) -> str:
    """The versions of an installation that has the packages for CPUs and for GPUs."""
    versions = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.0"}
    if name not in versions:
        raise PackageNotFoundError(name)
    return versions[name]


def test_two_packages_of_onnxruntime_are_noticed(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lensmith.runtimes.engines.onnxruntime_packages.version", both)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    words = r"onnxruntime 1\.31\.1 and onnxruntime-gpu 1\.31\.0 are installed together"
    with pytest.raises(InputError, match=words) as caught:
        load(bundles["qwen3-vl-2b"])
    assert "pip uninstall -y onnxruntime onnxruntime-gpu, then: pip install 'onnxruntime-gpu[" in str(caught.value)
    assert usable_device(open_bundle(bundles["qwen3-vl-2b"]).manifest) == "cpu"
    assert "installed together" in caplog.text
    caplog.clear()
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    need_cuda()  # it works all the same, until one of them is updated
    assert "installed together" in caplog.text


@pytest.mark.parametrize("found", [{"onnxruntime": "1"}, {"onnxruntime-gpu": "1"}, {}])
def test_one_package_of_onnxruntime_is_in_order(monkeypatch: pytest.MonkeyPatch, found: dict[str, str]) -> None:
    monkeypatch.setattr("lensmith.runtimes.engines.onnxruntime_packages.installed", lambda: found)
    assert conflict() is None


def test_devices_that_do_not_fit(bundles: dict[str, Path], tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="--target cuda"):
        load(tiny_bundle, device="cuda")
    with pytest.raises(InputError, match="expected one of cpu, cuda"):
        load(bundles["qwen3-vl-2b"], device="tpu")


@pytest.mark.parametrize("precision", ["fp32", "int3", "int2"])
def test_precisions_without_kernels_are_refused(tiny_checkpoint: Path, precision: str) -> None:
    with pytest.raises(InputError, match="no products with"):
        prepare(tiny_checkpoint, Options(precision=precision, target="cuda"))


def test_plans_count_states_in_16_bits(tmp_path: Path) -> None:
    source = ladder.tiny(tmp_path / "source", "nemotron-4b")
    wide, half, engine = (make_plan(prepare(source, options)) for options in (
        Options(kv_cache="float"), Options(target="cuda"), Options("tensorrt", target="rtx-40")))  # fmt: skip
    assert half.cache_bytes_per_token == engine.cache_bytes_per_token == wide.cache_bytes_per_token / 2
    assert wide.state_bytes / 2 < half.state_bytes < wide.state_bytes  # the memory of the delta rule stays in float32


def test_bfloat16_says_that_it_needs_its_gpu(tiny_checkpoint: Path, tmp_path: Path) -> None:
    job = prepare(tiny_checkpoint, Options(target="cuda-bf16"))
    bundle = export(job, tmp_path / "b", golden="auto")
    assert not bundle.content["evidence"]["golden"]["recorded"]
    with pytest.raises(InputError):
        load(bundle.path, device="cpu")
