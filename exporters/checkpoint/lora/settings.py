"""adapter_config.json: the settings that a merge follows, and refusals of everything that it would not be right for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....runtimes.storage.files import read_json
from ....targets.errors import InputError

CONFIG = "adapter_config.json"
WITH_PEFT = "merge it with peft (merge_and_unload, save_pretrained) and export the merged checkpoint"
# Initializations of A and B that leave the base as it is; others, like PiSSA, train on a base that they have changed.
PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
# What has no effect once an adapter is trained, or is read here.
KNOWN = frozenset((
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config",
    "megatron_config", "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r",
    "rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_dora", "use_rslora",
))  # fmt: skip
REPEATED_GROUP = re.compile(r"\)[*+{]")  # can take for ever
REPEATS, LONGEST = 3, 500  # most repeats in a pattern, and characters


@dataclass(frozen=True)
class LoraSettings:
    """How strong the change of each module is, and what else the adapter declares."""

    base: str  # name or path of the model that it was trained on
    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    by_root: bool  # rsLoRA: alpha / sqrt(rank)
    magnitudes: bool  # DoRA
    tied: bool  # one change for a table and the head that shares it

    def scaling(self, module: str, rank: int) -> float:
        """The factor of B @ A of a module with matrices of this rank; InputError where another one is declared."""
        declared = _first(self.ranks, module, self.rank)
        if declared != rank:
            raise InputError(f"the adapter has matrices of rank {rank} for {module}, and {CONFIG} says {declared}; "
                             "download the adapter again")  # fmt: skip
        alpha = float(_first(self.alphas, module, self.alpha))
        return alpha / math.sqrt(rank) if self.by_root else alpha / rank


def read_settings(folder: Path) -> LoraSettings:
    """The settings of an adapter folder; InputError for other kinds of adapters and for features without a merge."""
    config = read_json(folder / CONFIG)
    kind = str(config.get("peft_type", "")).upper()
    if kind != "LORA":
        raise InputError(f"{folder} is an adapter of the kind {kind or 'not named'!r}, and lensmith merges LORA alone; "
                         f"{WITH_PEFT}")  # fmt: skip
    start = config.get("init_lora_weights")
    start = start.lower() if isinstance(start, str) else start
    if start not in PLAIN_STARTS:
        raise InputError(f"{folder} began as {start!r}, which changes the base before training; {WITH_PEFT}")
    other = next((key for key, value in config.items() if value and key not in KNOWN), None)
    if other is not None:
        raise InputError(f"{folder / CONFIG} sets {other}, which lensmith does not merge; {WITH_PEFT}")
    return LoraSettings(
        base=_plain(config.get("base_model_name_or_path") or ""),
        rank=_number(folder, config, "r", 8),
        alpha=_number(folder, config, "lora_alpha", 8),
        ranks=_pattern(folder, config, "rank_pattern"),
        alphas=_pattern(folder, config, "alpha_pattern"),
        by_root=bool(config.get("use_rslora")),
        magnitudes=bool(config.get("use_dora")),
        tied=bool(config.get("ensure_weight_tying")),
    )


def base_of(folder: Path) -> str:
    """The name of an adapter's base, as it says, for people."""
    return _plain(read_json(folder / CONFIG).get("base_model_name_or_path") or "the model that it was trained on")


def _plain(name: object) -> str:
    return "".join(sign for sign in str(name) if sign.isprintable())[:LONGEST]


def _number(folder: Path, config: Mapping[str, Any], key: str, default: int) -> Any:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value == 0:
        raise InputError(f"{folder / CONFIG} has {key} {value!r}, expected a number; download the adapter again")
    return value


def _pattern(folder: Path, config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Patterns with their numbers, each one that compiles and ends soon."""
    found = config.get(key) or {}
    if not isinstance(found, dict):
        raise InputError(f"{folder / CONFIG} has a {key} that is no object; download the adapter again")
    for pattern in found:
        _number(folder, found, pattern, 0)
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(
                f"{folder / CONFIG} has the pattern {pattern!r} in {key}, which is none: {error}"
            ) from error
        repeats = sum(pattern.count(sign) for sign in "*+{")
        if len(pattern) > LONGEST or repeats > REPEATS or REPEATED_GROUP.search(pattern):
            raise InputError(f"{folder / CONFIG} has the pattern {pattern[:80]!r} in {key}, which may take for ever to "
                             "match; write the names out")  # fmt: skip
    return found


def _first(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that is the end of a name, as peft matches them."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)
