"""Exchange with other software, without executing anything of it.

`reference`: configs and state dicts of the PyTorch reference. `checkpoint_dir`: its checkpoint
folders. `torch_prune`: masks for PyTorch's own pruning tools. `df_pickle`: document frequencies of
other self-critical codes.
"""
