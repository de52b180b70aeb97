"""Values that find no room in memory: files hold them, results stay the same to the bit, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from lensmith.calibration.layerwise.candidates import nearest
from lensmith.calibration.layerwise.judge import judge
from lensmith.calibration.layerwise.layer_pass import Calibration, PassPlan
from lensmith.calibration.layerwise.shelf import Room, Shelf
from lensmith.calibration.layerwise.stage_quantizer import RECIPES
from lensmith.calibration.layerwise.store import Store

from tests.helpers.layered import Bench


def files(folder: Path) -> list[Path]:
    return list(folder.glob("*"))


def test_what_finds_no_room_goes_to_files_and_comes_back(tmp_path: Path) -> None:
    room = Room(tmp_path / "values", 100)
    first, second = np.arange(20, dtype=np.float32), np.arange(12, dtype=np.int64)
    shelf = Shelf({"first": first, "second": second}, room)
    assert (room.left, len(files(tmp_path / "values"))) == (20, 1)
    np.testing.assert_array_equal(shelf["second"], second)
    assert shelf["first"] is first
    shelf["first"] = second  # what it was before makes room
    assert (room.left, len(files(tmp_path / "values"))) == (4, 1)
    assert dict(shelf).keys() == {"first", "second"}
    del shelf["second"]
    assert not files(tmp_path / "values")
    shelf.clear()
    assert room.left == 100


def test_what_an_interruption_left_is_removed(tmp_path: Path) -> None:
    Shelf({"it": np.zeros(9)}, Room(tmp_path / "values", 0))
    assert files(tmp_path / "values")
    Room(tmp_path / "values")
    assert not (tmp_path / "values").exists()


def test_without_a_folder_all_stays() -> None:
    assert isinstance(Shelf({"it": np.zeros(9)}, Room(None, 0)).held["it"], np.ndarray)


def test_calibration_and_judgement_are_the_same_without_room(benches: Callable[[str], Bench], tmp_path: Path) -> None:
    bench = benches("tarn")
    stores, judged = [], []
    for name, room in (("room", Room(None)), ("none", Room(tmp_path / "values", 0))):
        model, store, searched = replace(bench.model, room=room), Store(tmp_path / name), Store(tmp_path / f"{name}-2")
        samples = bench.samples
        plan = PassPlan(bench.schemes, RECIPES["gptq"])
        calibration = Calibration(model, plan, store, searched, bench.prefix)
        calibration.run(samples.calibrated, samples.pictures, lambda *_: None, samples.held_out)
        found = judge(model, samples.held_out, samples.pictures, {"it": nearest(model, bench.schemes)})
        stores.append({path.name: path.read_bytes() for path in store.folder.glob("*.npz")})
        judged.append(found)
    assert stores[0] == stores[1]
    assert judged[0] == judged[1]
    assert (tmp_path / "values").exists()
