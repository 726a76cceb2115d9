"""Captioners outside of JAX: graphs as StableHLO and ONNX, with all that running them needs."""
