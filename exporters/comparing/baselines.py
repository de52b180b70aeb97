"""Other ways to run a checkpoint beside PyTorch in its usual dtypes: PyTorch in 4 bits, and other programs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...targets.errors import InputError, closest
from ..checkpoint.folder import Checkpoint
from .contender import Assignment
from .torch_quantizers import QUANTIZERS, check_quantizer

FILES = {  # of each of PROGRAMS
    "llama.cpp": ("MODEL.gguf", "MMPROJ.gguf"),
    "openvino-genai": ("FOLDER",),
    "onnxruntime-genai": ("FOLDER",),
}


def baseline_jobs(
    wishes: Sequence[str], shared: Mapping[str, Any], checkpoint: Checkpoint | None
) -> Iterator[Assignment]:
    """One for each wish, such as "bitsandbytes-nf4" or "llama.cpp=MODEL.gguf,MMPROJ.gguf@PYTHON".

    Behind "@" is the Python that has the program, by default this one. InputError for a wish that cannot be.
    """
    for wish in wishes:
        yield Assignment(**shared, **baseline_fields(wish, against=checkpoint is not None))


def baseline_fields(wish: str, *, against: bool) -> dict[str, Any]:
    """What an assignment says of a wish alone; `against`: a checkpoint is there."""
    name, given, rest = wish.partition("=")
    if name in FILES:
        return _program(name, rest if given else "")
    if name in QUANTIZERS and not given:
        if not against:
            raise InputError(f"the baseline {name} runs the checkpoint; name it with --against")
        check_quantizer(name)
        return {"name": f"PyTorch {name}", "dtype": "bfloat16", "quantizer": name}
    raise InputError(f"there is no baseline {wish!r}; {closest(name, (*QUANTIZERS, *FILES))}")


def _program(name: str, given: str) -> dict[str, Any]:
    files, _, python = given.partition("@")
    paths = tuple(str(Path(file).resolve()) for file in files.split(",") if file)
    form = f"{name}={','.join(FILES[name])}"
    if len(paths) != len(FILES[name]):
        raise InputError(f"the baseline {name} takes {len(FILES[name])} paths, not {len(paths)}; expected {form}")
    for path in paths:
        if not Path(path).exists():
            raise InputError(f"the baseline {name} needs {path}, which is not there; expected {form}")
    interpreter = shutil.which(python or sys.executable)
    if interpreter is None:
        raise InputError(f"the baseline {name} is to run by {python}, which is no program; expected {form}@PYTHON")
    return {"name": name, "dtype": None, "files": paths, "program": name, "interpreter": interpreter}
