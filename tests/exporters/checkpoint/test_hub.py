"""Names on the hub, against a hub on the loopback interface: what is fetched, what is recorded, and what is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lensmith.exporters.checkpoint.hub import (
    is_name,
    located,
    located_adapter,
    repository_of,
)
from lensmith.targets.errors import InputError

from tests.helpers.extras import MAIN, run_without
from tests.helpers.hub import COMMIT, OLDER, TOKEN, Hub, running
from tests.helpers.lora_data import FOLDER
from tests.paths import TINY

BASE = TINY / "qwen3_vl"
NEVER = ("pytorch_model.bin", "modeling.py", "training.pt", "consolidated.safetensors", "onnx/model.safetensors",
         "original/params.json", "notes.md")  # fmt: skip
TEXTS = ("LICENSE", "LICENCE.md")
ASK = """
import json, sys
from pathlib import Path
from lensmith.exporters.checkpoint.hub import located, located_adapter
from lensmith.targets.errors import InputError
for name, revision in json.loads(sys.argv[1]):
    try:
        print(json.dumps(str(located(Path(name), revision))))
    except InputError as error:
        print(json.dumps({"error": str(error)}))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A repository of the trained model in two commits, and one of an adapter."""
    pytest.importorskip("huggingface_hub", reason="needs lensmith[hub]")
    root = tmp_path_factory.mktemp("hub")
    for commit in (COMMIT, OLDER):
        shutil.copytree(BASE, root / commit)
        (root / commit / "README.md").write_text(f"---\nlicense: mit\n---\n{commit}")
        for name in TEXTS:
            (root / commit / name).write_text(f"{name} of {commit}")
        for name in NEVER:
            (root / commit / name).parent.mkdir(exist_ok=True)
            (root / commit / name).write_bytes(b"{}")
    adapter = root / "adapter"
    shutil.copytree(FOLDER / "patterns", adapter)
    shutil.copytree(FOLDER / "patterns", adapter / "checkpoint-7")
    repositories = {"tiny/open": {commit: root / commit for commit in (COMMIT, OLDER)}, "tiny/lora": {COMMIT: adapter}}
    with running(Hub(repositories)) as made:
        yield made


def environment(hub: Hub, cache: Path, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**kept, "PYTHONPATH": path, "HF_ENDPOINT": hub.url, "HF_HOME": str(cache),
            "NO_PROXY": "127.0.0.1", **more}  # fmt: skip


def ask(asked: list[tuple[str, str | None]], folder: Path, env: dict[str, str]) -> list[Any]:
    ran = subprocess.run([sys.executable, "-c", ASK, json.dumps(asked)], cwd=folder, env=env, capture_output=True,
                         text=True, timeout=300)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_names_revisions_and_what_is_wrong(hub: Hub, tmp_path: Path) -> None:
    hub.asked.clear()
    (tmp_path / "tiny").mkdir()
    asked = [("tiny/open", None), ("tiny/open", "v1"), ("tiny/open", "v2"), ("tiny/closed", None), ("tiny/gated", None)]
    local, *_ = ask(asked[:1], tmp_path, environment(hub, tmp_path / "cache"))
    assert local == "tiny/open"  # its owner is a folder here, so it is a local path that is wrong
    assert not hub.asked
    (tmp_path / "tiny").rmdir()
    newest, older, *wrong = ask(asked, tmp_path, environment(hub, tmp_path / "cache"))
    assert repository_of(Path(newest)) == {"repository": "tiny/open", "commit": COMMIT}
    assert repository_of(Path(older)) == {"repository": "tiny/open", "commit": OLDER}
    there = {p.name for p in BASE.iterdir() if p.is_file()} | {"README.md", *TEXTS}
    assert hub.fetched() == there
    assert {p.relative_to(newest).as_posix() for p in Path(newest).rglob("*")} == there
    messages = [answer["error"] for answer in wrong]
    assert "has no revision 'v2'; check --hub-revision" in messages[0]
    assert "tiny/closed is no local folder, and as a repository it is not on the hub, or private" in messages[1]
    assert "is gated: accept its terms on the hub" in messages[2]
    assert all("\n" not in message for message in messages)


def test_cache_offline_and_tokens(hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (found,) = ask([("tiny/gated", None)], tmp_path, environment(hub, cache, HF_TOKEN=TOKEN))
    assert Path(found).is_dir()
    assert f"Bearer {TOKEN}" in hub.tokens
    hub.asked.clear()
    offline = environment(hub, cache, HF_HUB_OFFLINE="1")
    again, missing = ask([("tiny/gated", None), ("tiny/open", None)], tmp_path, offline)
    assert again == found
    assert not hub.asked
    assert "is not in the cache, and the hub cannot be reached (offline?)" in missing["error"]
    nowhere = {**environment(hub, cache), "HF_ENDPOINT": "http://127.0.0.1:9"}
    again, missing = ask([("tiny/gated", None), ("tiny/open", None)], tmp_path, nowhere)
    assert again == found
    assert "the hub cannot be reached" in missing["error"]


def test_export_records_repository_and_commit(hub: Hub, tmp_path: Path) -> None:
    hub.asked.clear()
    env = environment(hub, tmp_path / "cache")
    options = ["--adapter", "tiny/lora", "--hub-revision", "v1", "--golden", "never", "--json"]
    command = [sys.executable, "-m", "lensmith.cli", "export", "tiny/open", "-o", "bundle", *options]
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    source = json.loads((tmp_path / "bundle" / "lensmith.json").read_text())["source"]
    assert source["name"] == "tiny/open"
    assert source["hub"] == {"repository": "tiny/open", "commit": OLDER}
    assert source["adapter_hub"] == {"repository": "tiny/lora", "commit": COMMIT}
    assert source["license"] == "mit"
    assert "adapter_model.safetensors" in hub.fetched()
    assert not any(name.startswith("checkpoint-7/") for name in hub.fetched())
    assert str(tmp_path) not in json.dumps(source)


def test_a_plan_fetches_no_weights(hub: Hub, tmp_path: Path) -> None:
    """And what builds the bundle later fetches the rest."""
    hub.asked.clear()
    env = environment(hub, tmp_path / "cache")
    command = [sys.executable, "-m", "lensmith.cli", "plan", "tiny/open", "--target", "raspberry-pi-5", "--json"]
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    plan = json.loads(ran.stdout)
    assert (plan["architecture"], plan["device"]["fits"]) == ("qwen3_vl", True)
    assert plan["parameters"] > 1_000_000
    assert not any(name.endswith(".safetensors") for name in hub.fetched())
    (whole,) = ask([("tiny/open", None)], tmp_path, env)
    assert list(Path(whole).glob("*.safetensors"))


def test_local_folders_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny" / "open").mkdir(parents=True)
    assert located(Path("tiny/open"), None) == Path("tiny/open")
    for path in ("tiny/other", "one", "a/b/c", "/a/b", "../a/b", "~/b"):
        assert located(Path(path), None) == Path(path)
    with pytest.raises(InputError, match="--hub-revision main is of a repository on the hub, and tiny/open is a local"):
        located(Path("tiny/open"), "main")


@pytest.mark.parametrize(
    ("spelled", "meant", "revision"),
    [("tiny/open@v1", "tiny/open", "v1"), ("tiny/open/tree/a/b", "tiny/open", "a/b"),
     ("hf.co/tiny/open", "tiny/open", ""),
     ("https://huggingface.co/tiny/open/tree/main", "tiny/open", "main")],
)  # fmt: skip
def test_other_spellings_of_names(
    spelled: str, meant: str, revision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"given as {meant}{f' --hub-revision {revision}' if revision else ''}$"):
        located(Path(spelled), None)
    with pytest.raises(InputError, match=f"given as {meant}{f'; .*, not from {revision}' if revision else ''}$"):
        located_adapter(Path(spelled))
    place = tmp_path / spelled
    place.mkdir(parents=True)  # which a local folder may be called
    assert located(Path(spelled), None) == Path(spelled)


def test_what_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for name in ("Qwen/Qwen3.5-2B", "a/b", "o_w-n.er/n.a_m-e"):
        assert is_name(Path(name)), name
    for name in ("here", "here/model", "a", "a/b/c", "/a/b", "a/b c", "a/ü:"):
        assert not is_name(Path(name)), name


@pytest.mark.parametrize(
    ("folder", "repository"),
    [("models--Qwen--Qwen3.5-2B/snapshots/c0", "Qwen/Qwen3.5-2B"), ("models--a--b--c/snapshots/c0", "a/b--c"),
     ("datasets--a--b/snapshots/c0", None), ("models--a--b/blobs/c0", None), ("models--a--b/snapshots", None),
     ("snapshots/c0", None)],
)  # fmt: skip
def test_repositories_of_folders_in_the_cache(folder: str, repository: str | None) -> None:
    found = repository_of(Path("/cache/hub") / folder)
    assert found == (None if repository is None else {"repository": repository, "commit": "c0"})


def test_without_huggingface_hub(tmp_path: Path) -> None:
    ran = run_without(("huggingface_hub",), MAIN, "plan", "no-such-owner/model")
    assert ran.returncode == 2
    assert "pip install 'lensmith[hub]'" in ran.stderr
