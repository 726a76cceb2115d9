"""The runner turns ids into the text that each tokenizer makes of them."""

import exported
import numpy as np
import pytest
from captioner_runs import WORDS

from sparsecap_jax.exporting.manifest import tokenizer_entry
from sparsecap_jax.tokenizers import TOKENIZERS, train_tokenizer

# Thai, whose vowel AM is taken apart and put together again.
CAPTIONS = [*WORDS, "\u0e19\u0e49\u0e33 caf\u00e9", "a dog, a cat"]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_texts_of_all_ids(tmp_path, name):
    runner = exported.runner_of_source()
    options = {"radix_base": 5} if name == "radix" else {}
    tokenizer = train_tokenizer(name, CAPTIONS, tmp_path, vocab_size=60, **options)
    captioner = runner.Captioner.__new__(runner.Captioner)
    captioner.tokenizer = tokenizer_entry(tokenizer)
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, tokenizer.vocab_size + 2, rng.integers(0, 12)) for _ in range(300)]
    rows += [tokenizer.encode(text) for text in CAPTIONS]
    rows += [tokenizer.encode(text, add_special=False) for text in (*CAPTIONS, "an ox flies")]
    for row in rows:
        assert captioner.text(row) == tokenizer.decode(list(row)), list(row)
