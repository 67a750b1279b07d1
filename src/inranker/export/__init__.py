"""A trained ranker to ONNX files, int8 behind a quality gate."""

from inranker.export.export import export_model

__all__ = ["export_model"]
