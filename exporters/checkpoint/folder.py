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

from ...runtimes.storage.files import FileRecord, hash_in_background, read_json
from ...targets.errors import InputError, closest
from .conventions import Conventions, conventions_of
from .layout import Layout, find_layout
from .lazy_tensors import LazyTensor
from .lora.adapter import open_adapter, warn_of_others
from .lora.merge import merged
from .names import canonical_names
from .processor_files import (
    IMAGE,
    MORE,
    PROCESSOR,
    TOKENIZER,
    VIDEO,
    chat_template,
    json_file,
    processor_class,
    settings,
)
from .safetensors_files import holds_weights
from .source_weights import SourceWeights, open_weights
from .special_tokens import special_tokens

IMAGE_PROCESSOR = (IMAGE, "image_processor")  # its file, and the folder it may lie in
VIDEO_PROCESSOR = (VIDEO, "video_processor")


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint folder: everything but the numbers, which `tensors` reads when asked."""

    path: Path  # as it was given
    model_path: Path  # the folder of config.json and the weights
    config: dict[str, Any]
    generation_config: dict[str, Any]
    preprocessor_config: dict[str, Any] | None  # None where no file has the settings of images
    video_preprocessor_config: dict[str, Any] | None
    processor_config: dict[str, Any]
    tokenizer_config: dict[str, Any]
    processor_class: Any  # as the files name it, None where none does
    special_tokens: dict[str, str]  # by the names of tokenizer_config.json ("eos_token")
    chat_template: str | None
    license: str | None  # its name, as in the front matter of README.md ("apache-2.0")
    license_text: str | None
    tensors: Mapping[str, LazyTensor]  # by the names that transformers 5 has for them
    stored_names: Mapping[str, str]  # those in the files, by the names of tensors
    files: tuple[Path, ...]  # every file of the folder that counts
    changes: Mapping[str, Any]  # how `tensors` differ from what the files hold, as the manifest says it
    adapter: Path | None = None  # its folder, where one is merged into the weights
    outline: bool = False  # its weights are not here, which plans can do without

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def conventions(self) -> Conventions:
        """What transformers' classes for its model_type do to its files."""
        return conventions_of(self.config.get("model_type"))

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

    @property
    def image_settings(self) -> dict[str, Any]:
        """The settings of the image processor; an InputError where no file has them."""
        return self._settings(self.preprocessor_config, IMAGE, "image_processor")

    @property
    def video_settings(self) -> dict[str, Any]:
        """The settings of the video processor; an InputError where no file has them."""
        return self._settings(self.video_preprocessor_config, VIDEO, "video_processor")

    def _settings(self, found: dict[str, Any] | None, file: str, part: str) -> dict[str, Any]:
        if found is None:
            raise InputError(
                f"{self.path} has no {file}, and no {part} in {PROCESSOR}; copy the file from the model's repository"
            )
        return found

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


def open_checkpoint(path: str | Path, adapter: str | Path | None = None, *, outline: bool = False) -> Checkpoint:
    """Open a checkpoint folder and check it: every header, offset and shard, but no weight is read.

    An `adapter`, the folder of one, changes the weights as they are read. A folder that is not a whole safetensors
    checkpoint, or an adapter that does not fit it, is an InputError. With `outline` a folder may have no weights at
    all; it has no tensors then, and an adapter changes none.
    """
    layout = find_layout(path)
    folder = layout.model
    config = read_json(folder / "config.json")
    outline = outline and not holds_weights(folder)
    weights = SourceWeights({}, frozenset()) if outline else open_weights(folder, config)
    processor, tokenizer = layout.json(PROCESSOR), json_file(folder / TOKENIZER)
    image_file, video_file = layout.find(*IMAGE_PROCESSOR), layout.find(*VIDEO_PROCESSOR)
    own = conventions_of(config.get("model_type"))
    license_file = next((p for root in layout.around for p in sorted(root.glob("LICEN[SC]E*")) if p.is_file()), None)
    image = settings(own, processor, "image_processor", image_file)
    found = Checkpoint(
        path=Path(path),
        model_path=folder,
        config=config,
        generation_config=json_file(folder / "generation_config.json"),
        preprocessor_config=image,
        video_preprocessor_config=settings(own, processor, "video_processor", video_file, image_file),
        processor_config=processor,
        tokenizer_config=tokenizer,
        processor_class=processor_class(processor, image, tokenizer),
        special_tokens=special_tokens(own.special_tokens, tokenizer, json_file(folder / "special_tokens_map.json")),
        chat_template=chat_template(folder, own, processor, tokenizer),
        license=_license_name(layout),
        license_text=license_file.read_text(encoding="utf-8", errors="replace") if license_file else None,
        tensors=MappingProxyType(dict(weights.tensors)),
        stored_names={},
        files=_used_files(layout, weights, license_file),
        changes=weights.changes,
        outline=outline,
    )
    found = found.renamed(canonical_names(weights.tensors, own.names))
    return found if adapter is None or outline else _adapted(found, Path(adapter))


def _adapted(base: Checkpoint, folder: Path) -> Checkpoint:
    adapter = open_adapter(folder, base.conventions.names)
    warn_of_others(folder, base.path)
    tensors = merged(base.tensors, adapter)
    return replace(
        base,
        tensors=MappingProxyType(tensors),
        stored_names=MappingProxyType({name: base.stored_names.get(name, name) for name in tensors}),
        files=(*base.files, *adapter.files),
        changes={**base.changes, "adapter": adapter.about()},
        adapter=folder,
    )


def _used_files(layout: Layout, weights: SourceWeights, license_file: Path | None) -> tuple[Path, ...]:
    used = {p for pattern in ("*.json", "*.jinja", "merges.txt", f"{MORE}/*.jinja") for p in layout.model.glob(pattern)}
    processors = (IMAGE_PROCESSOR, VIDEO_PROCESSOR, (PROCESSOR,))
    used |= {found for names in processors if (found := layout.find(*names))}
    used |= weights.files | ({license_file} if license_file else set())
    return tuple(sorted(p for p in used if p.is_file()))


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
