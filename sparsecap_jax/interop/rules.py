"""How a tensor of the PyTorch reference and a leaf of our params correspond."""

from typing import NamedTuple


class Rule(NamedTuple):
    """One correspondence between a tensor of the reference and a leaf of ours.

    Several reference names may share one path (layers shared by ACORT): their values are equal.

    Attributes:
        reference: name in the reference's state dict, such as `core.att_lstm.weight_ih`.
        path: path of the leaf in our params, such as `("att_lstm", "kernel_ih")`.
        kind: `linear` when the matrix is stored transposed there (`[out, in]`), else `same`.
    """

    reference: str
    path: tuple[str, ...]
    kind: str
