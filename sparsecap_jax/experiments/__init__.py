"""The demo, and the experiments of `sparsecap sweep`, whose modules define `SWEEP` or `SWEEPS`."""
