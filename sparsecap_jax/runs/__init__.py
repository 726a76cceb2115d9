"""Runs: config, recipes, run directory, checkpoints, the loop, logs, finished weights."""
