"""Published results of the papers, typed in once as `published.csv`.

Results on the Karpathy test split of COCO. `2110.03298 methods` are CIDEr and BLEU-4 of the pruning
methods after cross-entropy training, as the charts of arXiv 2110.03298 and the README of its code
(https://github.com/jiahuei/sparse-image-captioning) have them. `2110.03298 overview` and
`2202.05451 overview` are the models of the overview charts of that paper and of ACORT (arXiv
2202.05451), after self-critical training, with the size of the weights' file where it is printed.
Sparsities and counts of nonzeros are rounded as printed (0.988 stands for 0.9875).
"""

import pathlib
from typing import Any

from sparsecap_jax.files import read_csv

METHODS = "2110.03298 methods"
_FILE = pathlib.Path(__file__).with_name("published.csv")


def published_results() -> list[dict[str, Any]]:
    """Return the published results, a row for each.

    Returns:
        Rows of `source`, `model`, `variant`, `method`, `sparsity`, `CIDEr`, and of `nonzeros`,
        `bytes` and `Bleu_4`, None where they are not printed; scores times 100.
    """
    rows = []
    for row in read_csv(_FILE):
        counts = {key: int(row[key]) if row[key] else None for key in ("nonzeros", "bytes")}
        scores = {key: float(row[key]) if row[key] else None for key in ("CIDEr", "Bleu_4")}
        rows.append({**row, **counts, **scores, "sparsity": float(row["sparsity"])})
    return rows
