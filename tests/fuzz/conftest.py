"""Makes the helpers of other folders of tests importable."""

import fuzz_runs  # noqa: F401
