"""Bundles that are compared run as they were tuned, unless somebody chose the threads."""

from __future__ import annotations

from pathlib import Path

import pytest
from lensmith.exporters.comparing.runners import BundleRunner
from lensmith.exporters.comparing.tuned_loading import loading_of_bundle, told_tuning
from lensmith.runtimes.bundle.opening import open_bundle
from lensmith.runtimes.tuning.tuned_files import keep_tuning
from lensmith.runtimes.tuning.tuning import USUAL, Tuning

SOME = Tuning(decode_threads=1, chunk=320)


@pytest.mark.usefixtures("tunings")
def test_what_a_bundle_is_opened_with(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    usual = {"threads": 2, "tuning": USUAL}
    assert loading_of_bundle(bundle, 2, tuned=True) == usual
    keep_tuning(bundle, Tuning())
    assert loading_of_bundle(bundle, 2, tuned=True) == usual
    keep_tuning(bundle, SOME)
    assert loading_of_bundle(bundle, 2, tuned=False) == usual
    assert loading_of_bundle(bundle, 2, tuned=True) == {"threads": None, "tuning": SOME}


@pytest.mark.usefixtures("tunings")
def test_a_report_names_it(tiny_bundle: Path) -> None:
    keep_tuning(open_bundle(tiny_bundle), SOME)
    tuned, usual = (BundleRunner(tiny_bundle, threads=2, tuned=each) for each in (True, False))
    assert tuned.engine == f"{usual.engine}, tuned here: decode threads 1, chunk 320"
    assert told_tuning(USUAL) == ""
