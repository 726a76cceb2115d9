"""Training: state, losses, optimizers, compiled steps, checkpoints, logs and the loop."""
