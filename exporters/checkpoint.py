"""A Hugging Face checkpoint folder as data: configurations, chat template and lazy tensors.

Only JSON, text and safetensors are read. Code in the folder is never executed: `auto_map` and
`trust_remote_code` have no effect, and pickled weights (.bin, .pt) are never loaded.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..runtimes.files import FileRecord, hash_in_background, read_json
from ..runtimes.reading import read_utf8
from ..runtimes.template import MOST_SOURCE_BYTES
from ..targets.errors import InputError, closest
from .layout import Layout, find_layout
from .lazy_tensors import LazyTensor
from .names import canonical_names
from .source_weights import SourceWeights, open_weights
from .special_tokens import special_tokens

IMAGE_PROCESSOR = ("preprocessor_config.json", "image_processor")  # its file, and the folder it may lie in
VIDEO_PROCESSOR = ("video_preprocessor_config.json", "video_processor")


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
    special_tokens: dict[str, str]  # by the names of tokenizer_config.json ("eos_token")
    chat_template: str | None
    license: str | None  # its name, as in the front matter of README.md ("apache-2.0")
    license_text: str | None
    tensors: Mapping[str, LazyTensor]  # by the names that transformers 5 has for them
    stored_names: Mapping[str, str]  # those in the files, by the names of tensors
    files: tuple[Path, ...]  # every file of the folder that counts
    changes: Mapping[str, Any]  # how `tensors` differ from what the files hold, as the manifest says it

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

    def renamed(self, names: Mapping[str, str]) -> Checkpoint:
        """With other names for some tensors."""
        pairs = sorted((names.get(name, name), name) for name in self.tensors)
        return replace(
            self,
            tensors=MappingProxyType({new: self.tensors[old].renamed(new) for new, old in pairs}),
            stored_names=MappingProxyType({new: self.stored_names.get(old, old) for new, old in pairs}),
        )

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
    config = read_json(folder / "config.json")
    weights = open_weights(folder, config)
    processor, tokenizer = layout.json("processor_config.json"), _json(folder, "tokenizer_config.json")
    license_file = next((p for root in layout.around for p in sorted(root.glob("LICEN[SC]E*")) if p.is_file()), None)
    found = Checkpoint(
        path=Path(path),
        model_path=folder,
        config=config,
        generation_config=_json(folder, "generation_config.json"),
        preprocessor_config=layout.json(*IMAGE_PROCESSOR) or processor.get("image_processor") or {},
        video_preprocessor_config=layout.json(*VIDEO_PROCESSOR) or processor.get("video_processor") or {},
        processor_config=processor,
        tokenizer_config=tokenizer,
        special_tokens=special_tokens(
            str(config.get("model_type")), tokenizer, _json(folder, "special_tokens_map.json")
        ),
        chat_template=_chat_template(folder, tokenizer),
        license=_license_name(layout),
        license_text=license_file.read_text(encoding="utf-8", errors="replace") if license_file else None,
        tensors=MappingProxyType(dict(weights.tensors)),
        stored_names={},
        files=_used_files(layout, weights, license_file),
        changes=weights.changes,
    )
    return found.renamed(canonical_names(weights.tensors, str(config.get("model_type"))))


def _json(folder: Path, name: str) -> dict[str, Any]:
    return read_json(folder / name) if (folder / name).is_file() else {}


def _used_files(layout: Layout, weights: SourceWeights, license_file: Path | None) -> tuple[Path, ...]:
    used = {p for pattern in ("*.json", "*.jinja", "merges.txt") for p in layout.model.glob(pattern)}
    processors = (IMAGE_PROCESSOR, VIDEO_PROCESSOR, ("processor_config.json",))
    used |= {found for names in processors if (found := layout.find(*names))}
    used |= weights.files | ({license_file} if license_file else set())
    return tuple(sorted(p for p in used if p.is_file()))


def _chat_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """The template from its own file, the older JSON file or the tokenizer's configuration, in this order."""
    if (folder / "chat_template.jinja").is_file():
        return read_utf8(folder / "chat_template.jinja", MOST_SOURCE_BYTES, "a chat template")
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
