"""Datasets, feature stores and the input pipeline."""
