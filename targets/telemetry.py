"""Keeps ONNX Runtime from reporting to its maker: importing this file is enough, and comes before importing that.

From version 1.29 on, its import makes a device id and a database of events in the user's cache folder, looks up host
names and sends reports. Only the environment can keep all of that from happening: `disable_telemetry_events` comes too
late for the device id and the first event.
"""

from __future__ import annotations

import os
import sys
import warnings

SWITCH = "ORT_DISABLE_TELEMETRY"
WANTED = ("0", "false", "no", "off")  # of the switch, by a user who wants the reports


def silence() -> None:
    """Switch reports off, also for child processes; warn where ONNX Runtime was imported too early for that."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    chosen = os.environ.get(SWITCH, "")
    if chosen.lower() in WANTED:
        return
    if not chosen and (loaded := sys.modules.get("onnxruntime")):
        loaded.disable_telemetry_events()
        warnings.warn(
            f"onnxruntime was imported before lensmith and has started to report to its maker; further reports are "
            f"off now. Import lensmith first, or set {SWITCH}=1 ({SWITCH}=0 for leaving them on).",
            RuntimeWarning,
            stacklevel=2,
        )
    os.environ[SWITCH] = chosen or "1"


silence()
