"""The demo, and the experiments of `launch/sweep.py`, whose modules define `SWEEP` or `SWEEPS`."""
