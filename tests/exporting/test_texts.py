"""Runner and web page turn ids into the text that each tokenizer makes of them."""

import chromium
import exported
import numpy as np
import pytest
from captioner_runs import WORDS

from sparsecap_jax.exporting.manifest import tokenizer_entry
from sparsecap_jax.exporting.web import PAGE
from sparsecap_jax.exporting.web_captioner import words_entry
from sparsecap_jax.tokenizers import TOKENIZERS, train_tokenizer

# Thai, whose vowel AM is taken apart and put together again.
CAPTIONS = [*WORDS, "\u0e19\u0e49\u0e33 caf\u00e9", "a dog, a cat"]
TEXTS = """
const [tokenizer, rows, done] = arguments;
import(new URL("captioner.js", location.href))
  .then(({ textOf }) => rows.map((row) => textOf(tokenizer)(row)))
  .then(done, (error) => done(String(error.stack ?? error)));
"""


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokens(request, tmp_path_factory):
    """A tokenizer, and rows of its ids."""
    name, folder = request.param, tmp_path_factory.mktemp("tokenizer")
    options = {"radix_base": 5} if name == "radix" else {}
    tokenizer = train_tokenizer(name, CAPTIONS, folder, vocab_size=60, **options)
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, tokenizer.vocab_size + 2, rng.integers(0, 12)) for _ in range(300)]
    rows += [tokenizer.encode(text) for text in CAPTIONS]
    rows += [tokenizer.encode(text, add_special=False) for text in (*CAPTIONS, "an ox flies")]
    return tokenizer, [[int(number) for number in row] for row in rows]


@pytest.fixture(scope="module")
def page():
    """A browser at a file next to those of the page."""
    if chromium.missing():
        pytest.skip(chromium.missing())
    from web_pages import served

    with served(PAGE) as address, chromium.browser() as driver:
        driver.get(f"{address}licences.txt")
        yield driver


def test_texts_of_the_runner(tokens):
    tokenizer, rows = tokens
    runner = exported.runner_of_source()
    captioner = runner.Captioner.__new__(runner.Captioner)
    captioner.tokenizer = tokenizer_entry(tokenizer)
    for row in rows:
        assert captioner.text(row) == tokenizer.decode(row), row


def test_texts_of_the_page(page, tokens):
    tokenizer, rows = tokens
    texts = page.execute_async_script(TEXTS, words_entry(tokenizer), rows)
    assert texts == [tokenizer.decode(row) for row in rows]
