"""Unusable input: one sentence on stderr that names the thing and the next step, exit code 2, nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lensmith.runtimes.prompt.template import ChatTemplate

from tests.helpers.extras import Ran, run_without

Cli = Callable[..., Ran]
SHARD, INDEX, SINGLE = "model-00001-of-00002.safetensors", "model.safetensors.index.json", "model.safetensors"
NORM = "model.language_model.norm.weight"


def assert_one_sentence(ran: Ran, thing: str, next_step: str, code: int = 2) -> None:
    assert (ran.code, ran.err.count("\n")) == (code, 1), ran.err
    assert ran.err.startswith("error: ")
    assert thing in ran.err
    assert next_step in ran.err
    assert "Traceback" not in ran.err + ran.out


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def sharded(folder: Path, **more: str) -> None:
    """Rename the weights to a first shard, and list all of its tensors and `more` in an index."""
    content = (folder / SINGLE).read_bytes()
    names = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    (folder / SINGLE).rename(folder / SHARD)
    where = {name: SHARD for name in names if name != "__metadata__"} | more
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))


def missing_shard(folder: Path) -> None:
    sharded(folder, **{"lm_head.weight": "model-00002-of-00002.safetensors"})


def truncated_shard(folder: Path) -> None:
    sharded(folder)
    os.truncate(folder / SHARD, 1_000_000)


def absent_tensor(folder: Path) -> None:
    sharded(folder, **{"model.extra.weight": SHARD})


def config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", change)


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


CHECKPOINTS = {
    "missing shard": (missing_shard, "model-00002-of-00002.safetensors", "download it again"),
    "truncated shard": (truncated_shard, SHARD, "download it again"),
    "index names an absent tensor": (absent_tensor, "model.extra.weight", "copy both files again"),
    "unknown architecture": (config(lambda c: c.update(model_type="qwen3_vk")), "qwen3_vk", "did you mean 'qwen3_vl'?"),
    "hidden_act": (config(lambda c: c["text_config"].update(hidden_act="relu")), "hidden_act", "expected 'silu'"),
    "rope_type": (config(lambda c: c["text_config"]["rope_scaling"].update(rope_type="yarn")), "'yarn'", "expected"),
    "sliding window": (config(lambda c: c["text_config"].update(use_sliding_window=True)), "use_sliding", "expected"),
    "wrong size": (config(lambda c: c["text_config"].update(vocab_size=64)), "embed_tokens", "do not belong together"),
    "missing value": (config(lambda c: c["vision_config"].pop("depth")), "depth", "required"),
    "unknown token": (config(lambda c: c.update(image_token_id=999_999)), "999999", "do not belong together"),
    "config is not JSON": (lambda f: (f / "config.json").write_text("{"), "config.json", "download the file again"),
    "no config": (without("config.json"), "config.json", "expected the folder"),
    "no tokenizer": (without("tokenizer.json"), "tokenizer.json", "save_pretrained"),
    "no template": (without("chat_template.jinja"), "chat template", "copy it"),
    "pickled weights": (lambda f: (f / SINGLE).rename(f / "pytorch_model.bin"), "pytorch_model.bin", "safe_serial"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHECKPOINTS)
@pytest.mark.parametrize("command", ["export", "plan"])
def test_unusable_checkpoint(cli: Cli, tiny_checkpoint: Path, tmp_path: Path, command: str, case: str) -> None:
    damage, thing, next_step = CHECKPOINTS[case]
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    damage(folder)
    ran = cli(command, folder, *(("-o", tmp_path / "out", "--golden", "never") if command == "export" else ()))
    assert_one_sentence(ran, thing, next_step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def png(width: int, height: int) -> bytes:
    """A PNG whose header promises much and whose data hold nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


IMAGES = {
    "not an image": (b"just text", "expected a whole JPEG"),
    "empty": (b"", "expected an image file"),
    "decompression bomb": (png(50_000, 50_000), "scale it down"),
    "over the limit of pixels": (png(14_000, 14_000), "scale it down"),
    "damaged": (png(300, 300), "expected a whole JPEG"),
    "too narrow": (png(2, 2000), "crop it"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_unusable_image(cli: Cli, tiny_bundle: Path, tmp_path: Path, case: str) -> None:
    content, next_step = IMAGES[case]
    (tmp_path / "picture.png").write_bytes(content)
    thing = "200" if case == "too narrow" else "picture.png"
    assert_one_sentence(cli("run", tiny_bundle, "What?", "--image", tmp_path / "picture.png"), thing, next_step)


def test_huge_image_file(cli: Cli, tiny_bundle: Path, tmp_path: Path) -> None:
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(1 << 30)  # sparse
    assert_one_sentence(cli("run", tiny_bundle, "What?", "--image", tmp_path / "huge.png"), "huge.png", "smaller file")


COMMANDS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "missing question": (("run", "BUNDLE"), "QUESTION", "lensmith run --help"),
    "missing image": (("run", "BUNDLE", "Hi", "--image", "no.png"), "no.png", "expected the path of an image"),
    "prompt over the context": (("run", "BUNDLE", "word " * 50, "--context", "40"), "the context holds 40", "shorten"),
    "context over the bundle's": (("run", "BUNDLE", "Hi", "--context", "999999"), "999999", "limit of 1 to"),
    "pixels over the bundle's": (("run", "BUNDLE", "Hi", "--max-pixels", "99999999"), "99999999", "choose a value"),
    "sampling": (("run", "BUNDLE", "Hi", "--sample", "--temperature", "0"), "temperature 0", "leave it out"),
    "empty stop": (("run", "BUNDLE", "Hi", "--stop", ""), "stop", "expected"),
    "not a bundle": (("run", "CHECKPOINT", "Hi"), "is not a bundle", "/tiny -o BUNDLE"),
    "no folder": (("inspect", "nowhere"), "nowhere is not a bundle: there is no such folder", "export CHECKPOINT -o"),
    "neither": (("inspect", "."), ". is not a bundle: it has no lensmith.json", "export CHECKPOINT -o"),
    "not a checkpoint": (("plan", "BUNDLE"), "is a bundle and has no config.json", "expected the folder"),
    "unknown precision": (("plan", "CHECKPOINT", "--precision", "int5"), "int5", "'int4'"),
    "unknown group size": (("plan", "CHECKPOINT", "--group-size", "48"), "48", "'128'"),
    "unknown target": (("plan", "CHECKPOINT", "--target", "cpx"), "cpx", "did you mean 'cpu'?"),
    "context of an export": (("plan", "CHECKPOINT", "--context", "99999999"), "99999999", "range of 1 to"),
    "pixels of an export": (("plan", "CHECKPOINT", "--max-pixels", "1"), "1", "range of"),
    "unknown architecture": (("synth", "qwen3-vl-3b", "-o", "x"), "qwen3-vl-3b", "did you mean 'qwen3-vl-2b'?"),
    "unknown command": (("exprot",), "exprot", "lensmith --help"),
    "another's command": (("calibrate", "CHECKPOINT"), "no command 'calibrate'", "export CHECKPOINT -o BUNDLE --calib"),
    "features of an answer": (("run", "BUNDLE", "Hi", "-o", "x.npz"), "writes no features", "leave out --out"),
    "no golden traces": (("verify", "BUNDLE"), "golden", "--golden always"),
}  # fmt: skip


@pytest.mark.parametrize("case", COMMANDS)
def test_unusable_command(cli: Cli, tiny_checkpoint: Path, tiny_bundle: Path, case: str) -> None:
    arguments, thing, next_step = COMMANDS[case]
    names = {"BUNDLE": tiny_bundle, "CHECKPOINT": tiny_checkpoint}
    assert_one_sentence(cli(*(names.get(argument, argument) for argument in arguments)), thing, next_step)


TEMPLATES = {
    "attribute escape": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "endless loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "syntax error": "{% for %}",
    "refusal": "{{ raise_exception('no images please') }}",
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_hostile_template(
    cli: Cli, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(ChatTemplate.__init__, "__kwdefaults__", {"max_seconds": 0.3})  # of each of several renderings
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    (folder / "chat_template.jinja").write_text(TEMPLATES[case])
    exported = cli("export", folder, "-o", tmp_path / "bundle", "--golden", "never")
    ran = exported if exported.code else cli("run", tmp_path / "bundle", "Hi")
    assert_one_sentence(ran, "chat template", "template")


def outside(folder: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["files"]["../secret"] = manifest["files"].pop("tokenizer.json")

    edit(folder / "lensmith.json", change)


def flipped(folder: Path) -> None:
    with open(folder / "decoder.data", "r+b") as file:
        file.seek(12345)
        byte = file.read(1)[0]
        file.seek(12345)
        file.write(bytes([byte ^ 1]))


def shorter(folder: Path) -> None:
    os.truncate(folder / "vision_encoder.data", 1000)


BUNDLES = {
    "path outside": (outside, "../secret", "export the bundle again"),
    "changed byte": (flipped, "decoder.data", "copy or export"),
    "truncated file": (shorter, "vision_encoder.data", "copy or export"),
    "missing file": (without("decoder.onnx"), "decoder.onnx", "copy or export"),
    "newer format": (lambda f: edit(f / "lensmith.json", lambda m: m.update(format_version=99)), "99", "upgrade"),
    "missing section": (lambda f: edit(f / "lensmith.json", lambda m: m.pop("limits")), "limits", "export the bundle"),
}  # fmt: skip


@pytest.mark.parametrize("case", BUNDLES)
@pytest.mark.parametrize("command", ["run", "inspect", "verify"])
def test_damaged_bundle(cli: Cli, tiny_bundle: Path, tmp_path: Path, command: str, case: str) -> None:
    damage, thing, next_step = BUNDLES[case]
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    damage(folder)
    assert_one_sentence(cli(command, folder, *(("Hi",) if command == "run" else ())), thing, next_step)


def test_full_disk_leaves_nothing(
    cli: Cli, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    ran = cli("export", tiny_checkpoint, "-o", tmp_path / "bundle")
    assert_one_sentence(ran, str(tmp_path), "free some space")
    assert list(tmp_path.iterdir()) == []


def test_file_size_limit_of_the_system(tiny_checkpoint: Path, tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000));"
    main = limit + "from lensmith.cli import main; main(sys.argv[1:])"
    done = run_without((), main, "export", tiny_checkpoint, "-o", tmp_path / "bundle", "--golden", "never")
    assert_one_sentence(Ran(done.returncode, done.stdout, done.stderr), "File too large", "check")
    assert list(tmp_path.iterdir()) == []


def test_folder_in_use(cli: Cli, tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("diary")
    ran = cli("export", tiny_checkpoint, "-o", tmp_path / "letters", "--golden", "never")
    assert_one_sentence(ran, "letters", "choose another folder")
    assert (tmp_path / "letters" / "dear.txt").read_text() == "diary"


@pytest.mark.parametrize(("raised", "code", "thing", "next_step"), [
    (KeyError("boom"), 3, "KeyError", "report it"), (KeyboardInterrupt(), 130, "stopped", "run again"),
    (MemoryError(), 2, "memory", "smaller"), (PermissionError(errno.EACCES, "Permission denied", "a/b"), 2, "a/b",
                                              "rights"),
])  # fmt: skip
def test_other_failures(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, thing: str, next_step: str
) -> None:
    from lensmith.targets import profile

    def fail() -> None:
        raise raised

    monkeypatch.setattr(profile, "target_names", fail)
    assert_one_sentence(cli("targets"), thing, next_step, code)
    monkeypatch.setenv("LENSMITH_DEBUG", "1")
    with pytest.raises(type(raised)):
        cli("targets")
