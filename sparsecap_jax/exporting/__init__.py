"""Captioners outside of JAX: StableHLO or ONNX with all that running them needs; web pages."""
