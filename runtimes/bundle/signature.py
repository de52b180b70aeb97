"""Signatures of bundles: Ed25519 over the exact bytes of the manifest, whose hashes cover every other file.

`lensmith.json.sig` is a JSON object of three texts: "algorithm", always "ed25519"; "public_key", 32 bytes, and
"signature", 64 bytes, both in base64. Keys are PEM files (PKCS #8 and SubjectPublicKeyInfo, as openssl writes them)
or the 32 raw bytes. A signature says who made a bundle, not that it is the newest: an older one of the same maker stays
valid.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from ...targets.errors import InputError, MissingExtra
from ..storage.reading import read_limited
from .manifest import MANIFEST

SIGNATURE = f"{MANIFEST}.sig"
KEY_BYTES, MOST_BYTES = 32, 10_000
PASSWORD = "LENSMITH_KEY_PASSWORD"  # in the environment: that of an encrypted private key
Key: TypeAlias = "str | os.PathLike[str] | bytes"  # the path of a key file, or its content


class SignatureEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a signature file."""

    algorithm: str
    public_key: str
    signature: str


def make_keys(private: Path, public: Path) -> None:
    """Write a new pair of keys as PEM files; the private one is for its owner alone. InputError where a file exists."""
    from_library = _library()
    key = from_library.ed25519.Ed25519PrivateKey.generate()
    coding = from_library.serialization
    secret = key.private_bytes(coding.Encoding.PEM, coding.PrivateFormat.PKCS8, coding.NoEncryption())
    known = key.public_key().public_bytes(coding.Encoding.PEM, coding.PublicFormat.SubjectPublicKeyInfo)
    for path in (private, public):
        if path.exists():
            raise InputError(f"{path} exists; a lost key cannot be made again, so choose another name.")
    for path, data, mode in ((private, secret, 0o600), (public, known, 0o644)):
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)


def sign(folder: Path, key: Key) -> Path:
    """Sign the manifest in a folder with a private key; the path of the signature. InputError for an unusable key."""
    private = _private_key(key)
    coding = _library().serialization
    public = private.public_key().public_bytes(coding.Encoding.Raw, coding.PublicFormat.Raw)
    made = SignatureEntry("ed25519", _text(public), _text(private.sign((folder / MANIFEST).read_bytes())))
    new = folder / f".{SIGNATURE}.new"
    new.write_bytes(_written(made))
    new.replace(folder / SIGNATURE)
    return folder / SIGNATURE


def check_signature(folder: Path, manifest: bytes, trusted_keys: Iterable[Key]) -> None:
    """Raise InputError unless one of the trusted public keys signed these bytes of a manifest."""
    library, path = _library(), folder / SIGNATURE
    if isinstance(trusted_keys, str | bytes | os.PathLike):
        raise InputError("trusted_keys is one key; expected a list of keys.")
    trusted = [_public_key(key) for key in trusted_keys]
    if not trusted:
        raise InputError("trusted_keys is empty, so no bundle could be opened; give the public key of its maker.")
    if path.is_symlink() or not path.is_file():
        raise InputError(f"{folder} is not signed: it has no {SIGNATURE}; ask its maker, or sign it: lensmith sign.")
    with open(path, "rb") as file:
        entry, public = _read(file.read(MOST_BYTES + 1), path)
    if public not in trusted:
        raise InputError(f"{folder} is signed with another key ({entry.public_key}) than the trusted ones.")
    try:
        found = library.ed25519.Ed25519PublicKey.from_public_bytes(public)
        found.verify(_bytes(entry.signature, 64, path), manifest)
    except library.InvalidSignature:
        raise InputError(f"{path} is not the signature of this {MANIFEST}, which was changed; copy it again.") from None


def _written(entry: SignatureEntry) -> bytes:
    """The bytes of a signature file, of which there is one form."""
    return msgspec.json.format(msgspec.json.encode(entry), indent=2) + b"\n"


def _read(data: bytes, path: Path) -> tuple[SignatureEntry, bytes]:
    try:
        entry = msgspec.json.decode(data, type=SignatureEntry)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a signature ({str(error)[:200]}); copy the bundle again.") from None
    if data != _written(entry):
        raise InputError(f"{path} is not as lensmith writes a signature; copy the bundle again.")
    if entry.algorithm != "ed25519":
        raise InputError(f"{path} has the algorithm {entry.algorithm[:40]!r}, expected 'ed25519'.")
    return entry, _bytes(entry.public_key, KEY_BYTES, path)


def _bytes(text: str, size: int, path: Path) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if len(data) != size or _text(data) != text:
        raise InputError(f"{path} has {text[:100]!r}, expected {size} bytes in base64; copy the bundle again.")
    return data


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _content(key: Key, kind: str) -> tuple[bytes, str]:
    """The bytes of a key, and what to call it."""
    if isinstance(key, bytes):
        return key, f"the {kind} key"
    if not isinstance(key, str | os.PathLike):
        raise InputError(f"a {kind} key is a {type(key).__name__}; expected the path of a PEM file, or its bytes.")
    return read_limited(key, MOST_BYTES, f"the path of a {kind} key"), str(key)


def _public_key(key: Key) -> bytes:
    """The 32 bytes of a public key."""
    library = _library()
    data, name = _content(key, "public")
    if len(data) == KEY_BYTES:
        return data
    if b"PRIVATE KEY" in data:
        raise InputError(f"{name} is a private key, which belongs to nobody but its owner; give the public one.")
    try:
        found = library.serialization.load_pem_public_key(data)
    except (ValueError, library.UnsupportedAlgorithm):
        found = None
    if not isinstance(found, library.ed25519.Ed25519PublicKey):
        raise InputError(f"{name} is no public key of Ed25519; expected PEM or 32 bytes: lensmith keygen makes one.")
    coding = library.serialization
    made: bytes = found.public_bytes(coding.Encoding.Raw, coding.PublicFormat.Raw)
    return made


def _private_key(key: Key) -> Any:
    library = _library()
    data, name = _content(key, "private")
    if len(data) == KEY_BYTES:
        return library.ed25519.Ed25519PrivateKey.from_private_bytes(data)
    password = os.environ.get(PASSWORD, "").encode() or None if b"ENCRYPTED" in data else None
    try:
        found = library.serialization.load_pem_private_key(data, password)
    except TypeError:
        raise InputError(f"{name} is encrypted; put its password into the environment as {PASSWORD}.") from None
    except (ValueError, library.UnsupportedAlgorithm):
        reason = f" with the password of {PASSWORD}" if password else ""
        raise InputError(f"{name} is no private key that can be read{reason}; expected PEM or 32 bytes.") from None
    if not isinstance(found, library.ed25519.Ed25519PrivateKey):
        raise InputError(f"{name} is no private key of Ed25519; make one: lensmith keygen.")
    return found


class _library:
    """What is used of the package cryptography; MissingExtra where it is not installed."""

    def __init__(self) -> None:
        try:
            from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
            from cryptography.hazmat.primitives import serialization
            from cryptography.hazmat.primitives.asymmetric import ed25519
        except ImportError:
            raise MissingExtra("a signature", "sign") from None
        self.InvalidSignature, self.UnsupportedAlgorithm = InvalidSignature, UnsupportedAlgorithm
        self.serialization, self.ed25519 = serialization, ed25519
