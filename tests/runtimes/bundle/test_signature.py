"""Signed bundles: one changed byte, a missing, foreign or damaged signature, and nothing is opened."""

from __future__ import annotations

import base64
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import lensmith.runtimes.bundle.opening
import pytest
from lensmith.runtimes import load
from lensmith.runtimes.bundle.opening import MANIFEST, open_bundle
from lensmith.runtimes.bundle.signature import (
    PASSWORD,
    SIGNATURE,
    make_keys,
    sign,
)
from lensmith.runtimes.generation.loading import open_loaded
from lensmith.targets.errors import InputError

from tests.helpers.extras import Ran

pytest.importorskip("cryptography", reason="needs lensmith[sign]")
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    pair = tmp_path / "maker.key", tmp_path / "maker.key.pub"
    make_keys(*pair)
    return pair


@pytest.fixture
def signed(tiny_bundle: Path, tmp_path: Path, keys: tuple[Path, Path]) -> Path:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    sign(bundle, keys[0])
    return bundle


def test_the_owner_of_a_key_is_trusted(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    public = serialization.load_pem_public_key(keys[1].read_bytes())
    raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    (tmp_path / "raw").write_bytes(raw)
    make_keys(tmp_path / "other", tmp_path / "other.pub")
    for trusted in ([keys[1]], [str(keys[1])], [keys[1].read_bytes()], [raw], [tmp_path / "raw"],
                    [tmp_path / "other.pub", keys[1]]):  # fmt: skip
        assert open_bundle(signed, trusted_keys=trusted).path == signed
    assert load(signed, trusted_keys=[keys[1]]).bundle.path == signed
    assert stat.S_IMODE(keys[0].stat().st_mode) == 0o600
    with pytest.raises(InputError, match="exists; a lost key cannot be made again"):
        make_keys(*keys)


def test_the_format_is_what_is_documented(signed: Path, keys: tuple[Path, Path]) -> None:
    entry = json.loads((signed / SIGNATURE).read_text())
    assert sorted(entry) == ["algorithm", "public_key", "signature"]
    assert entry["algorithm"] == "ed25519"
    key = ed25519.Ed25519PublicKey.from_public_bytes(base64.b64decode(entry["public_key"]))
    key.verify(base64.b64decode(entry["signature"]), (signed / MANIFEST).read_bytes())


def test_any_changed_byte_is_noticed(signed: Path, keys: tuple[Path, Path]) -> None:
    for path in sorted(item for item in signed.rglob("*") if item.is_file()):
        data = path.read_bytes()
        for place in (0, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            with pytest.raises(InputError):
                open_bundle(signed, trusted_keys=[keys[1]])
        path.write_bytes(data + b" ")
        with pytest.raises(InputError):
            open_bundle(signed, trusted_keys=[keys[1]])
        path.write_bytes(data)
    open_bundle(signed, trusted_keys=[keys[1]])


def test_large_files_are_compared_whole(signed: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lensmith.runtimes.bundle.opening.HASHED_BYTES", 10)
    path = signed / "decoder.data"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    open_bundle(signed)
    with pytest.raises(InputError, match="was changed"):
        open_bundle(signed, trusted_keys=[keys[1]])


def test_bundles_that_are_not_signed_by_a_trusted_key(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    make_keys(tmp_path / "other", tmp_path / "other.pub")
    with pytest.raises(InputError, match="is signed with another key"):
        open_bundle(signed, trusted_keys=[tmp_path / "other.pub"])
    entry = json.loads((signed / SIGNATURE).read_text())
    sign(signed, tmp_path / "other")
    foreign = json.loads((signed / SIGNATURE).read_text())
    (signed / SIGNATURE).write_text(json.dumps({**entry, "signature": foreign["signature"]}, indent=2) + "\n")
    with pytest.raises(InputError, match="is not the signature of this"):
        open_bundle(signed, trusted_keys=[keys[1]])
    key, last = entry["public_key"][:-2], entry["public_key"][-2]
    assert last in "AEIMQUYcgkosw048"  # 4 bits of the key and 2 of nothing
    damaged = {
        "bits of nothing": {**entry, "public_key": f"{key}{chr(ord(last) + 1)}="},
        "extra": {**entry, "signatures": [foreign]},
        "algorithm": {**entry, "algorithm": "none"},
        "short": {**entry, "signature": entry["signature"][4:]},
        "spaces": {**entry, "public_key": entry["public_key"] + "\n"},
        "list": [entry, foreign],
        "number": {**entry, "public_key": 1},
    }
    for content in damaged.values():
        (signed / SIGNATURE).write_text(json.dumps(content, indent=2) + "\n")
        with pytest.raises(InputError):
            open_bundle(signed, trusted_keys=[keys[1]])
    for data in (b"", b"\xff", b"[" * 100_000, b"x" * 100_000):
        (signed / SIGNATURE).write_bytes(data)
        with pytest.raises(InputError, match="is not a signature"):
            open_bundle(signed, trusted_keys=[keys[1]])
    (signed / SIGNATURE).unlink()
    with pytest.raises(InputError, match=r"is not signed: it has no lensmith\.json\.sig"):
        open_bundle(signed, trusted_keys=[keys[1]])
    (signed / SIGNATURE).symlink_to(tmp_path / "maker.key.pub")
    with pytest.raises(InputError, match="is not signed"):
        open_bundle(signed, trusted_keys=[keys[1]])


def test_links_and_files_that_nobody_signed(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    (signed / "mtp.onnx").write_bytes(b"")
    with pytest.raises(InputError, match="is not listed"):
        open_bundle(signed, trusted_keys=[keys[1]])
    (signed / "mtp.onnx").unlink()
    (signed / "decoder.data").rename(tmp_path / "elsewhere")
    (signed / "decoder.data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="leads out of the bundle through a link"):
        open_bundle(signed, trusted_keys=[keys[1]])


def test_keys_that_are_none(
    signed: Path, keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve = ec.generate_private_key(ec.SECP256R1())
    coding = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    if hasattr(os, "mkfifo"):  # a pipe that nobody writes into
        os.mkfifo(tmp_path / "pipe")
    others: dict[str, object] = {
        "pipe": [tmp_path / "pipe"],
        "a public key is a int": [0],
        "is a private key": [keys[0]],
        "is no public key of Ed25519": [curve.public_key().public_bytes(*coding)],
        "expected PEM or 32 bytes": [b"x"],
        "cannot be read": [tmp_path / "absent"],
        "trusted_keys is empty": [],
        "trusted_keys is one key": keys[1],
    }
    for message, trusted in others.items():
        with pytest.raises(InputError, match=message):
            open_bundle(signed, trusted_keys=trusted)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is no private key that can be read"):
        sign(signed, keys[1])
    locked = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"word")
    )
    monkeypatch.delenv(PASSWORD, raising=False)
    with pytest.raises(InputError, match=f"is encrypted; put its password into the environment as {PASSWORD}"):
        sign(signed, locked)
    monkeypatch.setenv(PASSWORD, "wrong")
    with pytest.raises(InputError, match="with the password of"):
        sign(signed, locked)
    monkeypatch.setenv(PASSWORD, "word")
    assert sign(signed, locked).name == SIGNATURE


def test_commands(tiny_bundle: Path, tmp_path: Path, cli: Callable[..., Ran]) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    key = tmp_path / "maker.key"
    assert cli("keygen", "-o", key).out == f"{key}.pub\n"
    assert cli("run", bundle, "Hi", "--key", f"{key}.pub").code == 2
    assert cli("sign", bundle, "--key", key).code == 0
    assert cli("run", bundle, "Hi", "--max-new-tokens", "1", "--key", f"{key}.pub").code == 0
    (bundle / "tokenizer.json").write_text("{}")
    assert cli("sign", bundle, "--key", key).code == 2
    assert cli("verify", bundle, "--key", f"{key}.pub").code == 2


def test_files_that_are_replaced_while_a_bundle_is_loaded_are_noticed(signed: Path, keys: tuple[Path, Path]) -> None:
    for name in ("decoder.data", "tokenizer.json", "decoder.onnx"):
        opened = open_bundle(signed, trusted_keys=[keys[1]])
        data = (signed / name).read_bytes()
        (signed / "other").write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if name.endswith(".data") else data)
        os.replace(signed / "other", signed / name)
        with pytest.raises(InputError, match=rf"{name} was changed while the bundle was loaded"):
            open_loaded(opened, threads=1)
        (signed / name).write_bytes(data)
    assert open_loaded(open_bundle(signed, trusted_keys=[keys[1]]), threads=1)


def test_a_bundle_that_is_opened_again_is_checked_as_before(
    signed: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a forked process does: all hashes are compared, also those behind the beginning of a large file."""
    monkeypatch.setattr(lensmith.runtimes.bundle.opening, "HASHED_BYTES", 1000)
    trusted, plain = open_bundle(signed, trusted_keys=[keys[1]]), open_bundle(signed)
    assert trusted.again().content == trusted.content
    with open(signed / "decoder.data", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    assert plain.again().content == plain.content
    with pytest.raises(InputError, match=r"decoder\.data was changed"):
        trusted.again()
