"""Types of values in a manifest, each with the range that makes sense."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta

# Text that people see: no control characters, which would steer their terminals, but line ends and tabs.
_PLAIN = r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$"
Text: TypeAlias = Annotated[str, Meta(max_length=20_000, pattern=_PLAIN)]
Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=1000, pattern=_PLAIN)]
Token: TypeAlias = Annotated[str, Meta(min_length=1, max_length=1000)]
Hash: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
TokenId: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 31)]
Size: TypeAlias = Annotated[int, Meta(ge=1, lt=1 << 31)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 50)]
Side: TypeAlias = Annotated[int, Meta(ge=1, le=1 << 11)]  # of a patch or of an image of a fixed size, in pixels
Area: TypeAlias = Annotated[int, Meta(ge=1, lt=1 << 31)]  # of an image, or of all frames of a video, in pixels
LeastArea: TypeAlias = Annotated[int, Meta(ge=1, le=1 << 26)]  # that smaller images are enlarged to
Number: TypeAlias = Annotated[float, Meta(ge=-1e30, le=1e30)]
Factor: TypeAlias = Annotated[float, Meta(gt=1e-9, le=1e9)]
Mean: TypeAlias = Annotated[list[Annotated[float, Meta(ge=-1e6, le=1e6)]], Meta(min_length=3, max_length=3)]
Std: TypeAlias = Annotated[list[Annotated[float, Meta(ge=1e-6, le=1e6)]], Meta(min_length=3, max_length=3)]
Sides: TypeAlias = Annotated[list[Side], Meta(min_length=2, max_length=2)]
Shape: TypeAlias = Annotated[list[Size | Name], Meta(max_length=8)]
Bits: TypeAlias = Annotated[int, Meta(ge=1, le=64)]
GroupSize: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 31)]
