"""Damaged GGUF files of any kind: refused in one sentence by lensmith's own reading of them, without llama.cpp."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lensmith.exporters.export import Options, export, prepare
from lensmith.runtimes.bundle import Bundle, open_bundle
from lensmith.runtimes.llamacpp.check import check_decoder, check_vision
from lensmith.runtimes.llamacpp.header import read_gguf
from lensmith.targets.errors import InputError

TINY = Path(__file__).parent / "tiny_vlm"
Check = Callable[[Path], object]
CHECKS: dict[str, Check] = {"model.gguf": check_decoder, "mmproj.gguf": lambda path: check_vision(path, 128)}
FAMILIES = ("qwen3_vl", "qwen3_5", "llava")
# Numbers that break what trusts them.
EXTREMES = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    made = {}
    for name in FAMILIES:
        job = prepare(TINY / name, Options(format="gguf", precision="f16"))
        made[name] = export(job, tmp_path_factory.mktemp(name) / "bundle", golden="never")
    return made


@pytest.fixture
def data(bundles: dict[str, Bundle], family: str, name: str) -> bytes:
    return bundles[family].file(name).read_bytes()


def header_bytes(bundle: Bundle, name: str) -> int:
    """Where the data of tensors begin."""
    return min(entry.begin for entry in read_gguf(bundle.file(name)).tensors.values())


def refused(content: bytes, name: str, folder: Path) -> bool:
    """Whether the loader refuses a file with this content, in one sentence; any other error fails the test."""
    path = folder / name
    path.write_bytes(content)
    try:
        CHECKS[name](path)
    except InputError as error:
        told = str(error)
    else:
        return False
    assert "\n" not in told
    assert name in told
    return True


families = pytest.mark.parametrize("family", FAMILIES)
files = pytest.mark.parametrize("name", list(CHECKS))
many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@families
@files
@many
@given(st.data())
def test_files_that_end_early_or_late_are_refused(data: bytes, name: str, tmp_path: Path, draw: st.DataObject) -> None:
    cut = draw.draw(st.integers(0, len(data) - 1))
    assert refused(data[:cut], name, tmp_path)
    assert refused(data + bytes(draw.draw(st.integers(1, 100))), name, tmp_path)


@families
@files
@many
@given(st.data())
def test_lost_or_doubled_bytes_of_a_header_are_refused(
    bundles: dict[str, Bundle], family: str, data: bytes, name: str, tmp_path: Path, draw: st.DataObject
) -> None:
    end = header_bytes(bundles[family], name)
    at, count = draw.draw(st.integers(0, end - 1)), draw.draw(st.integers(1, 40))
    assert refused(data[:at] + data[at + count :], name, tmp_path)
    assert refused(data[: at + count] + data[at:], name, tmp_path)


@families
@files
@many
@given(st.data())
def test_changed_bytes_of_a_header_are_refused_or_harmless(
    bundles: dict[str, Bundle], family: str, data: bytes, name: str, tmp_path: Path, draw: st.DataObject
) -> None:
    """No error but the loader's own; test_llamacpp.py shows that llama.cpp takes what is left."""
    end, changed = header_bytes(bundles[family], name), bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        at, kind = draw.draw(st.integers(0, end - 8)), draw.draw(st.sampled_from(["<Q", "<I", "<B"]))
        value = draw.draw(st.one_of(st.sampled_from(EXTREMES), st.integers(0, 255))) % 256 ** struct.calcsize(kind)
        changed[at : at + struct.calcsize(kind)] = struct.pack(kind, value)
    refused(bytes(changed), name, tmp_path)


@families
@files
@many
@given(st.data())
def test_bundles_refuse_every_changed_bit(
    bundles: dict[str, Bundle], family: str, data: bytes, name: str, tmp_path: Path, draw: st.DataObject
) -> None:
    """Header, metadata or tensors, texts among them: the hashes of the manifest do not fit."""
    bundle = bundles[family]
    at, bit = draw.draw(st.integers(0, len(data) - 1)), draw.draw(st.integers(0, 7))
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    for other in bundle.path.iterdir():
        if not (tmp_path / other.name).exists() and other.name != name:
            (tmp_path / other.name).symlink_to(other) if other.is_dir() else (tmp_path / other.name).hardlink_to(other)
    (tmp_path / name).write_bytes(changed)
    with pytest.raises(InputError, match="was changed"):
        open_bundle(tmp_path)


@pytest.mark.parametrize("name", CHECKS)
def test_more_layers_than_tensors(bundles: dict[str, Bundle], name: str, tmp_path: Path) -> None:
    """What is worked through for each layer is bounded by what the file holds."""
    bundle = bundles["qwen3_vl"]
    content = bundle.file(name).read_bytes()
    place = content.index(b".block_count") + len(".block_count") + 4  # behind the type
    content = content[:place] + struct.pack("<I", (1 << 24) - 1) + content[place + 4 :]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="block_count is 16777215 and it has"):
        CHECKS[name](tmp_path / name)
