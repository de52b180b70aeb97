"""A Hugging Face checkpoint folder as data: configurations, chat template and lazy tensors.

Only JSON, text and safetensors are read. Code in the folder is never executed: `auto_map` and
`trust_remote_code` have no effect, and pickled weights (.bin, .pt) are never loaded.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..runtimes.files import FileRecord, hash_in_background, read_json
from ..targets.errors import InputError, closest
from .layout import Layout, find_layout

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
IMAGE_PROCESSOR = ("preprocessor_config.json", "image_processor")  # its file, and the folder it may lie in
VIDEO_PROCESSOR = ("video_preprocessor_config.json", "video_processor")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
BLOCK = 4 * 1024 * 1024  # elements converted at a time: keeps the memory of a read near its result

DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16), "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2), "I64": np.dtype(np.int64), "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16), "I8": np.dtype(np.int8), "U64": np.dtype(np.uint64), "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16), "U8": np.dtype(np.uint8), "BOOL": np.dtype(np.bool_),
}  # fmt: skip


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that stays in its file until it is read.

    `dtype` is the safetensors name ("BF16"); `begin` and `end` are byte offsets from the start of `file`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.end - self.begin

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def numpy(self, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """The whole tensor converted to `dtype`; an InputError when the file has shrunk meanwhile."""
        return self._read(0, self.size, np.dtype(dtype)).reshape(self.shape)

    def rows(self, start: int, stop: int, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """Rows `start` to `stop` of the first axis, reading only their bytes; [stop - start, ...]."""
        if not self.shape or not 0 <= start <= stop <= self.shape[0]:
            raise IndexError(f"rows {start}:{stop} of {self.name} with shape {list(self.shape)}")
        width = math.prod(self.shape[1:])
        values = self._read(start * width, (stop - start) * width, np.dtype(dtype))
        return values.reshape(stop - start, *self.shape[1:])

    def raw(self) -> NDArray[Any]:
        """The whole tensor as stored, without conversion (bfloat16 as `ml_dtypes.bfloat16`)."""
        return self.numpy(DTYPES[self.dtype])

    def _read(self, first: int, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        stored = DTYPES[self.dtype]
        out: NDArray[Any] = np.empty(count, dtype)
        with open(self.file, "rb", buffering=0) as file:
            file.seek(self.begin + first * stored.itemsize)
            if dtype == stored:
                self._fill(file, out)
                return out
            block = np.empty(min(BLOCK, count), stored)
            for at in range(0, count, BLOCK):
                part = block[: count - at]
                self._fill(file, part)
                _convert(part, out[at : at + BLOCK])
        return out

    def _fill(self, file: Any, out: NDArray[Any]) -> None:
        view = out.view(np.uint8).data
        while view:
            got = file.readinto(view)
            if not got:
                raise InputError(f"{self.file} became shorter while {self.name} was read; open the checkpoint again.")
            view = view[got:]


def _convert(source: NDArray[Any], out: NDArray[Any]) -> None:
    if source.dtype == DTYPES["BF16"] and out.dtype == np.float32:  # a bfloat16 is the upper half of a float32
        np.left_shift(source.view(np.uint16), 16, out=out.view(np.uint32), dtype=np.uint32)
    else:
        np.copyto(out, source, casting="unsafe")


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint folder: everything but the numbers, which `tensors` reads when asked."""

    path: Path  # as it was given
    model_path: Path  # the folder of config.json and the weights
    config: dict[str, Any]
    generation_config: dict[str, Any]
    preprocessor_config: dict[str, Any]
    video_preprocessor_config: dict[str, Any]  # empty for a model without videos
    processor_config: dict[str, Any]
    tokenizer_config: dict[str, Any]
    chat_template: str | None
    license: str | None  # its name, as in the front matter of README.md ("apache-2.0")
    license_text: str | None
    tensors: Mapping[str, LazyTensor]
    files: tuple[Path, ...]  # every file of the folder that counts

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def tokenizer_path(self) -> Path:
        """The path of tokenizer.json; an InputError where the folder has none."""
        path = self.path / "tokenizer.json"
        if not path.is_file():
            raise InputError(
                f"{self.path} has no tokenizer.json; write one with transformers: "
                "AutoTokenizer.from_pretrained(folder, use_fast=True).save_pretrained(folder)."
            )
        return path

    def tensor(self, name: str) -> LazyTensor:
        """The tensor of this name; an InputError that names the closest one when there is none."""
        if name not in self.tensors:
            raise InputError(f"{self.path} has no tensor {name!r}; {closest(name, self.tensors) or 'list them first.'}")
        return self.tensors[name]

    def start_hashing(self) -> None:
        """Begin to hash the files in a thread, so that `source_files` is quick later on."""
        _ = self._hashes

    def source_files(self) -> dict[str, FileRecord]:
        """Size and SHA-256 of each file that counts, by name; waits for the hashes the first time."""
        return {path.name: record for path, record in self._hashes.result().items()}

    @functools.cached_property
    def _hashes(self) -> Future[dict[Path, FileRecord]]:
        return hash_in_background(self.files)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint folder and check it: every header, offset and shard, but no weight is read.

    A folder that is not a whole safetensors checkpoint is an InputError.
    """
    layout = find_layout(path)
    folder = layout.model
    tensors = _open_tensors(folder)
    processor, tokenizer = layout.json("processor_config.json"), _json(folder, "tokenizer_config.json")
    license_file = next((p for root in layout.around for p in sorted(root.glob("LICEN[SC]E*")) if p.is_file()), None)
    return Checkpoint(
        path=Path(path),
        model_path=folder,
        config=read_json(folder / "config.json"),
        generation_config=_json(folder, "generation_config.json"),
        preprocessor_config=layout.json(*IMAGE_PROCESSOR) or processor.get("image_processor") or {},
        video_preprocessor_config=layout.json(*VIDEO_PROCESSOR) or processor.get("video_processor") or {},
        processor_config=processor,
        tokenizer_config=tokenizer,
        chat_template=_chat_template(folder, tokenizer),
        license=_license_name(layout),
        license_text=license_file.read_text(encoding="utf-8", errors="replace") if license_file else None,
        tensors=MappingProxyType(tensors),
        files=_used_files(layout, tensors, license_file),
    )


def _json(folder: Path, name: str) -> dict[str, Any]:
    return read_json(folder / name) if (folder / name).is_file() else {}


def _used_files(layout: Layout, tensors: Mapping[str, LazyTensor], license_file: Path | None) -> tuple[Path, ...]:
    used = {p for pattern in ("*.json", "*.jinja", "merges.txt") for p in layout.model.glob(pattern)}
    processors = (IMAGE_PROCESSOR, VIDEO_PROCESSOR, ("processor_config.json",))
    used |= {found for names in processors if (found := layout.find(*names))}
    used |= {tensor.file for tensor in tensors.values()} | ({license_file} if license_file else set())
    return tuple(sorted(p for p in used if p.is_file()))


def _chat_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """The template from its own file, the older JSON file or the tokenizer's configuration, in this order."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    found = _json(folder, "chat_template.json").get("chat_template") or tokenizer_config.get("chat_template")
    if isinstance(found, list):  # several, by name
        found = next((item.get("template") for item in found if item.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def _license_name(layout: Layout) -> str | None:
    """The `license:` of the front matter of README.md; `license_name:` where that says "other"."""
    readme = layout.find("README.md")
    if readme is None:
        return None
    before, _, rest = readme.read_text(encoding="utf-8", errors="replace").partition("---\n")
    pairs = (line.partition(":") for line in rest.partition("\n---")[0].splitlines() if not before.strip())
    front = {key: value.strip().strip("\"'") for key, _, value in pairs}
    name = front.get("license") or None
    return front.get("license_name") or name if name == "other" else name


def _open_tensors(folder: Path) -> dict[str, LazyTensor]:
    """All tensors of the folder, by name in sorted order."""
    if (folder / SINGLE).is_file():
        found = read_header(folder / SINGLE)
    elif (folder / INDEX).is_file():
        found = _open_shards(folder)
    else:
        raise InputError(_nothing_to_read(folder))
    return dict(sorted(found.items()))


def _nothing_to_read(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir())
    if "adapter_config.json" in names:
        return f"{folder} holds an adapter, not a model; merge it first (peft: merge_and_unload, save_pretrained)."
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        return (
            f"{folder} has only pickled weights ({pickles[0]}), which are never loaded because they can run code; "
            "convert them with transformers: save_pretrained(folder, safe_serialization=True)."
        )
    return f"{folder} has neither {SINGLE} nor {INDEX}; check that the download is complete."


def _open_shards(folder: Path) -> dict[str, LazyTensor]:
    """The tensors of all shards; where two shards hold the same name, the index decides."""
    index = folder / INDEX
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(shard, str) for shard in where.values()):
        raise InputError(f"{index} has no usable weight_map of tensor names to files; copy the file again.")
    shards = sorted(set(where.values()))
    for shard in shards:
        if os.path.basename(shard) != shard or "\\" in shard or shard in ("", ".", ".."):
            raise InputError(f"{index} names the file {shard!r} outside its folder; expected plain file names.")
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise InputError(f"{folder} lacks {len(missing)} of {len(shards)} shards ({missing[0]}); download it again.")
    opened = {shard: read_header(folder / shard) for shard in shards}
    for name, shard in where.items():
        if name not in opened[shard]:
            raise InputError(f"{index} says that {shard} holds {name!r}, which is not there; copy both files again.")
    return {name: t for shard in shards for name, t in opened[shard].items() if where.get(name, shard) == shard}


def read_header(path: Path) -> dict[str, LazyTensor]:
    """The tensors of one safetensors file, each checked against the size of the file."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if start == b"version ":
            raise InputError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` in the checkpoint.")
        if len(start) < 8 or length > MAX_HEADER_BYTES:
            raise InputError(f"{path} is not a safetensors file (header of {length} bytes); download it again.")
        if 8 + length > size:
            raise InputError(f"{path} is cut off inside its header ({size} bytes); download it again.")
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} has a header that is not JSON ({error}); download it again.") from error
    if not isinstance(header, dict):
        raise InputError(f"{path} has a header that is not a JSON object; download it again.")
    entries = [_entry(path, name, entry, 8 + length) for name, entry in header.items() if name != "__metadata__"]
    _check_layout(path, entries, 8 + length, size)
    return {tensor.name: tensor for tensor in entries}


def _entry(path: Path, name: str, entry: Any, data: int) -> LazyTensor:
    """One entry of a header; `data` is the offset of the first byte of tensor data."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        plain = isinstance(dtype, str) and all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        plain = False
    if not plain:
        raise InputError(f"{path} describes {name!r} wrongly: {str(entry)[:200]}; download it again.")
    if dtype not in DTYPES:
        raise InputError(f"{path} stores {name!r} as {dtype!r}, expected one of {', '.join(DTYPES)}; convert it first.")
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != expected:
        raise InputError(
            f"{path} gives {name!r} {end - begin} bytes, but {dtype} of shape {list(shape)} takes {expected}; "
            "download it again."
        )
    return LazyTensor(name, shape, dtype, path, data + begin, data + end)


def _check_layout(path: Path, tensors: list[LazyTensor], data: int, size: int) -> None:
    """The tensors must fill the data without gap or overlap, as the format demands."""
    at, previous = data, "the header"
    for tensor in sorted(tensors, key=lambda t: (t.begin, t.end)):
        if tensor.begin != at:
            what = "overlaps" if tensor.begin < at else "leaves a gap behind"
            raise InputError(f"{path}: {tensor.name!r} {what} {previous}; the file is damaged, download it again.")
        at, previous = tensor.end, repr(tensor.name)
    if at > size:
        raise InputError(f"{path} is cut off: {size} bytes, its header says {at}; download it again.")
    if at < size:
        raise InputError(f"{path} has {size - at} bytes more than its header describes; download it again.")
