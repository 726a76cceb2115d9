"""Forms of a matrix, and what a product with each costs.

The costs were measured on an AMD EPYC of 2 cores (Zen 5), see docs/results/sparse_runtime.md; their
ratios decide the form of a matrix, and whether a search runs on the sparse runtime or on XLA.
`benchmarks/sparse_runtime.py --costs` times products on another machine.
"""

# Vectors that are multiplied side by side, and the side of a block; the kernels are written for
# these.
LANES = 8
BLOCK = 4
# Nanoseconds on one core, with one vector: of a weight of a dense matrix, of a kept weight in CSR,
# and of any weight of a kept 4 x 4 block; all from memory (blocks take half of it from the cache).
ONE_ROW_NS = {"dense": 0.15, "csr": 0.32, "blocks": 0.16}
# The same with many: of a dense matrix, a constant, and a part for each vector; of the others, for
# up to `LANES` vectors.
DENSE_ROWS_NS = 0.15, 0.009
LANES_NS = {"csr": 0.43, "blocks": 0.22}
# A weight that an entry of an embedded word is multiplied with, for each word.
WORD_NS = 0.5


def cost(form: str, weights: int | float, rows: int) -> float:
    """Return the nanoseconds that one core takes for a product with `rows` rows.

    `weights` are those that the form stores: all of them, the kept ones, or those of kept blocks.
    """
    if form == "dense":
        constant, slope = DENSE_ROWS_NS
        each = max(constant, slope * rows)
    else:
        each = ONE_ROW_NS[form] if rows == 1 else LANES_NS[form] * -(-rows // LANES)
    return float(weights * each)
