from ..targets import telemetry as _before_onnxruntime  # noqa: F401
