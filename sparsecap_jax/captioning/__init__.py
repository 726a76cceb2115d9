"""Captions of images: search options, batches, streams, attention."""
