"""An adapter folder: its settings, and its tensors by the names that its base has for what they change."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ....runtimes.storage.files import read_json
from ....targets.errors import InputError
from ..names import PEFT, Rules, canonical_names
from ..safetensors_files import StoredTensor, read_header
from .settings import (
    CONFIG,
    WITH_PEFT,
    LoraSettings,
    read_settings,
)

WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
OTHERS = ("chat_template.jinja", "tokenizer.json")
log = logging.getLogger(__name__)
# The ends of names, with or without the adapter's own name ("default") in them.
PART = re.compile(r"\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
                  r"(?:\.(?!weight$|bias$)([^.]+))?(\.weight|\.bias)?$")  # fmt: skip
SAVED = re.compile(r"\.(?:modules_to_save(?:\.default)?|base_layer|original_module)(?=\.)")


@dataclass
class Change:
    """What an adapter has for one module: parts by name ("lora_A", "lora_B.bias"), its own name for the module."""

    module: str
    parts: dict[str, StoredTensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Adapter:
    """An opened adapter: changes of modules and whole tensors, both by the base's names."""

    path: Path
    settings: LoraSettings
    changes: Mapping[str, Change]  # by module
    saved: Mapping[str, StoredTensor]  # by tensor: modules that were trained as a whole, biases
    files: tuple[Path, ...]

    def about(self) -> dict[str, Any]:
        """What the manifest says of it."""
        settings = self.settings
        return {
            "name": self.path.resolve().name,
            "base": settings.base,
            "rank": settings.rank,
            "alpha": settings.alpha,
            "dora": settings.magnitudes,
            "modules": len(self.changes),
            "saved": len(self.saved),
        }


def open_adapter(path: str | Path, rules: Rules) -> Adapter:
    """Open an adapter folder for a base of a model type; every header is checked, and no weight is read."""
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; --adapter takes the folder of a peft adapter")
    if not (folder / CONFIG).is_file():
        inside = sorted(place.parent.name for place in folder.glob(f"*/{CONFIG}"))
        hint = (
            f"it has adapters in {', '.join(inside)}: name one" if inside else "expected the folder of a peft adapter"
        )
        raise InputError(f"{folder} has no {CONFIG}; {hint}")
    if not (folder / WEIGHTS).is_file():
        if (folder / PICKLED).is_file():
            raise InputError(f"{folder} has only pickled weights ({PICKLED}), which are never loaded because they can "
                             "run code; save the adapter with safe_serialization=True")  # fmt: skip
        raise InputError(f"{folder} has no {WEIGHTS}; check that the download is complete")
    settings = read_settings(folder)
    changes: dict[str, Change] = {}
    saved: dict[str, StoredTensor] = {}
    owners: set[str] = set()
    stored = read_header(folder / WEIGHTS)
    for name, (module, part, owner) in _parts(stored):
        if part:
            module_there = _base_name(f"{module}.weight", rules).removesuffix(".weight")
            changes.setdefault(module_there, Change(module)).parts[part] = stored[name]
            owners.add(owner)
        else:
            whole = _base_name(module, rules)
            tensor = stored[name]
            if whole in saved:
                raise InputError(
                    f"the adapter holds {whole} twice, as {saved[whole].name} and {tensor.name}; save it again"
                )
            saved[whole] = tensor
    if len(owners) > 1:
        raise InputError(f"{folder / WEIGHTS} holds several adapters ({', '.join(sorted(owners))}); save each in a "
                         f"folder of its own, or {WITH_PEFT}")  # fmt: skip
    if not changes and not saved:
        raise InputError(f"{folder / WEIGHTS} holds no tensor; save the adapter again")
    return Adapter(folder, settings, changes, saved, (folder / CONFIG, folder / WEIGHTS))


def warn_of_others(adapter: Path, base: Path) -> None:
    """Say that an adapter folder has a template or tokenizer of its own where these differ from the base's.

    Those of the base count. Training saves both beside an adapter, most often unchanged.
    """
    for name in OTHERS:
        one, other = (_content(folder / name) for folder in (adapter, base))
        if one is not None and other is not None and one != other:
            log.warning("%s differs from that of %s, which is the one that the bundle gets; copy it there if the "
                        "adapter was trained with it", adapter / name, base)  # fmt: skip


def _content(path: Path) -> object:
    """What a file says, whatever its indentation; None where there is none."""
    if not path.is_file():
        return None
    return read_json(path) if path.suffix == ".json" else path.read_text(encoding="utf-8", errors="replace").strip()


def _parts(stored: Mapping[str, StoredTensor]) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """Each tensor's name with the adapter's name of its module, the part and the adapter it belongs to.

    Without a part, the name is that of a whole tensor.
    """
    for name in stored:
        inner = name.removeprefix(PEFT)
        if match := PART.search(inner):
            part = match[1] + (".bias" if match[3] == ".bias" else "")
            yield name, (inner[: match.start()], part, match[2] or "")
        else:
            yield name, (SAVED.sub("", inner), "", "")


def _base_name(name: str, rules: Rules) -> str:
    return canonical_names([name], rules)[name]
