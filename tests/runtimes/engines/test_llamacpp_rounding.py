"""Where features of llama.cpp's vision encoders part from PyTorch's: three roundings to float16, and nothing else.

Pixels are rounded to float16 (`ggml_conv_2d`), each GELU is looked up by its input rounded to float16 in a table of
float16 (`ggml_vec_gelu_f32`), and the mergers and projectors have the tanh approximation where transformers has the
error function (`build_ffn`). With these taken over, what is left is the order of summation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.exporters.evidence.reference import Reference
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.runtimes.engines.contract import Floats, ImageFeatures
from lensmith.runtimes.evidence.replay import relative_error
from lensmith.runtimes.media.image_files import open_image
from lensmith.runtimes.media.pixels import preprocess
from lensmith.runtimes.prompt.requests import user_message

from tests.helpers.extras import inside, load

pytest.importorskip("llama_cpp", reason="needs lensmith[gguf]")

from lensmith.runtimes.engines.llamacpp.llama_vision import LlamaVision

from tests.helpers.llamacpp_trace import Node, traced
from tests.helpers.llava import with_moved_positions
from tests.paths import TINY

PICTURE = sorted((TINY / "heldout_long" / "images").glob("*.png"))[0]
SUMMATION = 5e-6  # relative, of float32 sums in another order
# Entries of the table that another compiler rounds to the neighbour.
NEIGHBOURS = 2e-3


@dataclass(frozen=True)
class Seen:
    """A picture in llama.cpp, and what PyTorch is given of it."""

    features: ImageFeatures
    gelus: list[Node]
    patches: Floats
    grid: tuple[int, int, int]
    reference: Reference


def see(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Encode a picture with llama.cpp, its GELUs written down, from a float32 file."""
    source = with_moved_positions(TINY / "llava", folder / "moved") if name == "llava" else TINY / name
    bundle = export(prepare(source, Options(format="gguf", precision="f32")), folder / "bundle", golden="never")
    model = load(bundle.path, threads=1)
    spec = model.image_spec
    with traced(monkeypatch, *TABLES) as gelus:
        path = bundle.file("mmproj.gguf")
        vision = LlamaVision(path, inside(model.decoder).model, spec, most_tokens=1000, threads=1, exact=True)
        patches, grid = preprocess(open_image(PICTURE), spec)
        features = vision(patches, grid)
    return Seen(features, gelus, patches, grid, Reference(TINY / name, threads=1))


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen3_5", "llava"])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    pytest.importorskip("transformers", reason="needs lensmith[torch]")
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield see(request.param, tmp_path_factory.mktemp(request.param), monkeypatch)


def gelu(x: Floats) -> Floats:
    """The tanh approximation as `ggml_gelu_f32` computes it, in float32; values from 10 on are not looked up."""
    inner = np.float32(0.79788456080286535587989211986876) * x * (1 + np.float32(0.044715) * x * x)
    return np.float32(0.5) * x * (1 + np.tanh(inner.astype(np.float64)).astype(np.float32))


def quick_gelu(x: Floats) -> Floats:
    return np.asarray(x / (1 + np.exp(-1.702 * x.astype(np.float64))), np.float32)


TABLES: Mapping[str, Callable[[Floats], Floats]] = {"GELU": gelu, "GELU_QUICK": quick_gelu}


def rounded(x: Floats) -> Floats:
    return x.astype(np.float16).astype(np.float32)


def looked_up(kind: str, x: Floats) -> Floats:
    """What llama.cpp's table of a GELU gives for these inputs."""
    found = rounded(TABLES[kind](rounded(x)))
    return np.where(np.abs(x) >= 10, np.maximum(x, 0), found) if kind == "GELU" else found


def test_gelus_come_from_a_table_of_float16(seen: Seen) -> None:
    assert len(seen.gelus) > 5
    for one in seen.gelus:
        expected = looked_up(one.kind, one.inputs[0])
        differs = expected != one.result
        assert differs.mean() < NEIGHBOURS
        step = np.spacing(np.abs(one.result[differs]).astype(np.float16)).astype(np.float32)
        assert (np.abs(expected - one.result)[differs] <= step).all()


def activations(reference: Reference, count: int) -> list[tuple[Any, str]]:
    """The `count` activations of PyTorch's encoder that matter, in llama.cpp's order: modules, names of attributes."""
    inner = reference.model.model
    if reference.one_size:
        layers = [(layer.mlp, "activation_fn") for layer in inner.vision_tower.encoder.layers]
        return [*layers[: count - 1], (inner.multi_modal_projector, "act")]
    merger, taps = inner.visual.merger, getattr(inner.visual, "deepstack_merger_list", ())
    return [(module, "act_fn") for module in [*(block.mlp for block in inner.visual.blocks), merger, *taps]]


def errors(seen: Seen, patches: Floats, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How far PyTorch's inputs of all activations, and its features, are from llama.cpp's.

    Each activation gives llama.cpp's results in place of its own, so that every part between two of them is compared
    on equal terms. LLaVA's first patch is missing in llama.cpp behind the tower, where the class token has its place.
    """
    torch, found, one_size = seen.reference.torch, list[float](), seen.reference.one_size

    class Given(torch.nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self, gelu: Node, first: int) -> None:
            super().__init__()
            self.gelu, self.first = gelu, first

        def forward(self, x: Any) -> Any:
            before, behind = (in_order(rows, one_size) for rows in (self.gelu.inputs[0], self.gelu.result))
            rows = x.numpy().reshape(before.shape)
            found.append(relative_error(rows[self.first :], before[self.first :]))
            return torch.from_numpy(behind).reshape(x.shape)

    first = int(one_size)
    places = activations(seen.reference, len(seen.gelus))
    for index, ((module, name), one) in enumerate(zip(places, seen.gelus, strict=True), start=1):
        monkeypatch.setitem(module._modules, name, Given(one, first if index == len(places) else 0))
    expected = seen.reference.vision(patches, seen.grid)
    assert len(found) == len(seen.gelus)
    found.append(relative_error(in_order(seen.features.features, one_size)[first:], expected.features[first:]))
    taps = ([] if one.deepstack is None else list(one.deepstack) for one in (seen.features, expected))
    return found + [relative_error(*pair) for pair in zip(*taps, strict=True)]


def in_order(rows: Floats, one_size: bool) -> Floats:
    """llama.cpp's rows in the order of PyTorch: it has the class token of a CLIP tower behind the patches."""
    return np.roll(rows, 1, axis=0) if one_size else rows


def test_behind_the_roundings_only_the_order_of_summation_is_left(seen: Seen) -> None:
    """Between two activations, PyTorch computes what llama.cpp does, from pixels rounded to float16 on."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert max(errors(seen, rounded(seen.patches), monkeypatch)) < SUMMATION
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert errors(seen, seen.patches, monkeypatch)[0] > 4 * SUMMATION  # pixels as they are


def test_products_of_float16_files_round_their_inputs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a float16 file loses besides its KV cache: llama.cpp multiplies weights with inputs of 11 bits, too."""
    bundle = export(prepare(TINY / "qwen3_vl", Options(format="gguf", precision="f16")), tmp_path / "b", golden="never")
    with traced(monkeypatch, "MUL_MAT") as nodes:
        model = load(bundle.path, threads=1)
        model.prefill(model.prepare([user_message("What is this?", [PICTURE])]))
    pairs = [node for node in nodes if all(part is not None for part in (*node.inputs, node.result))]
    products = [node for node in pairs if node.inputs[0].dtype == np.float16 and node.inputs[1].dtype == np.float32]
    assert len(products) > 35
    exact = []
    for node in products:
        weights, inputs = (part.astype(np.float64) for part in node.inputs)
        assert relative_error(node.result, rounded(node.inputs[1]).astype(np.float64) @ weights.T) < SUMMATION
        exact.append(relative_error(node.result, inputs @ weights.T))
    assert np.median(exact) > 4 * SUMMATION
