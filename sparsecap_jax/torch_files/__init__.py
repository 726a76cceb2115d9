"""PyTorch's file formats, read and written without executing anything in them."""
