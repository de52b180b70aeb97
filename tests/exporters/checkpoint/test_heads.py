"""The output head as transformers decides: tied or its own, by the flags of config.json and what the weights hold."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.exporters.checkpoint import heads
from lensmith.exporters.checkpoint.folder import open_checkpoint
from lensmith.exporters.families.qwen3_5.draft_reference import DraftReference
from lensmith.exporters.formats.gguf.gguf_files import files
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.exporters.spec import ModelSpec
from lensmith.runtimes.evidence.replay import relative_error
from lensmith.runtimes.evidence.verification import verify
from lensmith.targets.errors import InputError
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tests.helpers import hf, ladder
from tests.helpers.mtp_reference import assert_drafts
from tests.paths import TINY

FAMILIES = ("qwen3_vl", "qwen3_5", "llava")
TABLE, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
FLAGS = (None, True, False)
LOGITS = 1e-4
QUESTION = [{"role": "user", "content": "What word is written? " * 20}]
Arrays = dict[str, NDArray[Any]]

# What the weights hold; the flags decide what it means.
HEADS: Mapping[str, Any] = {
    "no head": lambda tensors: {},
    "the table": lambda tensors: {HEAD: tensors[TABLE]},
    "the table in float32": lambda tensors: {HEAD: tensors[TABLE].astype(np.float32)},
    "another head": lambda tensors: {HEAD: -tensors[TABLE]},
    "one value differs": lambda tensors: {HEAD: _nudged(tensors[TABLE])},
    "no table": lambda tensors: {HEAD: tensors.pop(TABLE)},
}


def _nudged(table: NDArray[Any]) -> NDArray[Any]:
    other = table.copy()
    other[-1, -1] += 1
    return other


def checkpoint(family: str, folder: Path, outer: bool | None, text: bool | None, head: str) -> Path:
    """A trained checkpoint with these flags; None leaves one out."""
    shutil.copytree(TINY / family, folder)
    config = json.loads((folder / "config.json").read_text())
    for section, flag in ((config, outer), (config["text_config"], text)):
        section.pop("tie_word_embeddings", None)
        section.update({} if flag is None else {"tie_word_embeddings": flag})
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: tensor.raw() for name, tensor in open_checkpoint(TINY / family).tensors.items()}
    added = HEADS[head](tensors)
    save_file(tensors | added, folder / "model.safetensors")
    return folder


def theirs(path: Path) -> str:
    """What transformers makes of it: tied, a head of its own, or values that it would have to invent."""
    model, info = hf.import_transformers().AutoModelForImageTextToText.from_pretrained(
        path, dtype="float32", output_loading_info=True
    )
    if {HEAD, TABLE} & set(info["missing_keys"]):
        return "refused"
    same = model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    return "tied" if same else "own"


def ours(path: Path) -> str:
    try:
        spec = prepare(path, Options()).spec
    except InputError as error:
        return "refused" if HEAD in str(error) or TABLE in str(error) else str(error)
    assert isinstance(spec, ModelSpec)
    return "tied" if spec.decoder.tied else "own"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_combination_is_decided_as_by_transformers(family: str, tmp_path: Path) -> None:
    """Of flags at both places and tensors, all that differ in what they mean: 12 of each family in PyTorch."""
    ladder.need_torch()
    grid = [(outer, text, head) for outer, text in itertools.product(FLAGS, FLAGS) for head in HEADS]
    seen = {}
    for index, (outer, text, head) in enumerate(grid):
        path = checkpoint(family, tmp_path / str(index), outer, text, head)
        seen[outer, text, head] = ours(path)
        if index % 5 == FAMILIES.index(family):  # the rest of the grid stands below
            assert seen[outer, text, head] == theirs(path), (outer, text, head)
    tied = {"no head": "tied", "the table": "tied", "the table in float32": "tied", "no table": "tied"}
    untied = {"no head": "refused", "no table": "refused"}
    for (outer, text, head), found in seen.items():
        flag = (outer or text) if family == "llava" else outer
        assert found == (tied if flag else untied).get(head, "own"), (outer, text, head)


@pytest.mark.parametrize("elements", [1, 1000])
def test_a_table_of_many_blocks_is_compared_to_its_end(
    elements: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "BLOCK_ELEMENTS", elements)
    for head, found in (("the table", "tied"), ("one value differs", "own"), ("another head", "own")):
        assert ours(checkpoint("qwen3_vl", tmp_path / head, True, True, head)) == found


@pytest.mark.parametrize("head", ["another head", "no table"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_pytorch(family: str, head: str, tmp_path: Path) -> None:
    """In a float32 bundle, and those of the draft head, which shares the decoder's tables."""
    ladder.need_torch()
    path = checkpoint(family, tmp_path / "source", True, True, head)
    pair = ladder.compile_pair(path, tmp_path / "bundle")
    assert relative_error(*pair.all_logits(QUESTION)) < LOGITS
    if family == "qwen3_5":
        assert_drafts(pair.model, DraftReference(pair.reference), pair.theirs(QUESTION), LOGITS)


def test_traces_tell_the_head(tmp_path: Path) -> None:
    ladder.need_torch()
    path = checkpoint("qwen3_vl", tmp_path / "source", True, True, "another head")
    bundle = export(prepare(path, Options(precision="fp32")), tmp_path / "bundle", golden="always")
    assert verify(bundle).passed


@pytest.mark.parametrize("family", FAMILIES)
def test_every_format_keeps_the_head(family: str, tmp_path: Path) -> None:
    """int4 with one table only where it is tied; `output.weight` in GGUF; a matrix of its own for TensorRT."""
    for head, own in (("another head", True), ("the table", False)):
        path = checkpoint(family, tmp_path / head, True, True, head)
        for options in (Options(), Options(format="tensorrt", target="rtx-40"), Options(target="cuda")):
            job = prepare(path, options)
            decoder = next(graph for graph in job.graphs if graph.name == "decoder")
            assert [source.name for source in decoder.sources if source.name == HEAD] == [HEAD] * own
            assert (HEAD in job.family.dropped(job.checkpoint, job.spec)) != own
        written = files(prepare(path, Options(format="gguf", precision="f16")))
        assert [t.sources for f in written for t in f.tensors if t.name == "output.weight"] == [(HEAD,)] * own
