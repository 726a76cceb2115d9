"""Counts the captions that the sparse runtime and XLA do not share, token for token.

python benchmarks/equal_captions.py --images=1000 --models=up_down,ort
python benchmarks/equal_captions.py --checkpoint=flickr8k-mini --features=DIR

Captions differ where the order in which sums are added up decides: the margin is the difference of
log-probs, by the sparse runtime, of the two tokens at the first place that differs.
"""

import itertools

import decoding
import numpy as np
from absl import app, flags
from paper_models import our_fields, random_regions
from sparse_runtime import prune, random_weights, set_mean_length

IMAGES = flags.DEFINE_integer("images", 1000, "Images of random features.")
BATCH = flags.DEFINE_integer("batch", 50, "Images at a time.")
SPARSITY = flags.DEFINE_float("sparsity", 95.0, "Percent pruned of random models.")
BEAM_SIZES = flags.DEFINE_list("beam_sizes", ["1", "5"], "Beams; 1 is greedy search.")


def first_difference(model, regions, options, ours, theirs):
    """Return the margin at the first place where two captions of one image differ."""
    from sparsecap_jax import sparse

    place = int(np.flatnonzero(ours != theirs)[0])
    log_probs = []
    for tokens in (ours, theirs):
        prefix = tokens[None, : place + 1].astype(np.int32)
        forced = sparse.decode(model, regions, options, prefix=prefix)
        log_probs.append(forced.log_probs[0, 0, place])
    return abs(float(log_probs[0] - log_probs[1]))


def compare(name, module, params, model, batches, options_of):
    """Print a row for each number of beams."""
    from sparsecap_jax import sparse
    from sparsecap_jax.decoding import decode
    from sparsecap_jax.types import Regions

    for beam in map(int, BEAM_SIZES.value):
        options, greedy = options_of(beam), options_of(1)
        count, margins, scores = 0, [], 0.0
        for regions in batches():
            ours = sparse.decode(model, regions, options)
            theirs = decode(module, params, regions, options)
            scores = max(scores, float(np.abs(ours.scores - np.asarray(theirs.scores)).max()))
            tokens = ours.tokens[:, 0], np.asarray(theirs.tokens)[:, 0]
            count += len(tokens[0])
            for row in np.flatnonzero((tokens[0] != tokens[1]).any(axis=-1)):
                image = Regions(*(leaf[row : row + 1] for leaf in regions))
                pair = (one[row] for one in tokens)
                margins.append(first_difference(model, image, greedy, *pair))
        shown = ", ".join(f"{margin:.1e}" for margin in sorted(margins)[-5:])
        print(
            f"| {name} | {beam} | {count} | {len(margins)} | {shown} | {scores:.1e} |", flush=True
        )


def main(argv):
    """Print a table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    from sparsecap_jax import sparse
    from sparsecap_jax.types import Regions

    print("| model | beams | images | differ | largest margins | largest difference of scores |")
    print("| --- |" + " --: |" * 5)
    if decoding.CHECKPOINT.value:
        from sparsecap_jax.captioner import Captioner
        from sparsecap_jax.captioning.image_options import decode_options
        from sparsecap_jax.captioning.search import SearchOptions
        from sparsecap_jax.data.batches import make_eval_batches
        from sparsecap_jax.data.records import Record
        from sparsecap_jax.data.stores import open_store
        from sparsecap_jax.runs.finished import load_finished
        from sparsecap_jax.runs.published import resolve_run

        captioner = Captioner.load(decoding.CHECKPOINT.value, backend="sparse")
        run, config = captioner.run, captioner.config
        store = open_store(decoding.FEATURES.value, captioner.feature_size, captioner.needs_boxes)
        records = [Record(i) for i in itertools.islice(store.image_ids(), IMAGES.value)]
        batches = make_eval_batches(
            records, store, batch_size=BATCH.value, region_buckets=config.data.region_buckets
        )

        def whole():
            for batch in batches:
                rows = batch.index >= 0
                yield Regions(*(np.asarray(leaf)[rows] for leaf in batch.regions))

        def options_of(beam):
            search = SearchOptions(beam_size=beam)
            return decode_options(search, run.tokenizer, config.max_seq_length)

        model = load_finished(resolve_run(decoding.CHECKPOINT.value)).model
        compare(decoding.CHECKPOINT.value, run.model, run.params, model, whole, options_of)
        return
    for name in decoding.MODELS.value:
        config, module, dense = random_weights(name)
        params, fields = prune(dense, str(SPARSITY.value)), our_fields(config)
        decoding.add_clock(params, config)
        set_mean_length(fields, params, config, decoding.LENGTH.value)

        def random(config=config):
            # `random_regions` draws by the batch's size: other sizes, cut, give other images.
            for number in range(IMAGES.value // BATCH.value):
                drawn = random_regions(BATCH.value + number, config)
                yield Regions(*(leaf[-BATCH.value :] for leaf in drawn))

        model = sparse.make_sparse_model(fields, params)
        options = {b: decoding.decode_options(config, b) for b in (1, *map(int, BEAM_SIZES.value))}
        compare(f"{name} {SPARSITY.value}%", module, params, model, random, options.get)


if __name__ == "__main__":
    app.run(main)
