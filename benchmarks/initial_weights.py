"""Seconds to draw the initial weights of models of the papers' sizes, with nothing compiled before.

    python benchmarks/initial_weights.py

"by shape" is `init_params`, which compiles a program for each shape; "as one" compiles all draws as
one program. Each runs in a process of its own. Nothing else should run on the machine.
"""

import os
import subprocess
import sys
import time

MODELS = ("relation_transformer", "up_down", "soft_attention")
WAYS = ("by shape", "as one")


def seconds(name, way):
    """Draw the weights here."""
    import jax

    from sparsecap_jax.models import init_params, make_model
    from sparsecap_jax.runs.config import default_config, model_config

    model = make_model(model_config(default_config(model=name), vocab_size=10_000))
    rng = jax.block_until_ready(jax.random.key(0))

    def draw(rng):
        return init_params(model, rng)

    start = time.perf_counter()
    jax.block_until_ready((draw if way == "by shape" else jax.jit(draw))(rng))
    return time.perf_counter() - start


def main():
    """Print a line for each model."""
    if len(sys.argv) == 3:
        print(f"{seconds(*sys.argv[1:]):.2f}")
        return
    env = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"}
    print(f"| model | {' | '.join(WAYS)} |\n|---|--:|--:|")
    for name in MODELS:
        commands = [[sys.executable, __file__, name, way] for way in WAYS]
        found = [subprocess.check_output(command, env=env, text=True) for command in commands]
        print(f"| {name} | {' | '.join(map(str.strip, found))} |")


if __name__ == "__main__":
    main()
