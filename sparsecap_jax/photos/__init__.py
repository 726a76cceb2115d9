"""Photos: reading them, region features by an extractor, folders of them for training."""
