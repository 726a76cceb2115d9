"""A warning where rewards are computed against document frequencies of another dataset.

Rare n-grams then look common and common ones rare, and the reward asks for other captions than the
metric does: a known reason why self-critical training lowers CIDEr.
"""

from collections.abc import Sequence

import numpy as np

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.scst.document_frequency import MAX_N, DocumentFrequency
from sparsecap_jax.scst.words import Vocabulary

# Frequencies that were counted on the references know every 4-gram of them, but those with rare
# words where these were mapped to one. Frequencies of other captions know few.
LEAST_COVERAGE = 0.6
_IMAGES = 2000


def coverage(frequency: DocumentFrequency, references: Sequence[Sequence[str]]) -> float:
    """Return the share of the references' 4-grams that have a frequency; 1 where there are none.

    Of the images, 2,000 at even distances are examined.
    """
    some = references[:: -(-len(references) // _IMAGES)]
    ids, lengths = Vocabulary(frequency.words).encode([text for texts in some for text in texts])
    full = np.arange(ids.shape[-1]) <= lengths[:, None] - MAX_N
    seen = frequency.look_up(ids)[..., -1] > 0
    return float(seen[full].mean()) if full.any() else 1.0


def check_document_frequency(
    frequency: DocumentFrequency, references: Sequence[Sequence[str]], source: str
) -> str:
    """Return a warning where document frequencies do not fit the training references, else "".

    `source` is the file, for messages.

    Raises:
        ConfigError: they count numbers of words, not words.
    """
    if frequency.tokens != "words":
        raise ConfigError(
            f"config.scst.document_frequency: {source} counts word numbers of another vocabulary; "
            "expected one that counts words (of a pair of pickles, the one named words)"
        )
    share = coverage(frequency, references)
    if share >= LEAST_COVERAGE:
        return ""
    return (
        f"FOREIGN DOCUMENT FREQUENCIES: {source} ({frequency.num_images:,} images"
        f"{', ' + frequency.dataset if frequency.dataset else ''}) knows only {share:.0%} of the "
        f"4-grams of the training captions ({len(references):,} images); those of this dataset "
        "would know nearly all. Rewards will not be the CIDEr-D of this dataset, and training on "
        "them may lower its CIDEr. Leave config.scst.document_frequency empty, or count them: "
        "sparsecap prepare_data df"
    )
