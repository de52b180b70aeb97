"""ONNX Runtime's TensorRT-RTX plugin: what it is told, what it lacks here, and the traffic with it on the CPU."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from lensmith.exporters.formats.tensorrt.finish import build, with_profiles
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.runtimes.bundle.opening import Bundle
from lensmith.runtimes.engines import engine_table
from lensmith.runtimes.engines.device_executor import Place
from lensmith.runtimes.engines.onnx.sessions import session
from lensmith.runtimes.engines.tensorrt import tensorrt_plugin
from lensmith.runtimes.engines.tensorrt.tensorrt_plugin import (
    PluginExecutor,
    plugin_devices,
    plugin_options,
    run_options,
)
from lensmith.runtimes.evidence.replay import relative_error
from lensmith.runtimes.generation.model import Model
from lensmith.runtimes.generation.options import GenerationOptions
from lensmith.targets.errors import InputError, MissingExtra

from tests.helpers import ladder
from tests.helpers.dialect_pairs import CONTEXT
from tests.helpers.extras import inside
from tests.helpers.ladder import CONVERSATIONS, side_by_side

HERE = Place(("cpu", 0), "cpu")
PROFILES = [{"ids": [[1, 1], [1, 4], [1, 8]], "at": [[1], [1], [2]]}, {"ids": [[1, 1]] * 3, "at": [[1]] * 3}]


@pytest.fixture(scope="module", params=["qwen3-vl-2b", "tarn-2b"])
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Graphs in float32 for ONNX Runtime."""
    folder = tmp_path_factory.mktemp("plain")
    options = Options(format="tensorrt", target="rtx-plugin", precision="fp32", context=CONTEXT)
    return export(prepare(ladder.tiny(folder / "source", request.param), options), folder / "bundle", golden="never")


def test_states_stay_where_they_are(plain: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers as from graphs whose states travel, with prompts, images, turns and going back."""
    asked: list[int] = []

    def profile(index: int, profiles: list[dict[str, Any]]) -> Any:
        asked.append(index)
        return None

    monkeypatch.setattr(tensorrt_plugin, "plugin_session", lambda path, profiles: session(path, 1, native=False))
    monkeypatch.setattr(tensorrt_plugin, "run_options", profile)
    monkeypatch.setattr(engine_table, "PluginExecutor", lambda path, profiles: PluginExecutor(path, profiles, HERE))
    graphs, plugin = (Model(Bundle(plain.path, manifest), threads=1)
                      for manifest in (plain.content, with_profiles(plain.content)))  # fmt: skip
    assert isinstance(inside(plugin.decoder).executor, PluginExecutor)
    assert not isinstance(inside(graphs.decoder).executor, PluginExecutor)
    options = GenerationOptions(max_new_tokens=12, ignore_eos=True)
    turns = CONVERSATIONS["two turns"]
    for messages in (CONVERSATIONS["one image"], turns[:1], turns, CONVERSATIONS["no image"], turns):
        found, expected = (model.generate(messages, options) for model in (plugin, graphs))
        assert (found.read(), found.ids) == (expected.read(), expected.ids)
    assert set(asked) == {0, 1}  # prompts, and single tokens
    questions = CONVERSATIONS["one image"], CONVERSATIONS["no image"]
    assert side_by_side(plugin, *questions) == [side_by_side(graphs, question)[0] for question in questions]
    request = graphs.prepare(CONVERSATIONS["three images"])
    ours, theirs = (model.prefill(request, chunk=64, reuse=False).copy() for model in (plugin, graphs))
    assert relative_error(ours, theirs) < 1e-6


def test_caches_are_one_buffer(plain: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_plugin, "plugin_session", lambda path, profiles: session(path, 1, native=False))
    entry = with_profiles(plain.content)["graphs"]["decoder"]
    executor = PluginExecutor(plain.graph("decoder"), entry["plugin"]["profiles"], HERE)
    caches = [name for name in executor.inputs if name.startswith("past_key_values.")]
    assert caches
    kept = executor.open_states()
    assert all(kept.past[name] is kept.present[name] for name in caches)
    assert not any(kept.past[name] is kept.present[name] for name in kept.recurrent)
    shape = executor.inputs[caches[0]]
    kept.write(caches[0], np.ones(shape, np.float32))
    assert kept.read(caches[0]).all()
    assert not executor.open_states().read(caches[0]).any()
    kept.write(caches[0], None)
    assert not kept.read(caches[0]).any()


def test_what_the_plugin_is_told() -> None:
    """An input that comes twice has two profiles."""
    told = plugin_options(PROFILES)
    assert told["nv_profile_min_shapes"] == "ids:1x1,at:1,ids:1x1,at:1"
    assert told["nv_profile_opt_shapes"] == "ids:1x4,at:1,ids:1x1,at:1"
    assert told["nv_profile_max_shapes"] == "ids:1x8,at:2,ids:1x1,at:1"
    assert (told["nv_multi_profile_enable"], told["nv_use_external_data_initializer"]) == ("1", "0")
    assert plugin_options(PROFILES[:1], large=True)["nv_multi_profile_enable"] == "0"
    assert plugin_options(PROFILES[:1], large=True)["nv_use_external_data_initializer"] == "1"
    assert run_options(1, PROFILES).get_run_config_entry("nv_profile_index") == "1"
    with pytest.raises(RuntimeError):
        run_options(0, PROFILES[:1]).get_run_config_entry("nv_profile_index")


@pytest.mark.parametrize(("size", "large"), [(None, False), (2**31 - 1, False), (2**31, True)])
def test_weights_over_two_gigabytes_stay_in_their_file(
    size: int | None, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    options = SimpleNamespace(add_provider_for_devices=lambda *given: told.append(given))
    monkeypatch.setattr(ort, "SessionOptions", lambda: options)
    monkeypatch.setattr(tensorrt_plugin, "plugin_devices", lambda: ["a GPU"])
    monkeypatch.setattr(tensorrt_plugin, "load_session", lambda path, options, providers: providers)
    if size is not None:
        with open(tmp_path / "decoder.data", "wb") as file:
            file.truncate(size)
    assert tensorrt_plugin.plugin_session(tmp_path / "decoder.onnx", PROFILES) == []
    assert told == [(["a GPU"], plugin_options(PROFILES, large=large))]


def with_plugin(monkeypatch: pytest.MonkeyPatch, register: Callable[..., None], devices: Any) -> None:
    plugin = SimpleNamespace(get_ep_name=lambda: "TheProvider", get_library_path=lambda: "/plugin.so")
    monkeypatch.setattr(importlib, "import_module", lambda name: plugin)
    monkeypatch.setattr(ort, "register_execution_provider_library", register)
    monkeypatch.setattr(ort, "get_ep_devices", devices)


def test_the_plugin_is_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    known: list[Any] = [SimpleNamespace(ep_name="CPUExecutionProvider")]

    def register(name: str, path: str) -> None:
        assert (name, path) == ("TheProvider", "/plugin.so")
        known.extend(SimpleNamespace(ep_name=name, number=number) for number in (0, 1))

    with_plugin(monkeypatch, register, lambda: known)
    assert [device.number for device in plugin_devices()] == [0]
    assert [device.number for device in plugin_devices()] == [0]
    assert len(known) == 3


def test_no_package_is_said() -> None:
    if importlib.util.find_spec(tensorrt_plugin.PACKAGE):
        pytest.skip("the plugin is installed")
    with pytest.raises(MissingExtra, match=r"pip install 'lensmith\[tensorrt-plugin\]'"):
        plugin_devices()


def test_no_driver_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's own words for a library that is not there."""
    plugin = SimpleNamespace(get_ep_name=lambda: "TheProvider", get_library_path=lambda: "/no/plugin.so")
    monkeypatch.setattr(importlib, "import_module", lambda name: plugin)
    with pytest.raises(InputError, match=r"does not start \(.*plugin\.so.*needs the driver of an NVIDIA GPU"):
        plugin_devices()


def test_no_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with_plugin(monkeypatch, lambda *_: None, list)
    with pytest.raises(InputError, match=r"finds no GPU.*target cuda or cpu"):
        plugin_devices()


def test_the_bundle_has_graphs_and_profiles(tmp_path: Path) -> None:
    source = ladder.tiny(tmp_path / "source")
    job = prepare(source, Options(format="tensorrt", target="rtx-plugin", group_size=32, context=CONTEXT))
    made = export(job, tmp_path / "bundle", golden="auto")
    for name, entry in made.content["graphs"].items():
        assert entry["file"] == f"{name}.onnx"
        assert {key for shapes in entry["plugin"]["profiles"] for key in shapes} == entry["inputs"].keys()
    assert not made.content["evidence"]["golden"]["recorded"]
    with pytest.raises(InputError, match="needs no engines"):
        build(made.path)
    if not importlib.util.find_spec(tensorrt_plugin.PACKAGE):
        with pytest.raises(MissingExtra, match="TensorRT-RTX plugin"):
            Model(made)


@pytest.mark.gpu
@pytest.mark.skipif(not importlib.util.find_spec(tensorrt_plugin.PACKAGE), reason="needs lensmith[tensorrt-plugin]")
def test_the_plugin_on_a_gpu_agrees_with_pytorch(tmp_path: Path) -> None:
    """As engines do; see test_tensorrt_runtime.py."""
    ladder.need_torch()
    try:
        plugin_devices()
    except InputError as error:
        pytest.skip(str(error))
    job = prepare(ladder.tiny(tmp_path / "source"), Options(format="tensorrt", target="rtx-plugin", precision="fp16",
                                                            context=CONTEXT))  # fmt: skip
    pair = ladder.Pair(job, Model(export(job, tmp_path / "bundle", golden="never")))
    request = pair.model.prepare(CONVERSATIONS["one image"])
    theirs = pair.reference.logits(pair.theirs(CONVERSATIONS["one image"]), 1)
    assert relative_error(pair.model.prefill(request), theirs) < 0.1
