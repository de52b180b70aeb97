"""Which packages of ONNX Runtime are installed: they put different files in one place, and the last one wins."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

GPU = "onnxruntime-gpu"
NAMES = ("onnxruntime", GPU, "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn")


def installed() -> dict[str, str]:
    """The packages and their versions."""
    found = {}
    for name in NAMES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def conflict() -> str | None:
    """One sentence about packages beside onnxruntime-gpu that may have overwritten it, with what to do."""
    found = installed()
    if GPU not in found or len(found) == 1:
        return None
    listed = " and ".join(f"{name} {number}" for name, number in found.items())
    return (f"{listed} are installed together, whose files overwrite one another; run: pip uninstall -y "
            f"{' '.join(found)}, then: pip install '{GPU}[cuda,cudnn]>=1.31'")  # fmt: skip
