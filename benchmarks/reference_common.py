"""Loads models of the PyTorch reference, and Soft-Attention, for the scripts that time them."""

import importlib.abc
import importlib.machinery
import sys
from unittest.mock import MagicMock

# Imported by the reference for data and evaluation, not by what is timed here.
UNUSED = ("tqdm", "torchvision", "PIL", "sentencepiece", "six", "requests", "pkg_resources")


class Placeholders(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for what is not installed and not needed."""

    def find_spec(self, name, path=None, target=None):
        """Find one of the unused packages or a module of it."""
        if name.split(".")[0] in UNUSED:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        """Make a module that has every name."""
        module = MagicMock()
        module.__path__, module.__spec__, module.__name__ = [], spec, spec.name
        return module

    def exec_module(self, module):
        """Nothing is left to do."""


class Config(dict):
    """The reference reads its config by attribute and by `get`."""

    __getattr__ = dict.__getitem__


def build(checkout, config):
    """The model that `config` describes, with random weights."""
    if config["caption_model"] == "soft_attention":
        from torch_soft_attention import SoftAttention

        return SoftAttention(config)
    sys.path.insert(0, checkout)
    sys.meta_path.append(Placeholders())
    from sparse_caption.models import get_model
    from torch.nn import RNNCellBase

    # Checks of shapes, called by the masked LSTM cell, that newer releases of torch do not have.
    for check in ("check_forward_input", "check_forward_hidden"):
        setattr(RNNCellBase, check, lambda *args: None)

    return get_model(config["caption_model"])(Config(config))
