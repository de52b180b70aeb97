"""Bits for each matrix from what its rounding does to the predictions: predicted as measured, and limits are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.calibration.layerwise.candidates import nearest
from lensmith.calibration.layerwise.judge import judge
from lensmith.calibration.layerwise.sensitivity import (
    BITS,
    Sensitivity,
    mixed_schemes,
    options_of,
    stored,
    unit_of,
)
from lensmith.calibration.mixed_precision import bundle_bytes, decoder_names, sensitivities
from lensmith.exporters.graphs.matrices import Matrix
from lensmith.exporters.pipeline import Options, prepare
from lensmith.exporters.storage.scheme import UNQUANTIZED, Scheme
from lensmith.exporters.storage.weights import stored_bytes
from lensmith.runtimes.bundle.opening import open_bundle

from tests.cli.test_cli_errors import assert_one_sentence
from tests.helpers.extras import Ran
from tests.helpers.layered import Bench, make_bench, write_samples
from tests.paths import TINY

Cli = Callable[..., Ran]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(TINY / "qwen3_vl", tmp_path_factory.mktemp("mixed"), TINY / "heldout" / "tasks.jsonl", 12)


@pytest.fixture(scope="module")
def found(bench: Bench) -> dict[str, Sensitivity]:
    samples = bench.samples
    return sensitivities(bench.model, bench.job, samples.calibrated, samples.pictures, lambda *_: None)


def measure(bench: Bench, choices: dict[str, dict[str, Scheme]]) -> dict[str, float]:
    """Mean KL divergence over all positions of the samples that sensitivities are measured on, for some schemes each;
    all other matrices stay in float32."""
    plain = dict.fromkeys(bench.schemes, UNQUANTIZED)
    candidates = {name: nearest(bench.model, {**plain, **schemes}) for name, schemes in choices.items()}
    judged = judge(bench.model, bench.samples.calibrated[:8], bench.samples.pictures, candidates)
    return {
        name: sum(judged[name].kl[kind] * count for kind, count in judged[name].positions.items())
        / sum(judged[name].positions.values())
        for name in choices
    }


def cheapest(bench: Bench, unit: str) -> dict[str, Scheme]:
    names = [name for name in decoder_names(bench.job) & set(bench.schemes) if unit_of(name) == unit]
    columns = {name: bench.model.checkpoint.tensor(name).shape[1] for name in names}
    return {name: options_of(bench.schemes[name], columns[name])[0] for name in names}


def ranks(values: list[float]) -> list[int]:
    return [sorted(values).index(value) for value in values]


def test_sensitivities_are_what_rounding_a_layer_alone_does(bench: Bench, found: dict[str, Sensitivity]) -> None:
    units = {unit_of(name) for name in decoder_names(bench.job) & set(bench.schemes)}
    assert set(found) == units
    measured = measure(bench, {unit: cheapest(bench, unit) for unit in units})
    for unit in units:
        # Sensitivities look at 24 spread positions of each sample, the measurement at all of them.
        assert measured[unit] / 3 < found[unit].kl < measured[unit] * 3
    order = sorted(units)
    ours, theirs = ranks([found[unit].kl for unit in order]), ranks([measured[unit] for unit in order])
    assert np.corrcoef(ours, theirs)[0, 1] > 0.5


def test_divergences_add_up(bench: Bench, found: dict[str, Sensitivity]) -> None:
    """Of all layers together: their sum, within a factor of two."""
    everything = {name: scheme for unit in found for name, scheme in cheapest(bench, unit).items()}
    total = measure(bench, {"all": everything})["all"]
    assert total / 2 < sum(value.kl for value in found.values()) < total * 2


def shapes(bench: Bench, found: dict[str, Sensitivity]) -> dict[str, tuple[int, int]]:
    names = (name for value in found.values() for name in value.errors)
    return {name: (t := bench.model.checkpoint.tensor(name).shape)[:1] + t[1:2] for name in names}  # type: ignore[misc]


def test_more_bytes_mean_less_divergence_as_predicted(bench: Bench, found: dict[str, Sensitivity]) -> None:
    sizes = shapes(bench, found)
    options = {name: options_of(bench.schemes[name], shape[1]) for name, shape in sizes.items()}
    least, most = (sum(stored(sizes[name], row[place]) for name, row in options.items()) for place in (0, -1))
    made: dict[str, dict[str, Scheme]] = {}
    for share in (0.0, 0.3, 0.6, 1.0):
        limit = int(least + share * (most - least))
        chosen = mixed_schemes(found, bench.schemes, sizes, max_bytes=limit, max_kl=None)
        assert set(chosen) == set(sizes)
        assert sum(stored(sizes[name], scheme) for name, scheme in chosen.items()) <= limit
        made[str(share)] = chosen
    assert {scheme.bits for scheme in made["0.0"].values()} == {4}
    assert {scheme.bits for scheme in made["0.6"].values()} == {4, 8}
    measured = list(measure(bench, made).values())
    assert measured == sorted(measured, reverse=True)
    assert measured[-1] < 0.1 * measured[0]
    least_bytes = mixed_schemes(found, bench.schemes, sizes, max_bytes=None, max_kl=measured[1])
    assert least <= sum(stored(sizes[name], scheme) for name, scheme in least_bytes.items()) < most


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("columns", [96, 128, 640])
def test_sizes_are_those_of_the_data_files(bits: int, columns: int) -> None:
    """What the choice counts for a matrix is what its parameters take, with zero points and without."""
    for symmetric in (True, False):
        for scheme in options_of(Scheme(bits, 32, symmetric), columns):
            parameters = Matrix(5, columns, scheme).parameters(recurse=False)
            assert stored((5, columns), scheme) == sum(map(stored_bytes, parameters))


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def run(cli: Cli, path: Path, out: Path, *arguments: object) -> dict[str, Any]:
    samples = write_samples(out.parent / "samples", 8)
    ran = cli("export", path, "-o", out, "--samples", samples, "--calibrate", "mse", "--golden", "never", *arguments)
    assert ran.code == 0, ran.err
    manifest: dict[str, Any] = open_bundle(out).content
    return manifest


@pytest.mark.parametrize("family", ["llava", "nemotron untied without MTP"])
def test_a_bundle_is_never_above_its_budget(
    cli: Cli, benches: Callable[[str], Bench], family: str, tmp_path: Path
) -> None:
    path, sizes, bits = benches(family).path, [], []
    samples = write_samples(tmp_path / "samples", 8)
    for name, precision in (("least", "int4"), ("most", "int8")):
        assert cli("export", path, "-o", tmp_path / name, "--precision", precision, "--golden", "never").code == 0
    least, most = size_of(tmp_path / "least"), size_of(tmp_path / "most")
    assert samples.exists()
    for share in (0.35, 0.8):
        budget = int(least + share * (most - least))
        out = tmp_path / str(share)
        manifest = run(cli, path, out, "--budget", budget)
        sizes.append(size_of(out))
        assert sizes[-1] <= budget
        assert len(manifest["evidence"]["calibration"]["sensitivity"]) >= 3
        rows = manifest["precision"]
        bits.append(sum(row["bits"] * row["parameters"] for row in rows.values()))
        chosen = [row for row in rows.values() if "predicted KL" in row["reason"]]
        assert chosen
        assert {row["bits"] for row in chosen} <= {4, 8}
    assert sizes[0] < sizes[1]
    assert bits[0] < bits[1]


def test_a_budget_starts_from_the_precision_that_was_asked_for(
    cli: Cli, benches: Callable[[str], Bench], tmp_path: Path
) -> None:
    path = benches("llava").path
    plans = [bundle_bytes(prepare(path, Options(precision=precision))) for precision in ("int2", "int4")]
    budget = sum(plans) // 2
    rows = run(cli, path, tmp_path / "low", "--precision", "int2", "--budget", budget)["precision"]
    assert size_of(tmp_path / "low") <= budget
    chosen = {row["bits"] for row in rows.values() if "predicted KL" in row["reason"]}
    assert min(chosen) == 2
    assert len(chosen) > 1  # some were worth more


def test_the_divergence_that_was_asked_for_is_kept_as_measured(
    cli: Cli, benches: Callable[[str], Bench], tmp_path: Path
) -> None:
    path, plain, mixed = benches("llava").path, tmp_path / "plain", tmp_path / "mixed"
    judged = [run(cli, path, plain)["evidence"]["calibration"]["judgement"]["calibrated"]["kl"]]
    limit = 0.7 * float(np.mean(list(judged[0].values())))
    judged.append(run(cli, path, mixed, "--max-kl", limit)["evidence"]["calibration"]["judgement"]["calibrated"]["kl"])
    assert np.mean(list(judged[1].values())) <= 1.001 * limit  # the manifest has 4 digits
    assert size_of(plain) < size_of(mixed)


def test_the_floor_is_measured_and_named(cli: Cli, benches: Callable[[str], Bench], tmp_path: Path) -> None:
    """With everything at 8 bits, the token table, too; what is asked beyond it is refused with this figure."""
    bench = benches("llava")
    judged = {}
    for name, scheme in (("floor", Scheme(8, 32)), ("table at 4 bits", Scheme(4, 32))):
        tables = {source.name for source in bench.model.tables}
        chosen = {n: scheme if n in tables else Scheme(8, 32) if n in decoder_names(bench.job) else s
                  for n, s in bench.schemes.items()}  # fmt: skip
        judged[name] = nearest(bench.model, chosen)
    encoder = {**bench.schemes, **{source.name: UNQUANTIZED for source in bench.model.decoder.sources}}
    judged["encoder"] = nearest(bench.model, encoder)
    found = judge(bench.model, bench.samples.held_out, bench.samples.pictures, judged)
    floor, table, alone = (found[name].mean_kl for name in ("floor", "table at 4 bits", "encoder"))
    assert alone < floor < table
    samples = write_samples(tmp_path / "samples")  # those of the bench
    arguments = ("export", bench.path, "--samples", samples, "--calibrate", "mse", "--golden", "never")
    ran = cli(*arguments, "-o", tmp_path / "too little", "--max-kl", (alone + floor) / 2)
    assert_one_sentence(ran, f"{floor:.2g}"[:3], "raise --max-kl")
    assert "8 bits in groups of 32" in ran.err
    assert cli(*arguments, "-o", tmp_path / "enough", "--max-kl", floor * 1.05).code == 0
    rows = open_bundle(tmp_path / "enough").content["precision"]
    assert {rows[source.name]["bits"] for source in bench.model.tables} == {8}


IMPOSSIBLE: dict[str, tuple[tuple[object, ...], str, str]] = {
    "budget": (("--budget", "100kB"), "a bundle of --precision int4 takes", "raise it"),
    "no budget": (("--budget", "0"), "--budget is 0", "smaller --precision"),
    "a budget between": (("--budget", "LEAST"), "a bundle of --precision int4 takes", "raise it"),
    "groups": (("--budget", "100MB", "--group-size", "64"), "choose the size of groups", "leave out --group-size"),
    "divergence": (("--max-kl", "1e-9"), "1e-09", "raise"),
    "both": (("--budget", "1MB", "--max-kl", "0.1"), "cannot both", "each decides the other"),
    "method": (("--calibrate", "gptk"), "gptk", "did you mean 'gptq'?"),
    "precision": (("--calibrate", "mse", "--precision", "int8"), "int8", "use int4"),
    "format": (("--calibrate", "mse", "--format", "gguf"), "GGUF", "use --calibrate imatrix"),
    "size": (("--budget", "much"), "much", "expected one like"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_wishes(cli: Cli, benches: Callable[[str], Bench], case: str, tmp_path: Path) -> None:
    wish, thing, next_step = IMPOSSIBLE[case]
    path, samples = benches("llava").path, write_samples(tmp_path / "samples")
    if "LEAST" in wish:
        planned = bundle_bytes(prepare(path, Options()))
        wish = ("--budget", planned)  # what the manifest says of calibration has no room
    ran = cli("export", path, "-o", tmp_path / "bundle", "--samples", samples, "--golden", "never", *wish)
    assert_one_sentence(ran, thing, next_step)
    assert not (tmp_path / "bundle").exists()


def test_an_encoder_has_nothing_to_judge(cli: Cli, tmp_path: Path) -> None:
    assert cli("synth", "arlow-vision", "--tiny", "-o", tmp_path / "arlow").code == 0
    ran = cli("export", tmp_path / "arlow", "-o", tmp_path / "bundle", "--calibrate", "mse")
    assert_one_sentence(ran, "no decoder", "leave out --calibrate")
