"""Checkpoints and adapters by their names on the Hugging Face hub: fetched into its cache, and only what is read.

huggingface_hub decides about the cache, tokens, the endpoint and offline mode, by its usual environment variables.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from ...targets.errors import InputError, MissingExtra

NAME = re.compile(r"[\w.-]+/[\w.-]+")
# How others write a repository with its revision.
SPELLED = re.compile(rf"(?:(?:https?:/+)?(?:huggingface|hf)\.co/)?({NAME.pattern})(?:(?:@|/tree/)([\w./-]+))?/?")
WEIGHTS = "*.safetensors"
WANTED = ("*.json", "*.jinja", WEIGHTS, "*.txt", "README.md", "LICENSE*", "LICENCE*")
# The same weights once more, in other formats or halfway through training; and never code or pickles.
UNWANTED = ("*.bin", "*.pt", "*.pth", "*.py", "consolidated*", "onnx/*", "openvino/*", "original/*")
TRAINING = ("checkpoint-*/*",)  # beside a finished adapter
REASONS = {  # by the names of huggingface_hub's errors, the first that an error is
    "GatedRepoError": "is gated: accept its terms on the hub, and log in with `hf auth login`",
    "RepositoryNotFoundError": "is not on the hub, or private; check the name, and log in with `hf auth login`",
    "RevisionNotFoundError": "has no revision {revision!r}; check --hub-revision",
    "IncompleteSnapshotError": "is in the cache only in part, and the hub cannot be reached; go online and try again",
    "LocalEntryNotFoundError": "is not in the cache, and the hub cannot be reached (offline?); go online, or give a "
                               "local folder",
    "HFValidationError": "is no name of a repository; expected OWNER/NAME",
}  # fmt: skip


def is_name(path: Path) -> bool:
    """Whether a path means a repository: OWNER/NAME, with no such folder here, nor a folder of that owner."""
    return bool(NAME.fullmatch(path.as_posix())) and not path.exists() and not path.parent.exists()


def located(path: Path, revision: str | None, *, outline: bool = False) -> Path:
    """A local path as it is; for a name on the hub the folder in its cache, which is fetched if need be.

    With `outline` weights are not fetched.
    InputError in one sentence for repositories that are not found, gated or out of reach, and for a revision of a local
    folder.
    """
    if is_name(path):
        return _fetched(path.as_posix(), revision, (*UNWANTED, WEIGHTS) if outline else UNWANTED)
    _refuse_spelled(path, " --hub-revision {}")
    if revision is not None:
        raise InputError(f"--hub-revision {revision} is of a repository on the hub, and {path} is a local path; "
                         "leave it out")  # fmt: skip
    return path


def located_adapter(path: Path | None) -> Path | None:
    """The same for an adapter, of its main branch and without the steps of its training."""
    if path is not None and is_name(path):
        return _fetched(path.as_posix(), None, (*UNWANTED, *TRAINING))
    if path is not None:
        _refuse_spelled(path, "; adapters come from the main branch alone, not from {}")
    return path


def _refuse_spelled(path: Path, about_revision: str) -> None:
    """InputError for a repository that is spelled in another way than as OWNER/NAME."""
    found = SPELLED.fullmatch(path.as_posix())
    if found and found[0] != found[1] and is_name(Path(found[1])) and not path.exists():
        more = about_revision.format(found[2]) if found[2] else ""
        raise InputError(f"{path} is no local folder, and a repository on the hub is given as {found[1]}{more}")


def _fetched(name: str, revision: str | None, unwanted: tuple[str, ...]) -> Path:
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise MissingExtra(f"{name} is no folder here, and fetching it from the hub", "hub") from error
    if not sys.stderr.isatty():
        importlib.import_module("huggingface_hub.utils").disable_progress_bars()
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=WANTED, ignore_patterns=unwanted))
    except Exception as error:  # the HTTP client beneath has exceptions of its own, which differ between versions
        raise InputError(f"{name} is no local folder, and as a repository it {_reason(error, revision)}") from error


def _reason(error: Exception, revision: str | None) -> str:
    kinds = [kind.__name__ for kind in type(error).__mro__]
    told = next((text for name, text in REASONS.items() if name in kinds), None)
    if told is not None:
        return told.format(revision=revision)
    return f"cannot be fetched from the hub ({str(error).strip().splitlines()[0][:200] or kinds[0]}); try again"


def repository_of(folder: Path) -> dict[str, str] | None:
    """The repository and commit of a folder in the hub's cache; None for any other folder."""
    *_, repository, kind, commit = ("", "", "", *folder.absolute().parts)
    if kind != "snapshots" or not repository.startswith("models--"):
        return None
    return {"repository": repository.removeprefix("models--").replace("--", "/", 1), "commit": commit}
