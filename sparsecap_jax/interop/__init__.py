"""Exchange with other software: the PyTorch reference's checkpoints and configs."""
