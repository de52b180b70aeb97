"""Opening checkpoints: values, lazy reads, and one clear sentence for everything that can be wrong with a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from lensmith.exporters.checkpoint.folder import open_checkpoint
from lensmith.exporters.checkpoint.lazy_tensors import LazyTensor
from lensmith.exporters.checkpoint.safetensors_files import open_tensors
from lensmith.targets.errors import InputError
from numpy.typing import NDArray
from safetensors.numpy import save_file

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
BF16 = np.arange(-12, 12, dtype=np.float32).reshape(6, 4).astype(ml_dtypes.bfloat16)


def write_config(folder: Path, **more: Any) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3_vl", **more}))


def write_raw(path: Path, header: object, data: bytes = b"", length: int | None = None) -> None:
    """A safetensors file with any header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def entry(begin: int, end: int, shape: object = None, dtype: object = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small checkpoint in one file."""
    write_config(tmp_path)
    tensors: dict[str, NDArray[Any]] = {
        "model.a.weight": BF16,
        "model.b.weight": np.linspace(-3, 3, 10).astype(np.float16),
        "model.c.bias": np.array([[1.5], [-2.5]], np.float32),
        "scalar": np.array(7.0, np.float32),
        "ids": np.arange(3, dtype=np.int64),
        "empty": np.zeros((0, 4), np.float32),
    }
    save_file(tensors, tmp_path / SINGLE, {"format": "pt"})
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A checkpoint in two shards."""
    write_config(tmp_path)
    save_file({"a": np.array([1, 2], np.float32)}, tmp_path / "model-1.safetensors")
    save_file({"b": np.array([3], np.float32)}, tmp_path / "model-2.safetensors")
    write_index(tmp_path, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    return tmp_path


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_values_shapes_and_dtypes(folder: Path) -> None:
    tensors = open_checkpoint(folder).tensors
    assert list(tensors) == sorted(tensors)
    a = tensors["model.a.weight"]
    assert (a.shape, a.dtype, a.nbytes, a.size) == ((6, 4), "BF16", 48, 24)
    assert a.numpy().dtype == np.float32
    np.testing.assert_array_equal(a.numpy(), BF16.astype(np.float32))
    np.testing.assert_array_equal(a.numpy(np.float16), BF16.astype(np.float16))
    assert a.raw().dtype == BF16.dtype
    np.testing.assert_array_equal(tensors["model.b.weight"].numpy(), np.linspace(-3, 3, 10).astype(np.float16))
    np.testing.assert_array_equal(tensors["model.c.bias"].numpy(), [[1.5], [-2.5]])
    assert tensors["scalar"].numpy() == 7
    assert tensors["scalar"].numpy().shape == ()
    assert tensors["ids"].raw().tolist() == [0, 1, 2]
    assert tensors["empty"].numpy().shape == (0, 4)


def test_bfloat16_keeps_every_bit_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(tmp_path)
    bits = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    save_file({"all": bits}, tmp_path / SINGLE)
    monkeypatch.setattr("lensmith.exporters.checkpoint.safetensors_files.BLOCK", 1000)
    got = open_checkpoint(tmp_path).tensor("all").numpy()
    np.testing.assert_array_equal(got.view(np.uint32), bits.view(np.uint16).astype(np.uint32) << 16)


def test_rows_read_a_range_of_the_first_axis(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    a = checkpoint.tensor("model.a.weight")
    np.testing.assert_array_equal(a.rows(2, 5), BF16.astype(np.float32)[2:5])
    assert a.rows(6, 6).shape == (0, 4)
    assert checkpoint.tensor("empty").rows(0, 0).shape == (0, 4)
    for start, stop in ((-1, 2), (3, 2), (0, 7)):
        with pytest.raises(IndexError):
            a.rows(start, stop)
    with pytest.raises(IndexError):
        checkpoint.tensor("scalar").rows(0, 0)


def test_unknown_tensor_names_the_closest(folder: Path) -> None:
    with pytest.raises(InputError, match=r"no tensor 'model.a.wight'; did you mean 'model.a.weight'\?"):
        open_checkpoint(folder).tensor("model.a.wight")


def test_file_that_shrinks_after_opening(folder: Path) -> None:
    last = max(open_tensors(folder).values(), key=lambda tensor: tensor.end)
    (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:-30])
    with pytest.raises(InputError, match="became shorter while"):
        last.numpy()


def test_shards(sharded: Path) -> None:
    tensors = open_checkpoint(sharded).tensors
    assert tensors["a"].numpy().tolist() == [1, 2]
    assert tensors["b"].numpy().tolist() == [3]


def test_index_decides_between_two_shards(sharded: Path) -> None:
    save_file({"b": np.array([3], np.float32), "a": np.array([9, 9], np.float32)}, sharded / "model-2.safetensors")
    assert open_checkpoint(sharded).tensor("a").numpy().tolist() == [1, 2]


def test_configs_and_templates(folder: Path) -> None:
    write_config(folder, auto_map={"AutoModel": "evil.Model"})
    (folder / "evil.py").write_text("raise SystemExit('executed')")
    (folder / "processor_config.json").write_text('{"image_processor": {"patch_size": 16}}')
    (folder / "tokenizer_config.json").write_text(
        '{"chat_template": [{"name": "rag", "template": "R"}, {"name": "default", "template": "T"}]}'
    )
    checkpoint = open_checkpoint(folder)
    assert checkpoint.preprocessor_config == {"patch_size": 16}
    assert checkpoint.generation_config == {}
    assert checkpoint.chat_template == "T"
    (folder / "chat_template.jinja").write_text("{{ X }}")
    assert open_checkpoint(folder).chat_template == "{{ X }}"
    (folder / "chat_template.json").write_text('{"chat_template": "J"}')
    assert open_checkpoint(folder).chat_template == "J"
    with pytest.raises(InputError, match=r"has no tokenizer\.json; write one with"):
        _ = checkpoint.tokenizer_path
    (folder / "tokenizer.json").write_text("{}")
    assert checkpoint.tokenizer_path == folder / "tokenizer.json"


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("---\nlicense: apache-2.0\ntags:\n- x\n---\n# M\nlicense: mit\n", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: 'own'\n---\n", "own"),
        ("---\nlicense: other\n---\n", "other"),
        ("# No front matter\nlicense: mit\n---\nlicense: mit\n---\n", None),
        ("---\ntags: a\n---\nlicense: mit", None),
        ("", None),
    ],
)
def test_license_name(folder: Path, readme: str, expected: str | None) -> None:
    (folder / "README.md").write_text(readme)
    (folder / "LICENSE").write_text("the text")
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.license, checkpoint.license_text) == (expected, "the text")


def test_source_files(folder: Path) -> None:
    (folder / "notes.txt").write_text("not part of the model")
    checkpoint = open_checkpoint(folder)
    checkpoint.start_hashing()
    files = checkpoint.source_files()
    data = (folder / SINGLE).read_bytes()
    assert files[SINGLE] == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert set(files) == {"config.json", SINGLE}


def test_every_file_that_is_read_counts_as_source(sharded: Path) -> None:
    """Wherever it lies in the folder; a note, other weights and a folder of that name do not."""
    read = ("generation_config.json", "chat_template.jinja", "merges.txt", "additional_chat_templates/tool.jinja",
            "processor_config.json", "LICENSE.md")  # fmt: skip
    for name in (*read, "README.md", "pytorch_model.bin", "notes.txt"):
        (sharded / name).parent.mkdir(exist_ok=True)
        (sharded / name).write_text("{}")
    (sharded / "LICENCE").mkdir()
    names = {path.relative_to(sharded).as_posix() for path in open_checkpoint(sharded).files}
    weights = {path.name for path in sharded.glob("model*")}
    assert names == {"config.json", *read, *weights}
    assert open_checkpoint(sharded).license_text == "{}"


def test_rows_of_a_tensor_larger_than_memory(tmp_path: Path) -> None:
    """Reading some rows of a sparse file of 4 GB touches nothing else."""
    write_config(tmp_path)
    write_raw(tmp_path / SINGLE, {"big": entry(0, 4 * 2**30, [2**20, 2**10])})
    with open(tmp_path / SINGLE, "r+b") as file:
        file.truncate(file.seek(0, 2) + 4 * 2**30)  # sparse: takes no room
    tensor: LazyTensor = open_checkpoint(tmp_path).tensor("big")
    assert tensor.rows(2**20 - 2, 2**20).shape == (2, 2**10)


def lfs(path: Path) -> None:
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n")


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty file": (Path.touch, "not a safetensors file"),
    "absurd header": (lambda p: write_raw(p, {}, length=2**62), "not a safetensors file"),
    "header beyond the file": (lambda p: write_raw(p, {}, length=5000), "cut off inside its header"),
    "not JSON": (lambda p: write_raw(p, b"{oops"), "header that is not JSON"),
    "not UTF-8": (lambda p: write_raw(p, b'{"\xff": 1}'), "header that is not JSON"),
    "deep JSON": (lambda p: write_raw(p, b"[" * 100_000), "header that is not"),
    "not an object": (lambda p: write_raw(p, [1]), "not a JSON object"),
    "git lfs": (lfs, "git lfs pull"),
    "truncated data": (lambda p: write_raw(p, {"a": entry(0, 8)}, b"1234"), "cut off: .* its header says"),
    "surplus data": (lambda p: write_raw(p, {"a": entry(0, 8)}, bytes(9)), "1 bytes more than"),
    "overlap": (lambda p: write_raw(p, {"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "'b' overlaps 'a'"),
    "gap": (lambda p: write_raw(p, {"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "leaves a gap behind 'a'"),
    "negative offset": (lambda p: write_raw(p, {"a": entry(-4, 4)}, bytes(4)), "describes 'a' wrongly"),
    "backward offsets": (lambda p: write_raw(p, {"a": entry(8, 4, [1])}, bytes(8)), "gives 'a' -4 bytes"),
    "dtype": (lambda p: write_raw(p, {"a": entry(0, 4, dtype="Q4_K")}, bytes(4)), "as 'Q4_K', expected one of"),
    "dtype a list": (lambda p: write_raw(p, {"a": entry(0, 4, dtype=[])}, bytes(4)), "describes 'a' wrongly"),
    "shape": (lambda p: write_raw(p, {"a": entry(0, 8, [3])}, bytes(8)), "shape \\[3\\] takes 12"),
    "shape of text": (lambda p: write_raw(p, {"a": entry(0, 8, ["2"])}, bytes(8)), "describes 'a' wrongly"),
    "no offsets": (lambda p: write_raw(p, {"a": {"dtype": "F32", "shape": [1]}}, bytes(4)), "describes 'a' wrongly"),
    "entry a number": (lambda p: write_raw(p, {"a": 3}), "describes 'a' wrongly"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_safetensors(tmp_path: Path, case: str) -> None:
    write_config(tmp_path)
    make, message = BROKEN[case]
    make(tmp_path / SINGLE)
    with pytest.raises(InputError, match=message) as caught:
        open_checkpoint(tmp_path)
    assert str(tmp_path / SINGLE) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_shard(sharded: Path) -> None:
    shard = sharded / "model-2.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"model-2\.safetensors is cut off"):
        open_checkpoint(sharded)


def test_missing_shard(sharded: Path) -> None:
    (sharded / "model-2.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks 1 of 2 shards \(model-2\.safetensors\)"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("shard", ["../model-1.safetensors", "/etc/passwd", "..", "", "a/../b", "a\\b"])
def test_index_that_leaves_the_folder(sharded: Path, shard: str) -> None:
    write_index(sharded, {"a": shard})
    with pytest.raises(InputError, match="outside its folder"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("weight_map", [None, {}, [], {"a": 3}])
def test_index_without_weight_map(sharded: Path, weight_map: object) -> None:
    write_index(sharded, weight_map)
    with pytest.raises(InputError, match="no usable weight_map"):
        open_checkpoint(sharded)


def test_index_naming_an_absent_tensor(sharded: Path) -> None:
    write_index(sharded, {"a": "model-1.safetensors", "b": "model-2.safetensors", "z": "model-2.safetensors"})
    with pytest.raises(InputError, match=r"says that model-2\.safetensors holds 'z', which is not there"):
        open_checkpoint(sharded)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch_model.bin", "never loaded because they can run code; convert them with"),
        ("consolidated.00.pth", "never loaded"),
        ("notes.txt", "neither model.safetensors nor model.safetensors.index.json"),
    ],
)
def test_no_safetensors(tmp_path: Path, name: str, message: str) -> None:
    write_config(tmp_path)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path)


def test_bad_folder_and_config(folder: Path) -> None:
    for content, message in (("{", "not valid JSON"), ("[]", "expected an object"), ("[" * 99_999, "not valid JSON")):
        (folder / "config.json").write_text(content)
        with pytest.raises(InputError, match=message):
            open_checkpoint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"has no config\.json"):
        open_checkpoint(folder)
    with pytest.raises(InputError, match=r"Qwen/Model is not a folder; .*hf download"):
        open_checkpoint("Qwen/Model")
