"""Time of a caption by the sparse runtime, XLA and the reference; of products by others, too.

python benchmarks/sparse_runtime.py --reference=DIR --reference_python=VENV/bin/python \
    --output=figures.json --plot=docs/results/sparse_runtime.png

Models of the papers' sizes get random weights, pruned at random to each of `--patterns`: a sparsity
in percent, N:M along the inputs such as `2:4`, or `blocks_PERCENT` of 4 x 4 weights. Runtimes take
turns in one process; the reference runs in another, and so do PyTorch's CSR and onnxruntime, where
they are installed beside it, with one product each. The constants of `sparse/forms.py` come from

python benchmarks/sparse_runtime.py --models=up_down --patterns=95,97.5,99.1,blocks_95 --settings= \
    --caption_length=0 --costs

With `--cpu`, seconds of the process count
instead of those of the clock, except for the reference: other work on the machine changes them
less. Floors are the bytes of the stored weights, as often as they are read, over the bandwidth at
which one core reads so many bytes.
"""

import functools
import json
import pathlib
import subprocess
import tempfile
import time
from unittest import mock

import decoding
import numpy as np
from absl import app, flags
from paper_models import our_fields, paper_config, random_regions

PATTERNS = flags.DEFINE_list(
    "patterns",
    ["80", "90", "95", "97.5", "99.1", "2:4", "1:4", "blocks_80", "blocks_95"],
    "Ways of pruning.",
)
CPU = flags.DEFINE_bool("cpu", False, "Count seconds of the process.")
SETTINGS = flags.DEFINE_list("settings", ["1x1", "1x5", "8x1", "50x5"], "Batch size x beams.")
PLOT = flags.DEFINE_string("plot", None, "PNG of the speed-ups.")
MATRICES = flags.DEFINE_bool("matrices", True, "Also time the products of a word one by one.")
COSTS = flags.DEFINE_bool("costs", False, "With --matrices: in every form, of several vectors.")

VECTORS = 1, 8, 50


def prune(params, pattern):
    """Prune every matrix of nested dicts at random, variances kept."""
    rng = np.random.default_rng(7)

    def pruned(name, leaf):
        if leaf.ndim < 2 or min(leaf.shape) < 8:
            return leaf
        kept, _, group = pattern.partition(":")
        share = int(kept) / int(group) if group else 1 - float(kept.rpartition("_")[2]) / 100
        if group:  # of consecutive inputs of an output
            lanes = (-(-leaf.shape[0] // int(group)), int(group), leaf.shape[1])
            order = rng.random(lanes).argsort(axis=1)
            mask = (order < int(kept)).reshape(-1, leaf.shape[1])[: leaf.shape[0]]
        elif pattern.startswith("blocks"):
            blocks = rng.random([-(-size // 4) for size in leaf.shape]) < share
            mask = blocks.repeat(4, axis=0).repeat(4, axis=1)[: leaf.shape[0], : leaf.shape[1]]
        else:
            mask = rng.random(leaf.shape) < share
        return np.where(mask, leaf / np.sqrt(share), 0).astype(np.float32)

    return {
        key: prune(value, pattern) if isinstance(value, dict) else pruned(key, value)
        for key, value in params.items()
    }


def bandwidth(size):
    """Return the bytes per second that one core reads of so many bytes, again and again."""
    array = np.ones(max(1, int(size) // 4), np.float32)
    return array.nbytes / fastest(array.max, 20)


def fastest(function, repeats):
    """Return the least seconds of a call."""
    seconds, clock = [], time.process_time if CPU.value else time.perf_counter
    for _ in range(repeats):
        start = clock()
        function()
        seconds.append(clock() - start)
    return min(seconds)


def in_turns(functions, repeats):
    """Return the least seconds of each function; they run one after the other, again and again.

    Each is called twice a turn and the second call counts: the caches then hold its own weights, as
    when images are captioned one after the other.
    """
    best = dict.fromkeys(functions, np.inf)
    for _ in range(repeats):
        for name, function in functions.items():
            function()
            best[name] = min(best[name], fastest(function, 1))
    return best


def random_weights(name):
    """Return the config of a model, and weights that are not pruned yet."""
    import jax

    from sparsecap_jax.models import abstract_params, make_model

    config = paper_config(name, decoding.SCALE.value)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key == "scale":
            return np.ones(leaf.shape, np.float32)
        fan_in = leaf.shape[0] if leaf.ndim > 1 and path[-1].key != "embedding" else 100
        bound = np.sqrt(3 / fan_in) if leaf.ndim > 1 else 0.01
        return rng.uniform(-bound, bound, leaf.shape).astype(np.float32)

    model = make_model(our_fields(config))
    return config, model, jax.tree_util.tree_map_with_path(draw, abstract_params(model))


def set_mean_length(fields, params, config, target):
    """As in `decoding.py`, with the sparse runtime, which compiles nothing."""
    from sparsecap_jax import sparse
    from sparsecap_jax.types import Regions

    logits = decoding.logit_layer(params)
    model = sparse.make_sparse_model(fields, params)
    regions = Regions(*random_regions(10, config))
    low, high = -500.0, 500.0
    for _ in range(12):
        # The bias of the last layer is read at every step: it need not be prepared again.
        logits["bias"][config["eos_token_id"]] = (low + high) / 2
        decoded = sparse.decode(model, regions, decoding.decode_options(config, 1))
        middle = (low + high) / 2
        low, high = (low, middle) if np.mean(decoded.lengths) < target else (middle, high)
    return model


def compare(name):
    """Return a row for each pattern and setting of a model."""
    import jax

    from sparsecap_jax import sparse
    from sparsecap_jax.decoding import decode, prepare
    from sparsecap_jax.types import Regions

    config, module, dense = random_weights(name)
    fields, rows = our_fields(config), []
    settings = [tuple(map(int, setting.split("x"))) for setting in SETTINGS.value if setting]
    for pattern in PATTERNS.value:
        params = prune(dense, pattern)
        if decoding.LENGTH.value:
            decoding.add_clock(params, config)
            set_mean_length(fields, params, config, decoding.LENGTH.value)
        model = sparse.make_sparse_model(fields, params)
        one_core = sparse.make_sparse_model(fields, params, threads=1)
        if MATRICES.value:
            kernels = print_matrices(name, pattern, one_core)
            if COSTS.value:
                print_costs(kernels)
        if not settings:
            continue
        on_device = jax.device_put(params)
        prepared = prepare(module, on_device)
        reference = {}
        if decoding.REFERENCE.value:
            for batch, beam in settings:
                batches = {batch: Regions(*random_regions(batch, config))}
                with tempfile.TemporaryDirectory() as folder:
                    folder = pathlib.Path(folder)
                    reference |= decoding.time_reference(params, config, batches, [beam], folder)
        for batch, beam in settings:
            regions = Regions(*random_regions(batch, config))
            options = decoding.decode_options(config, beam)
            captions = {}

            def xla(weights, prepared, regions=regions, options=options, captions=captions):
                found = decode(module, weights, regions, options, prepared=prepared)
                captions["xla"] = np.asarray(found.tokens)

            def ours(model, key, regions=regions, options=options, captions=captions):
                captions[key] = sparse.decode(model, regions, options)

            runs = {
                "xla": functools.partial(xla, on_device, prepared),
                "sparse": lambda run=ours, model=model: run(model, "sparse"),
                "one_core": lambda run=ours, model=one_core: run(model, "one_core"),
            }
            runs["xla"]()  # compiles
            seconds = in_turns(runs, decoding.REPEATS.value)
            lengths = captions["sparse"].lengths
            row = {"model": name, "pattern": pattern, "batch": batch, "beam": beam}
            row |= {"tokens": float(lengths.mean()), "reference": reference.get((batch, beam))}
            row |= seconds | work(products_of(runs["sparse"]), batch)
            same = (captions["sparse"].tokens == captions["xla"]).all(axis=-1)[:, 0]
            rows.append(row | {"differ": int((~same).sum())})
            print_row(rows[-1], first=len(rows) == 1)
    return rows


def products_of(run):
    """Return the products that a run makes, each with its number of rows."""
    from sparsecap_jax.sparse.matrices import Product, WordProduct

    made = []

    def noting(kind):
        add = kind.add

        def noted(product, inputs, results):
            made.append((product, results.size // results.shape[-1]))
            add(product, inputs, results)

        return mock.patch.object(kind, "add", noted)

    with noting(Product), noting(WordProduct):
        run()
    return made


def work(made, batch):
    """Return bytes moved and operations of a caption, dense and sparse, and the floor in seconds.

    Every product reads its weights once, but those of words for each row; CSR has two bytes of
    position for each, rows of words four, blocks two for 16.
    """

    def stored(product, rows=1):
        each = {"dense": 4, "csr": 6, "blocks": 4.125, "words": 8 * rows}[product.form]
        return product.stored * each

    moved = sum(stored(*one) for one in made)
    at_a_time = sum(stored(product) for product in {id(one): one for one, _ in made}.values())
    return {
        "dense_bytes": sum(4 * product.size for product, _ in made) / batch,
        "bytes": moved / batch,
        "dense_flop": sum(2.0 * product.size * rows for product, rows in made) / batch,
        "flop": sum(2.0 * product.stored * rows for product, rows in made) / batch,
        "floor": moved / bandwidth(at_a_time),
    }


def print_row(row, first):
    """Print a row of the table, milliseconds of a caption."""
    titles = ("model", "pattern", "batch", "beam", "XLA ms", "sparse ms", "one core")
    titles += ("reference", "x XLA", "x reference", "floor ms", "MB", "MFLOP", "dense MB")
    titles += ("dense MFLOP", "differ")
    if first:
        print("\n| " + " | ".join(titles) + " |\n|" + " --: |" * len(titles))
    per_image = 1e3 / row["batch"]
    cells = [row["model"], row["pattern"], row["batch"], row["beam"]]
    cells += [f"{row[key] * per_image:.2f}" for key in ("xla", "sparse", "one_core")]
    theirs = row["reference"]
    cells += [f"{theirs * per_image:.2f}" if theirs else ""]
    cells += [f"{row['xla'] / row['sparse']:.2f}"]
    cells += [f"{theirs / row['sparse']:.2f}" if theirs else "", f"{row['floor'] * per_image:.2f}"]
    cells += [f"{row[key] / 1e6:.1f}" for key in ("bytes", "flop", "dense_bytes", "dense_flop")]
    print("| " + " | ".join(map(str, [*cells, row["differ"]])) + " |", flush=True)


def print_matrices(name, pattern, model):
    """Print Amdahl's table: the microseconds of each product of one row, in each form.

    Return the kernels.
    """
    from sparsecap_jax.sparse.matrices import Product

    print(f"\n{name}, {pattern}: products of a word, microseconds on one core\n")
    print("| matrix | kept | form | dense | csr | blocks | torch CSR | onnxruntime | floor |")
    print("| --- |" + " --: |" * 8)
    kernels = [product.kernel() for product in model.products]
    theirs = zip(by_others("torch", kernels), by_others("onnxruntime", kernels), strict=True)
    for product, kernel, others in zip(model.products, kernels, theirs, strict=True):
        row = np.random.default_rng(0).standard_normal((1, kernel.shape[0])).astype(np.float32)
        times = []
        for form in ("dense", "csr", "blocks"):
            other = Product(kernel, form, threads=1)
            seconds = fastest(lambda other=other, row=row: other(row), 20)
            times.append(f"{1e6 * seconds:.0f}" if other.form == form else "")
        kept = np.count_nonzero(kernel)
        floor = 1e6 * 6 * kept / bandwidth(6 * kept)
        shape = " x ".join(map(str, kernel.shape))
        cells = [shape, kept, product.form, *times, *others, f"{floor:.0f}"]
        print("| " + " | ".join(map(str, cells)) + " |")
    return kernels


def print_costs(kernels):
    """Print the nanoseconds of a product for each stored weight, from which `forms.py` is set."""
    from scipy import sparse as scipy_sparse

    from sparsecap_jax.sparse.matrices import Product

    print("\nnanoseconds for each stored weight, by number of vectors, on one core\n")
    print("| matrix | form | stored | " + " | ".join(map(str, VECTORS)) + " |")
    print("| --- | --- |" + " --: |" * (1 + len(VECTORS)))
    for kernel in kernels:
        if kernel.size < 1_000_000:
            continue
        ways = {form: Product(kernel, form, threads=1) for form in ("dense", "csr", "blocks")}
        stored = {form: product.stored for form, product in ways.items()}
        matrix = scipy_sparse.csr_array(kernel.T)
        ways["scipy"], stored["scipy"] = lambda rows, m=matrix: m @ rows.T, matrix.nnz
        for form, product in ways.items():
            cells = [" x ".join(map(str, kernel.shape)), form, stored[form]]
            for count in VECTORS:
                rows = np.random.default_rng(0).standard_normal((count, len(kernel)), np.float32)
                seconds = fastest(lambda product=product, rows=rows: product(rows), 20)
                cells.append(f"{1e9 * seconds / max(1, stored[form]):.2f}")
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def by_others(library, kernels):
    """Return the microseconds of each product with one row by a library, "" without it."""
    if not decoding.REFERENCE.value:
        return [""] * len(kernels)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "kernels.npz")
        np.savez(path, **{str(number): kernel for number, kernel in enumerate(kernels)})
        script = pathlib.Path(__file__).with_name("other_products.py")
        command = [decoding.PYTHON.value, str(script), library, str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"no figures of {library}: {done.stderr.strip().splitlines()[-1]}\n")
        return [""] * len(kernels)
    return [f"{microseconds:.0f}" for microseconds in json.loads(done.stdout)]


def plot(rows, path):
    """Draw how often as fast as XLA a caption is, over the share of weights pruned."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row["pattern"].replace(".", "").isdigit()]
    models = list(dict.fromkeys(row["model"] for row in rows))
    kept = {100 - float(row["pattern"]): f"{row['pattern']}%" for row in rows}
    figure = Figure(figsize=(5 * len(models), 4), layout="constrained")
    panels = figure.subplots(1, len(models), squeeze=False, sharex=True, sharey=True)[0]
    for name, panel in zip(models, panels, strict=True):
        of_model = [row for row in rows if row["model"] == name]
        for batch, beam in dict.fromkeys((row["batch"], row["beam"]) for row in of_model):
            points = [
                (100 - float(row["pattern"]), row["xla"] / row["sparse"])
                for row in of_model
                if (row["batch"], row["beam"]) == (batch, beam)
            ]
            search = "greedy" if beam == 1 else f"{beam} beams"
            label = f"{batch} {'image' if batch == 1 else 'images'}, {search}"
            panel.plot(*zip(*points, strict=True), "o-", label=label)
        panel.axhline(1, color="black", linewidth=0.8)
        panel.set(xscale="log", yscale="log", title=name, xlabel="weights pruned")
        panel.set_xticks(list(kept), list(kept.values()))
        panel.set_yticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
        panel.minorticks_off()
        panel.legend()
    panels[0].invert_xaxis()
    panels[0].set_ylabel("times as fast as XLA")
    figure.savefig(path, dpi=120)


def main(argv):
    """Measure, print and keep the figures."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    rows = [row for name in decoding.MODELS.value for row in compare(name)]
    if decoding.OUTPUT.value:
        pathlib.Path(decoding.OUTPUT.value).write_text(json.dumps(rows, indent=1))
    if PLOT.value:
        plot(rows, PLOT.value)


if __name__ == "__main__":
    app.run(main)
