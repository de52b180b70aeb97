"""Damaged GGUF files of any kind: refused in one sentence by lensmith's own reading of them, without llama.cpp."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.runtimes.bundle.opening import Bundle, open_bundle
from lensmith.runtimes.engines.llamacpp import header
from lensmith.runtimes.engines.llamacpp.gguf_check import check_decoder, check_vision
from lensmith.runtimes.engines.llamacpp.header import BLOCKS, read_gguf
from lensmith.targets.errors import InputError

from tests.paths import TINY

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


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf(path: Path, values: list[bytes], tensors: list[bytes], size: int, *, version: int = 3) -> Path:
    """A file of these parts with `size` bytes of data, which begin at a multiple of 32."""
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values)) + b"".join([*values, *tensors])
    path.write_bytes(header + bytes(-len(header) % 32) + bytes(size))
    return path


F32, Q8_0, BOOL, STRING, ARRAY = 0, 8, 7, 8, 9
ONE = tensor("w", (4, 2), F32, 0)
# By what is changed: values, tensors, bytes of data; and what the sentence says, nothing where the file is right.
PARTS: dict[str, tuple[list[bytes], list[bytes], int, str]] = {
    "one tensor": ([], [ONE], 32, ""),
    "two tensors": ([], [tensor("v", (3,), F32, 0), tensor("w", (64, 3), Q8_0, 32)], 32 + 224, ""),
    "five axes": ([], [tensor("w", (2, 1, 1, 1, 1), F32, 0)], 32, "has 5 dimensions"),
    "four axes": ([], [tensor("w", (2, 1, 1, 1), F32, 0)], 32, ""),
    "no axes": ([], [tensor("w", (), F32, 0)], 32, "has 0 dimensions"),
    "an empty axis": ([], [tensor("w", (4, 0), F32, 0)], 0, "has the shape [4, 0]"),
    "half a block": ([], [tensor("w", (48,), Q8_0, 0)], 64, "in blocks of 32"),
    "an unknown type": ([], [tensor("w", (4,), 4, 0)], 32, "the unknown type 4"),
    "a long name": ([], [tensor("w" * 63, (4, 2), F32, 0)], 32, ""),
    "a longer name": ([], [tensor("w" * 64, (4, 2), F32, 0)], 32, "dimensions"),
    "no name": ([], [tensor("", (4, 2), F32, 0)], 32, "dimensions"),
    "one name twice": ([], [ONE, tensor("w", (4, 2), F32, 32)], 64, "is there twice"),
    "a gap": ([], [ONE, tensor("v", (4, 2), F32, 64)], 96, "lies at 64, expected 32"),
    "one over the other": ([], [ONE, tensor("v", (4, 2), F32, 0)], 64, "lies at 0, expected 32"),
    "less data": ([], [ONE], 0, "its header describes"),
    "more data": ([], [ONE], 64, "its header describes"),
    "no": ([entry("b", BOOL, b"\0")], [ONE], 32, ""),
    "yes": ([entry("b", BOOL, b"\1")], [ONE], 32, ""),
    "neither": ([entry("b", BOOL, b"\2")], [ONE], 32, "is 2"),
    "an unknown value": ([entry("b", 13, b"\0")], [ONE], 32, "has the unknown type 13"),
    "a key twice": ([entry("b", BOOL, b"\1"), entry("b", BOOL, b"\1")], [ONE], 32, "it says 'b' twice"),
    "texts": ([entry("t", ARRAY, struct.pack("<IQ", STRING, 2) + text("a") + text(""))], [ONE], 32, ""),
    "more texts than bytes": ([entry("t", ARRAY, struct.pack("<IQ", STRING, 1 << 20))], [ONE], 32, "has 1048576 texts"),
    "an array of arrays": ([entry("t", ARRAY, struct.pack("<IQ", ARRAY, 1))], [ONE], 32, "has the unknown type 9"),
    "an alignment": ([entry("general.alignment", 4, struct.pack("<I", 32))], [ONE], 32, ""),
    "another alignment": ([entry("general.alignment", 4, struct.pack("<I", 64))], [ONE], 32, "its alignment is 64"),
    "bytes that are no text": ([entry("t", STRING, struct.pack("<Q", 1) + b"\xff")], [ONE], 32, "is not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("case", PARTS)
def test_files_part_by_part(case: str, tmp_path: Path) -> None:
    values, tensors, size, words = PARTS[case]
    path = gguf(tmp_path / "a.gguf", values, tensors, size)
    if not words:
        assert len(read_gguf(path).tensors) == len(tensors)
        return
    with pytest.raises(InputError) as caught:
        read_gguf(path)
    assert words in str(caught.value)


def test_values_are_those_of_the_file(tmp_path: Path) -> None:
    numbers = {"B": (0, 200), "b": (1, -3), "H": (2, 60_000), "h": (3, -300), "I": (4, 1 << 31), "i": (5, -70_000),
               "f": (6, 0.5), "Q": (10, 1 << 63), "q": (11, -(1 << 62)), "d": (12, 0.1)}  # fmt: skip
    values = [entry(code, kind, struct.pack(f"<{code}", value)) for code, (kind, value) in numbers.items()]
    values += [entry("text", STRING, text("ü")), entry("list", ARRAY, struct.pack("<IQ3i", 5, 3, 1, -2, 3))]
    values.append(entry("texts", ARRAY, struct.pack("<IQ", STRING, 2) + text("a") + text("b")))
    first, second = tensor("v", (3,), F32, 0), tensor("w", (64, 3), Q8_0, 32)
    path = gguf(tmp_path / "a.gguf", values, [first, second], 256)
    found = read_gguf(path)
    assert {code: found.metadata[code] for code in numbers} == {code: value for code, (_, value) in numbers.items()}
    assert (found.metadata["text"], found.metadata["list"].tolist(), found.metadata["texts"]) == (
        "ü", [1, -2, 3], [b"a", b"b"])  # fmt: skip
    begin = path.stat().st_size - 256
    places = {name: (each.shape, each.kind, each.begin, each.nbytes) for name, each in found.tensors.items()}
    assert places == {"v": ((3,), F32, begin, 12), "w": ((64, 3), Q8_0, begin + 32, 6 * 34)}


def test_counts_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the file holds as many."""
    monkeypatch.setattr(header, "MOST_ENTRIES", 2)
    monkeypatch.setattr(header, "MOST_TEXTS", 3)
    tensors = [tensor(f"w{index}", (8,), F32, 32 * index) for index in range(3)]
    values = [entry(key, ARRAY, struct.pack("<IQ", STRING, 3) + text("a") * 3) for key in "abc"]
    path = gguf(tmp_path / "a.gguf", values[:2], tensors[:2], 64)
    assert len(read_gguf(path).metadata) == 2
    for parts, words in (
        ((values, tensors[:2], 64), "2 tensors and 3 values"),
        ((values[:2], tensors, 96), "3 tensors"),
    ):
        with pytest.raises(InputError, match=f"it counts {words}"):
            read_gguf(gguf(path, *parts))
    longer = entry("a", ARRAY, struct.pack("<IQ", STRING, 4) + text("a") * 4)
    with pytest.raises(InputError, match="has 4 texts"):
        read_gguf(gguf(path, [longer], tensors[:1], 32))


@pytest.mark.parametrize("version", [2, 4])
def test_another_version_is_refused(version: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"version {version}, expected"):
        read_gguf(gguf(tmp_path / "a.gguf", [], [ONE], 32, version=version))


def test_blocks_are_those_of_the_format() -> None:
    """As the package gguf, which is llama.cpp's own, has them."""
    gguf_py = pytest.importorskip("gguf", reason="needs lensmith[export]")
    sizes = {int(kind): tuple(size) for kind, size in gguf_py.GGML_QUANT_SIZES.items()}
    assert {kind: sizes[kind] for kind in BLOCKS} == dict(BLOCKS)
