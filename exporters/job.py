"""What one export is about: the user's options, and a checkpoint with everything that was decided about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..targets.profile import TargetProfile
from .checkpoint.folder import Checkpoint
from .checkpoint.tokenizer_files import SourceTokenizer
from .families.family import Family, Sections
from .graphs.graph_files import Graph
from .spec import Spec
from .storage import weights
from .storage.scheme import Policy

if TYPE_CHECKING:
    from .formats.lowering import Lowering


@dataclass(frozen=True)
class Options:
    """What the user chose; everything that changes the bytes of a bundle. None stands for what was not said."""

    format: str = "onnx"  # a row of LOWERINGS
    precision: str = "int4"
    group_size: int | None = None  # a value of GROUP_SIZES; by default 128, or those of a quantized checkpoint
    symmetric: bool | None = None  # False: groups of the decoder have zero points
    target: str | None = None  # by default "cpu"
    context: int | None = None  # tokens; None: what the model was made for
    revision: str | None = None  # of the class that the checkpoint was trained with, where a family has several
    max_pixels: int | None = None  # largest image area of the bundle; None: the checkpoint's
    kv_cache: str | None = None  # float, float16 or int8; None: float16 in quantized bundles for CPUs
    tensor_types: tuple[str, ...] = ()  # of GGUF: PATTERN=TYPE, for single tensors

    def settled(self) -> Settled:
        """With a value for everything that the user left open."""
        chosen = {name: value for name, value in vars(self).items() if value is not None}
        return Settled(**chosen)


@dataclass(frozen=True)
class Settled(Options):
    """Options in which nothing is left open."""

    group_size: int = 128
    symmetric: bool = True
    target: str = "cpu"
    kv_cache: str = "float"


@dataclass(frozen=True)
class Calibrated:
    """What calibration hands to the export. The default is rounding to nearest."""

    parts: weights.Parts = lambda *_: None  # the stored form of a tensor, where it was calibrated
    floats: weights.Parts = lambda *_: None  # what was rounded to it: the same tensor, with the factors of smoothing
    key: str = ""  # of all that the weights depend on
    reasons: Mapping[str, str] = field(default_factory=dict)  # what became of a matrix, by name
    evidence: Mapping[str, Any] = field(default_factory=dict)
    importance: Mapping[str, Any] = field(
        default_factory=dict
    )  # of GGUF: Energy by source tensor, see formats/gguf/imatrix.py


@dataclass(frozen=True)
class Job:
    """A checkpoint with everything that was decided about it, before anything is written."""

    checkpoint: Checkpoint
    family: Family[Any]
    spec: Spec
    asked: Options
    options: Settled
    target: TargetProfile
    lowering: Lowering  # the row of the format
    policy: Policy
    graphs: tuple[Graph, ...]
    tokenizer: SourceTokenizer  # never opened of an encoder alone
    sections: Sections  # of the manifest, that say how to make prompts and cut images
    calibrated: Calibrated = field(default_factory=Calibrated)

    @property
    def parameters(self) -> int:
        """Values in all source tensors that are used."""
        return sum(self.checkpoint.tensors[source.name].size for graph in self.graphs for source in graph.sources)
