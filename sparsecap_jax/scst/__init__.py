"""Self-critical sequence training: rewards of sampled captions."""
