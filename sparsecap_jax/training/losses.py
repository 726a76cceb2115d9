"""Training losses: cross-entropy with teacher forcing, label smoothing, and the SCST reward loss.

All are sums over real tokens divided by their number, over the whole batch.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sparsecap_jax.types import ArrayLike, Batch


def _masked_mean(values: Float[Array, "*N T"], mask: ArrayLike) -> Float[Array, ""]:
    """Mean of the values that a {0, 1} mask keeps, 0 where it keeps none; others may be NaN."""
    weights = jnp.asarray(mask, jnp.float32)
    total = jnp.sum(jnp.where(weights != 0, values, jnp.float32(0.0)) * weights)
    return total / jnp.maximum(jnp.sum(weights), jnp.float32(1.0))


def cross_entropy(
    log_probs: Float[Array, "*N T V"],
    targets: Int[ArrayLike, "*N U"],
    mask: Bool[ArrayLike, "*N U"] | Float[ArrayLike, "*N U"],
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Mean negative log-likelihood of the real target tokens.

        loss = sum(mask * KL(q || p)) / sum(mask)

    q puts 1 - s on the target and s / (V - 1) on every other token; with s = 0 the divergence is
    -log p(target). Where lengths differ, both sides are cut to the shorter.

    Args:
        log_probs: `[..., T, V]` float32 log-probabilities.
        targets: `[..., U]` token ids; entry t belongs to `log_probs[..., t, :]`.
        mask: `[..., U]`, 1 or True for real tokens.
        label_smoothing: s, 0 <= s < 1.

    Returns:
        float32 scalar; 0 when the mask is empty.

    References:
        utils/losses.py of the PyTorch reference (LanguageModelCriterion, LabelSmoothing). There,
        label smoothing fails where log_probs are longer than the targets.
    """
    length = min(log_probs.shape[-2], targets.shape[-1])
    log_probs, targets = log_probs[..., :length, :], jnp.asarray(targets)[..., :length]
    chosen = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    if not label_smoothing:
        return _masked_mean(-chosen, mask[..., :length])
    # q is constant but for one entry, so that row sums do instead of a one-hot [..., T, V].
    confidence, other = 1.0 - label_smoothing, label_smoothing / (log_probs.shape[-1] - 1)
    entropy = confidence * math.log(confidence) + label_smoothing * math.log(other)
    rest = jnp.sum(log_probs, axis=-1) - chosen
    divergence = jnp.float32(entropy) - confidence * chosen - other * rest
    return _masked_mean(divergence, mask[..., :length])


def caption_loss(
    log_probs: Float[Array, "B S T V"], batch: Batch, label_smoothing: float = 0.0
) -> Float[Array, ""]:
    """Cross-entropy of a batch's captions under a model whose inputs were `batch.tokens`.

    Output t predicts token t + 1; the last output predicts nothing and is dropped.
    """
    mask = batch.token_mask[..., 1:]
    return cross_entropy(log_probs, batch.tokens[..., 1:], mask, label_smoothing)


def reward_loss(
    log_probs: Float[Array, "*N T"],
    rewards: Float[ArrayLike, "*N"],
    mask: Bool[ArrayLike, "*N T"] | Float[ArrayLike, "*N T"],
) -> Float[Array, ""]:
    """Policy-gradient loss of sampled captions (self-critical sequence training).

        loss = -sum(log_probs * reward * mask) / sum(mask)

    Args:
        log_probs: `[..., T]` log-probabilities of the sampled tokens.
        rewards: `[...]` reward of each caption over its baseline; no gradient flows into it here.
        mask: `[..., T]`, 1 or True for real tokens, EOS included.

    Returns:
        float32 scalar; 0 when the mask is empty.

    References:
        Rennie et al., "Self-critical sequence training for image captioning" (2017),
        arXiv 1612.00563.
    """
    return _masked_mean(-log_probs * rewards[..., None], mask)
