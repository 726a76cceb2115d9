"""Whether the accelerator computes what the CPU computes; parts of accelerator.py.

Models are those of the papers, two layers deep and narrow, with random weights whose logits are
spread as those of trained models are. The CPU computes in float32 at highest precision.
"""

import functools
import itertools

import numpy as np
from decoding_cases import logit_layer
from paper_models import FIELDS, MAX_LENGTH, our_fields, paper_config, reward_texts
from step_cases import caption_batch, make_rewards

IMAGES, SPREAD = 6, 8.0
NARROW = 8  # divisor of widths; larger ones of --scale count
MODELS = (*FIELDS, "soft_attention_gru")
# By precision: largest error of a log-prob in nats, and of a gradient, relative to its norm. TPUs
# multiply in bfloat16 by default, some GPUs in TF32.
TOLERANCES = {"highest": (1e-3, 1e-3), "default": (0.1, 0.05), "bfloat16": (0.1, 0.05)}
# float32 leaves the sines of the ORT's box embedding errors of up to 1e-3, on every machine.
BOX_FACTOR = 10
WRONG_MASKS = 2e-6  # sigmoids may differ in the last place, and with them one draw in 65,536
REWARD_TOLERANCE = 1e-4  # of rewards from 0 to 11


def narrow_model(name, scale, dtype):
    """A model of MODELS, and the reference's config."""
    from sparsecap_jax.models import make_model

    config = paper_config(name.removesuffix("_gru"), max(scale, NARROW))
    fields = our_fields(config) | {"compute_dtype": dtype}
    if name.endswith("_gru"):
        fields["cell"] = "gru"
    if "num_layers" in fields:
        fields["num_layers"] = 2
        shared = {key: (0, 0) for key in fields if key.startswith("share_layer") and fields[key]}
        fields |= shared
    return make_model(fields), config


@functools.cache
def _teacher(model):
    """Compiled log-probs of a batch, and gradients with dropout."""
    import jax

    from sparsecap_jax.training.objectives import CrossEntropy, Task

    def teacher(params, batch):
        log_probs = model.apply({"params": params}, batch.regions, batch.tokens)
        loss = functools.partial(CrossEntropy(task=Task(model)).loss, inputs=batch, step=0)
        loss = functools.partial(loss, rng=jax.random.key(1), static=None, resources=())
        return log_probs, jax.grad(loss, has_aux=True)(params)[0]

    return jax.jit(teacher)


def answers(model, params, batch, searches):
    """Log-probs, gradients with dropout, and captions, computed on JAX's default device."""
    import jax

    from sparsecap_jax.decoding import decode

    def search(options):
        rng = jax.random.key(2) if options.method == "sample" else None
        return decode(model, params, batch.regions, options, rng)

    found = _teacher(model)(params, batch), {name: search(o) for name, o in searches.items()}
    return jax.device_get(found)


def parity(name, precision, scale):
    """Compare one model in one precision; `ok` says whether all is within the tolerances."""
    import jax

    exact = precision == "highest"
    dtype = "bfloat16" if precision == "bfloat16" else "float32"
    model, _ = narrow_model(name, scale, dtype)
    params, batch, searches = _case(name, scale)
    if not exact:
        searches = {"greedy": searches["greedy"]}
    multiplied = jax.default_matmul_precision("highest" if exact else "default")
    with jax.default_device(jax.devices()[0]), multiplied:
        (log_probs, grads), captions = answers(model, params, batch, searches)
    (true_log_probs, true_grads), true_captions = _on_cpu(name, scale)
    row = {
        "log_prob_error": float(np.max(np.abs(log_probs - true_log_probs))),
        "gradient_error": gradient_error(grads, true_grads),
    }
    for kind, found in captions.items():
        same = np.all(found.tokens == true_captions[kind].tokens, axis=-1)
        row[f"equal_{kind}"] = float(np.mean(same))
    row |= judge_greedy(name, scale, batch.regions, captions["greedy"])
    factor = BOX_FACTOR if model.needs_boxes else 1
    allowed, allowed_gradient = (factor * limit for limit in TOLERANCES[precision])
    # Two log-probs, each with an error, decide which token is the best.
    errors = row["log_prob_error"], row["score_error"], row["margin"] / 2
    ok = max(errors) <= allowed and row["gradient_error"] <= allowed_gradient
    return row | {"tolerances": [allowed, allowed_gradient], "ok": bool(ok)}


@functools.cache
def _case(name, scale):
    """Params and a batch, arrays of NumPy, and searches by name."""
    import jax

    from sparsecap_jax.decoding import DecodeOptions
    from sparsecap_jax.models import init_params

    model, config = narrow_model(name, scale, "float32")
    with jax.default_device(jax.devices("cpu")[0]):
        params = init_params(model, jax.random.key(0))
        params = jax.tree.map(np.array, params)
    logit_layer(params)["kernel"] *= SPREAD
    ids = {"bos_id": config["bos_token_id"], "eos_id": config["eos_token_id"]}
    options = functools.partial(DecodeOptions, max_length=config["max_seq_length"], **ids)
    searches = {
        "greedy": options(method="greedy"),
        "beam": options(method="beam", beam_size=3),
        "sample": options(method="sample", num_samples=5),
    }
    return params, caption_batch(config, IMAGES), searches


@functools.cache
def _on_cpu(name, scale):
    import jax

    model, _ = narrow_model(name, scale, "float32")
    with jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("highest"):
        return answers(model, *_case(name, scale))


def gradient_error(grads, expected):
    """Largest error of a leaf's gradient, relative to its norm.

    Norms below a thousandth of the whole gradient's count as that: they are sums of rounding.
    """
    import jax

    whole = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(expected)))

    def error(leaf, other):
        return np.linalg.norm(leaf - other) / max(np.linalg.norm(other), 1e-3 * whole)

    return float(max(jax.tree.leaves(jax.tree.map(error, grads, expected))))


def judge_greedy(name, scale, regions, captions):
    """Score greedy captions of the accelerator on the CPU, by teacher forcing.

    Near ties may be decided either way, so that equal captions are not asked for. Instead each
    token must be as probable as the best one, given the tokens before it.

    Returns:
        `score_error`: largest error of a caption's log-prob, per token. `margin`: largest lead of
        the CPU's best token over the chosen one, in nats.
    """
    import jax

    model, config = narrow_model(name, scale, "float32")
    params, _, _ = _case(name, scale)
    tokens, lengths = captions.tokens, captions.lengths
    first = np.full_like(tokens[..., :1], config["bos_token_id"])
    given = np.concatenate([first, tokens[..., :-1]], axis=-1)
    with jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("highest"):
        log_probs = np.asarray(jax.jit(model.apply)({"params": params}, regions, given))
    chosen = np.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]
    inside = np.arange(tokens.shape[-1]) < lengths[..., None]
    score_error = np.abs(np.sum(chosen * inside, axis=-1) - captions.scores) / lengths
    margin = (log_probs.max(axis=-1) - chosen) * inside
    return {"score_error": float(score_error.max()), "margin": float(margin.max())}


def mask_draws(size):
    """Draw and round `size` supermasks on both devices; random bits must be equal."""
    import jax
    import jax.numpy as jnp

    from sparsecap_jax.pruning.supermask import bernoulli, random_bits, rounded

    logits = np.random.default_rng(0).normal(0, 4, size).astype(np.float32)

    @jax.jit
    def draw(logits):
        key = jax.random.key(3)
        (bits,) = random_bits(key, [size])
        others = jax.random.bits(jax.random.fold_in(key, 1), (size,), jnp.uint32)  # as of dropout
        return bits, others, bernoulli(logits, bits, False), rounded(logits, False)

    found = jax.device_get(draw(logits))
    with jax.default_device(jax.devices("cpu")[0]):
        expected = jax.device_get(draw(logits))
    different = [float(np.mean(a != b)) for a, b in zip(found, expected, strict=True)]
    names = ("different_bits", "different_jax_bits", "different_masks", "different_rounded")
    row = dict(zip(names, different, strict=True)) | {"masks": size}
    row["ok"] = not any(different[:2]) and different[2] <= WRONG_MASKS and not different[3]
    return row


def rewards(scale, images=200):
    """Reward captions on both devices, and by the host's scorer in float64."""
    import jax

    from sparsecap_jax.scst.document_frequency import count_documents
    from sparsecap_jax.scst.scorers import HostScorer

    config = paper_config("up_down", scale)
    texts = reward_texts(config, images + 1)
    # Three references of the image itself, and two of the next one.
    captions = [own[:3] + other[:2] for own, other in itertools.pairwise(texts)]
    tokens = np.zeros((images, 5, MAX_LENGTH), np.int32)
    lengths = np.zeros((images, 5), np.int32)
    for image, row in enumerate(captions):
        for number, text in enumerate(row):
            ids = [int(word[1:]) for word in text.split()]
            tokens[image, number, : len(ids)], lengths[image, number] = ids, len(ids)
    scorer = make_rewards(texts, config["vocab_size"])
    numbers = np.arange(images)
    given = scorer.resources, scorer.gather(numbers), tokens, lengths
    found = np.asarray(jax.jit(scorer)(*given))
    with jax.default_device(jax.devices("cpu")[0]):
        on_cpu = np.asarray(jax.jit(scorer)(*given))
    host = HostScorer(count_documents(texts), texts).score_texts(captions, numbers)
    host = scorer.weights.combine(np, *host)
    row = {
        "reward_error": float(np.max(np.abs(found - on_cpu))),
        "host_error": float(np.max(np.abs(found - host))),
        "mean_reward": float(np.mean(host)),
    }
    return row | {"ok": max(row["reward_error"], row["host_error"]) <= REWARD_TOLERANCE}
