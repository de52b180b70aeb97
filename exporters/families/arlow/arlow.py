"""The vision encoder of Arlow as a family of its own: there is no decoder."""

from __future__ import annotations

from ...checkpoint.conventions import Conventions
from ..family import Family
from .arlow_synth import SYNTH
from .description import MODEL_TYPE, PREFIXES, depths, describe, dropped, graphs
from .processors import sections
from .traces_of_arlow import modules, record, torch_encoder

FAMILY = Family(
    name=MODEL_TYPE,
    describe=describe,
    prefixes=PREFIXES,
    depths=depths,
    graphs=graphs,
    dropped=dropped,
    sections=sections,
    conventions=Conventions(files_first=True),
    gguf=None,
    synth=SYNTH,
    record=record,
    modules=modules,
    encoder=torch_encoder,
)
