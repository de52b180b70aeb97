"""ONNX Runtime's TensorRT-RTX plugin: graphs of the tensorrt dialect, compiled on their device when they are loaded.

A second way to run them, for devices that have ONNX Runtime and not TensorRT's own modules. States stay on the GPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from ....targets.errors import InputError, MissingExtra
from ...bundle.graph_entries import Profile
from ..contract import Arrays
from ..device_executor import DeviceExecutor, DeviceStates, Place
from ..onnx.sessions import load_session
from .tensorrt_executor import fitting

PACKAGE, EXTRA = "onnxruntime_ep_nv_tensorrt_rtx", "tensorrt-plugin"
LARGEST_MODEL = 2**31 - 1  # bytes that one message of protobuf can have
BOUNDS = ("min", "opt", "max")  # as a profile has its shapes


GPU = Place(("gpu", 0, 0x10DE), "cuda")


class PluginExecutor(DeviceExecutor):
    """A graph on the GPU; see indexed.Executor. `profiles` are those that engines are built with.

    Raises MissingExtra where the plugin is not installed, and InputError where it does not start.
    """

    def __init__(self, path: Path, profiles: list[Profile], place: Place = GPU) -> None:
        self.profiles = profiles
        super().__init__(plugin_session(path, profiles), place)

    def run(self, feed: Arrays, kept: DeviceStates) -> dict[str, NDArray[Any]]:
        """All outputs but the states, which move on by the new tokens. InputError for sizes beyond the profiles."""
        return self.step(feed, kept, run_options(fitting(self.profiles, feed), self.profiles))


def plugin_session(path: Path, profiles: list[Profile]) -> ort.InferenceSession:
    """A session that compiles a graph for the GPU of this machine; errors as of the executor."""
    options = ort.SessionOptions()
    data = path.with_suffix(".data")
    large = data.is_file() and data.stat().st_size > LARGEST_MODEL
    options.add_provider_for_devices(plugin_devices(), plugin_options(profiles, large=large))
    return load_session(path, options, [])


def plugin_devices() -> Sequence[Any]:
    """The GPUs that the plugin runs on; it is registered where it is not yet."""
    try:
        plugin = importlib.import_module(PACKAGE)
    except ModuleNotFoundError as error:
        raise MissingExtra(f"ONNX Runtime's TensorRT-RTX plugin (no module {error.name!r})", EXTRA) from error
    name = plugin.get_ep_name()
    if not _devices(name):
        try:
            ort.register_execution_provider_library(name, plugin.get_library_path())
        except Exception as error:  # ONNX Runtime raises its own unrelated types here
            reason = str(error).splitlines()[0][:200]
            raise InputError(
                f"ONNX Runtime's TensorRT-RTX plugin does not start ({reason}); it needs the driver of an NVIDIA GPU"
            ) from error
    found = _devices(name)
    if not found:
        raise InputError(
            "ONNX Runtime's TensorRT-RTX plugin finds no GPU that it runs on, GeForce RTX 30 or later; "
            "export the bundle for the target cuda or cpu"
        )
    return found[:1]


def _devices(name: str) -> list[Any]:
    return [device for device in ort.get_ep_devices() if device.ep_name == name]


def plugin_options(profiles: list[Profile], *, large: bool = False) -> dict[str, str]:
    """The plugin's options for optimization profiles; `large` are weights over 2 GB, which stay in their own file.

    An input that is named several times has several profiles.
    """
    return {
        **{f"nv_profile_{bound}_shapes": _shapes(profiles, index) for index, bound in enumerate(BOUNDS)},
        "nv_multi_profile_enable": str(int(len(profiles) > 1)),
        "nv_use_external_data_initializer": str(int(large)),
    }


def _shapes(profiles: list[Profile], index: int) -> str:
    return ",".join(
        f"{name}:{'x'.join(map(str, shapes[index]))}" for profile in profiles for name, shapes in profile.items()
    )


def run_options(profile: int, profiles: Sequence[Profile]) -> Any:
    """Options of a step in one of the profiles."""
    options = ort.RunOptions()
    if len(profiles) > 1:
        options.add_run_config_entry("nv_profile_index", str(profile))
    return options
