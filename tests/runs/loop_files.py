"""Files of a run, read back; shared by the tests of the loop."""

from sparsecap_jax.files import read_csv
from sparsecap_jax.runs.checkpoints import Checkpoints


def last_variables(workdir):
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        return checkpoints.restore_variables(checkpoints.last_step())
    finally:
        checkpoints.close()


def losses(workdir):
    return [float(row["loss"]) for row in read_csv(workdir / "train.csv")]
