"""Which engine a batch runs on."""

from types import SimpleNamespace

import numpy as np
import pytest

from sparsecap_jax.captioning.engines import Automatic, Sparse
from sparsecap_jax.decoding.lexical import must_contain
from sparsecap_jax.decoding.options import DecodeOptions
from sparsecap_jax.decoding.stepper import Decoded
from sparsecap_jax.sparse import forms
from sparsecap_jax.types import Regions


class Asked(Sparse):
    """An engine whose `model` is the list of the numbers of rows that it is asked for."""

    def pays(self, rows):
        self.model.append(rows)
        return True

    def decode(self, regions, options, **images):
        return Decoded(*np.zeros((4, 1, 1, 1), np.float32))


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        (None, 2 * 3),
        ([[[[17]]], []], 2 * 3 * 2),  # 17 is missing, or not
        ([[[[17]], [[40]]], []], 2 * 3 * 4),  # any of both may be missing
    ],
)
def test_rows_are_images_times_beams_times_states_of_required_words(words, rows):
    options = DecodeOptions(method="beam", beam_size=3)
    required = words and must_contain(words, options)
    regions = Regions(
        features=np.zeros((2, 1, 4), np.float32),
        boxes=np.zeros((2, 1, 4), np.float32),
        mask=np.ones((2, 1), bool),
        fc=np.zeros((2, 4), np.float32),
    )
    engine = Asked([])
    automatic = Automatic(engine, make_compiled=pytest.fail)
    automatic.decode(regions, options, required=required)
    assert engine.model == [rows]


@pytest.mark.parametrize(
    ("form", "kept", "rows", "faster"),
    [
        ("csr", 0.2, 8, True),
        ("csr", 0.2, 250, False),
        ("csr", 0.1, 250, True),
        ("csr", 0.25, 250, False),
        ("blocks", 0.2, 250, True),
        ("dense", 1.0, 5, False),
        ("dense", 1.0, 250, False),
    ],
)
def test_auto_takes_what_was_faster_in_the_results_of_up_down(form, kept, rows, faster):
    """Rows of docs/results/sparse_runtime.md; 250 are 50 images with five beams."""

    def cost(count):
        return forms.cost(form, kept * 1e6, count)

    model = SimpleNamespace(products=[SimpleNamespace(size=1e6, cost=cost)])
    assert Sparse(model).pays(rows) == faster
