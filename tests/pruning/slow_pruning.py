"""Methods of `second_order` and windows of convolutions, entry by entry in float64."""

import itertools

import numpy as np


def slow_wanda(kernel, x, sparsity, pattern=None):
    """Return the mask: output by output, sorted products of |weight| and the norm of its input."""
    norms, mask = np.sqrt((x.astype(float) ** 2).sum(0)), np.ones(kernel.shape)
    size = pattern.m if pattern else len(kernel)
    gone = pattern.m - pattern.n if pattern else int(sparsity * size)
    for column, start in itertools.product(range(kernel.shape[1]), range(0, len(kernel), size)):
        places = slice(start, start + size)
        scores = np.abs(kernel[places, column].astype(float)) * norms[places]
        mask[start + np.argsort(scores, kind="stable")[:gone], column] = 0
    return mask


def slow_sparsegpt(kernel, x, sparsity, pattern, block):
    """Optimal brain surgery, input by input, with a fresh inverse for each."""
    weights, mask = kernel.astype(float), np.ones(kernel.shape)
    hessian = x.astype(float).T @ x.astype(float)
    hessian += 0.01 * np.diagonal(hessian).mean() * np.eye(len(kernel))
    inverse_at = [np.linalg.inv(hessian[i:, i:]) for i in range(len(kernel))]
    for i in range(len(kernel)):
        if i % (pattern.m if pattern else block) == 0:
            places = range(i, min(i + (pattern.m if pattern else block), len(kernel)))
            errors = np.array([weights[j] ** 2 / inverse_at[j][0, 0] for j in places])
            if pattern:
                for column in range(kernel.shape[1]):
                    mask[i + np.argsort(errors[:, column])[: pattern.m - pattern.n], column] = 0
            else:
                gone = np.argsort(errors.ravel())[: int(sparsity * errors.size)]
                mask[i : i + len(errors)].ravel()[gone] = 0
        removed = np.where(mask[i] == 0, weights[i], 0.0)
        change = inverse_at[i][0][:, None] * removed / inverse_at[i][0, 0]
        weights[i:] -= change
    return weights * mask, mask


def slow_patches(image, window, strides, padding, input_dilation, kernel_dilation, groups):
    """Return rows `[places, G, I]` that a window sees of one image `[*space, C]`.

    `padding` are pairs of zeros.
    """
    space, channels = image.shape[:-1], image.shape[-1]
    wide = [(n - 1) * d + 1 for n, d in zip(space, input_dilation, strict=True)]
    spread = np.zeros((*wide, channels))
    spread[tuple(slice(None, None, d) for d in input_dilation)] = image
    spread = np.pad(spread, [*padding, (0, 0)])
    reach = [(k - 1) * d + 1 for k, d in zip(window, kernel_dilation, strict=True)]
    counts = [(n - r) // s + 1 for n, r, s in zip(spread.shape, reach, strides, strict=False)]
    rows = []
    for place in itertools.product(*map(range, counts)):
        groups_of_place = [[] for _ in range(groups)]
        for offset in itertools.product(*map(range, window)):
            at = tuple(
                p * s + o * d
                for p, s, o, d in zip(place, strides, offset, kernel_dilation, strict=True)
            )
            for group, seen in enumerate(np.split(spread[at], groups)):
                groups_of_place[group].extend(seen)
        rows.append(groups_of_place)
    return np.array(rows)
