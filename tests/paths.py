"""Where tests find what lies beside them: the repository, stored references and the small trained models."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data"
TINY = ROOT / "tests" / "tiny_vlm"
