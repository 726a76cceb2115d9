"""Experiments that `launch/sweep.py` runs; each module defines `SWEEP`."""
