"""Search options in words: their options of `decode`, their checks, flags and documentation."""

import dataclasses
import os
import pathlib
import subprocess
import sys
import zlib

import jax
import jaxtyping
import numpy as np
import pytest
from absl import flags

from sparsecap_jax.captioning.image_options import decode_options, image_options
from sparsecap_jax.captioning.search import SEARCHES, SearchOptions
from sparsecap_jax.commands import search_flags
from sparsecap_jax.decoding import DecodeOptions, must_contain
from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.tokenizers import TOKENIZERS

REPO = pathlib.Path(__file__).parents[2]
CAPTIONS = ["a big dog runs", "a small dog sleeps", "the cat sleeps", "a cat and the dog"] * 5


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return trained("word", tmp_path_factory)


@pytest.fixture
def types_unchecked(monkeypatch):
    """Let the options check their types themselves, as they do outside of tests."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def trained(name, tmp_path_factory, **options):
    directory = tmp_path_factory.mktemp(name)
    size = {"vocab_size": 30, **options}
    return TOKENIZERS[name].train(CAPTIONS, directory, **size)


def ids(tokenizer, *words):
    return tuple(tokenizer.encode(word, add_special=False)[0] for word in words)


def test_every_search_becomes_its_method(tokenizer):
    def made(**search):
        return decode_options(SearchOptions(**search), tokenizer, 9)

    special = {"max_length": 9, "bos_id": 2, "eos_id": 3, "pad_id": 0, "unk_id": 1}
    for search, expected in [
        ({"search": "greedy"}, {"method": "greedy"}),
        ({"beam_size": 1, "length_penalty": "avg_0"}, {"method": "greedy", "beam_size": 1}),
        ({}, {"beam_size": 5}),
        ({"beam_size": 3, "length_penalty": "wu_1"}, {"beam_size": 3, "length_penalty": "wu_1"}),
        ({"search": "diverse_beam"}, {"beam_size": 5, "num_groups": 5, "diversity": 0.5}),
        (
            {"search": "diverse_beam", "beam_size": 4, "num_groups": 2, "diversity": 1.0},
            {"beam_size": 4, "num_groups": 2, "diversity": 1.0},
        ),
        (
            {"search": "gumbel", "num_samples": 3, "temperature": 0.5, "top_k": 4},
            {"method": "gumbel", "num_samples": 3, "temperature": 0.5, "top_k": 4},
        ),
        (
            {"suppress": ["dog"], "bad_endings": ["a", "the"], "no_repeat_ngram": 2},
            {
                "suppress": ids(tokenizer, "dog"),
                "bad_endings": ids(tokenizer, "a", "the"),
                "no_repeat_ngram": 2,
            },
        ),
        ({"no_repeat": True, "suppress_unk": True, "min_length": 4},) * 2,
    ]:
        assert made(**search) == DecodeOptions(**special, **expected)


def test_prefix_and_required_words_of_all_images_or_of_each(tokenizer):
    options = DecodeOptions(max_length=9)
    a, big, dog, cat, the = ids(tokenizer, "a", "big", "dog", "cat", "the")

    def made(**search):
        return image_options(SearchOptions(**search), tokenizer, options, [7, "x", 9])

    np.testing.assert_array_equal(made(prefix="a big")["prefix"], [[a, big]] * 3)
    prefix = {7: "the", 9: "a big"}
    for one in (prefix, {"7": "the", "0009": "a big"}):
        np.testing.assert_array_equal(made(prefix=one)["prefix"], [[the, 0], [0, 0], [a, big]])
    assert made() == {"rng": None, "prefix": None, "required": None}
    for required, phrases in [
        (["big dog", "cat"], [[[[big, dog]], [[cat]]]] * 3),
        ({"x": ["cat | the dog"]}, [[], [[[cat], [the, dog]]], []]),
    ]:
        expected = must_contain(phrases, options)
        found = made(required=required)["required"]
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert made(prefix=prefix)["rng"] is None


def test_samples_have_a_key_of_the_seed_and_the_image(tokenizer):
    def keys(image_ids, seed):
        search = SearchOptions(search="sample", seed=seed)
        return image_options(search, tokenizer, DecodeOptions(max_length=9), image_ids)["rng"]

    for seed in (0, -3, 2**40 + 9):
        ids = np.array([zlib.crc32(name) for name in (b"5", b"name")], np.uint32)
        expected = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), ids)
        np.testing.assert_array_equal(keys([5, "name"], seed), jax.random.key_data(expected))
    first = np.asarray(keys([5, "name", 17], 0))
    np.testing.assert_array_equal(keys([17, 5], 0), first[[2, 0]])
    assert len({row.tobytes() for row in [*first, *np.asarray(keys([5], 1))]}) == 4


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"search": "bean"}, "search is 'bean'; did you mean 'beam'.*greedy, gumbel"),
        ({"search": "greedy", "beam_size": 3}, "beam_size: found 3 with .*; only beam, diverse_b"),
        ({"top_k": 3}, "top_k: found 3 with search 'beam'; only sample, gumbel can use it"),
        ({"suppress": "dog"}, "suppress: found text, expected a list of words"),
        ({"suppress": ["zebra"]}, "suppress: 'zebra' has a word that the tokenizer does not"),
        ({"bad_endings": ["a dog"]}, "bad_endings: 'a dog' takes 2 tokens of tokenizer 'word'"),
        ({"search": "diverse_beam", "num_groups": 2}, "num_groups: found 2, expected a divisor"),
        ({"search": "greedy", "consensus": 9}, "consensus: found 9 with .*; only beam, diverse_b"),
        ({"beam_size": 1, "consensus": 9}, "consensus: found one beam; expected several to choose"),
        ({"seed": 1}, "seed: found 1 with search 'beam'; only sample, gumbel can use it"),
    ],
)
@pytest.mark.usefixtures("types_unchecked")
def test_options_that_make_no_sense_are_refused(tokenizer, search, message):
    with pytest.raises(ConfigError, match=f"search option .*{message}"):
        decode_options(SearchOptions(**search), tokenizer, 9)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"beam_size": 0}, "beam_size is 0; expected at least 1"),
        ({"beam_size": True}, "beam_size is True; expected int"),
        ({"num_samples": 0, "search": "sample"}, "num_samples is 0; expected at least 1"),
        ({"num_groups": -1, "search": "diverse_beam"}, "num_groups is -1; expected at least 0"),
        ({"diversity": -0.5, "search": "diverse_beam"}, "diversity is -0.5; expected at least 0"),
        ({"temperature": 0}, "temperature is 0.0; expected above 0"),
        ({"temperature": float("inf")}, "temperature is inf; expected float"),
        ({"top_k": 2.5, "search": "sample"}, "top_k is 2.5; expected int"),
        ({"top_p": 1.5, "search": "sample"}, "top_p is 1.5; expected above 0 and at most 1"),
        ({"seed": "1", "search": "sample"}, "seed is '1'; expected int"),
        ({"no_repeat": 1}, "no_repeat is 1; expected bool"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram is -1; expected at least 0"),
        ({"min_length": -1}, "min_length is -1; expected at least 0"),
        ({"bad_endings": [3]}, r"bad_endings is \[3\]; expected a list of str"),
        ({"prefix": 3}, "prefix is 3; expected str"),
        ({"prefix": {1: ["a"]}}, r"prefix is \['a'\]; expected str"),
        ({"required": {1: "dog"}}, "required: found text, expected a list of words"),
        ({"length_penalty": "wu"}, 'length_penalty: found \'wu\', expected "", "wu_ALPHA"'),
        ({"length_penalty": "avg_x"}, "length_penalty: found 'avg_x', expected"),
        ({"length_penalty": "len_1"}, "length_penalty: found 'len_1', expected"),
        ({"length_penalty": "wu_nan"}, "length_penalty: found 'wu_nan', expected"),
    ],
)
@pytest.mark.usefixtures("types_unchecked")
def test_every_value_is_checked_at_construction(search, message):
    with pytest.raises(ConfigError, match=f"^search option {message}"):
        SearchOptions(**search)


@pytest.mark.usefixtures("types_unchecked")
def test_values_take_the_type_of_their_field():
    search = SearchOptions(temperature=2, suppress=["a"], required={7: ["dog", "cat"]})
    assert search == SearchOptions(temperature=2.0, suppress=("a",), required={7: ("dog", "cat")})
    assert isinstance(search.temperature, float)


def test_search_options_and_their_flags_load_without_jax():
    code = "import sys, sparsecap_jax.commands.search_flags; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    assert "sparsecap_jax.captioning.search" in modules
    assert not {"jax", "flax", "numpy"} & {*modules}


def test_the_documented_table_is_the_generated_one():
    text = (REPO / "docs/search_options.md").read_text("utf-8")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert table == search_flags.options_table().splitlines()


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"prefix": "a zebra"}, "prefix: 'a zebra' has a word that"),
        ({"prefix": "a " * 10}, "prefix: found 10 tokens, expected at most 9"),
        ({"required": ["dog|"]}, r"required: found 'dog\|', expected words around"),
        ({"required": ["dog", "zebra"]}, "required: 'zebra' has a word that"),
    ],
)
def test_words_that_no_caption_can_hold_are_refused(tokenizer, search, message):
    with pytest.raises(ConfigError, match=message):
        image_options(SearchOptions(**search), tokenizer, DecodeOptions(max_length=9), [1])


def test_options_that_radix_tokens_do_not_support_are_refused(tmp_path_factory):
    radix = trained("radix", tmp_path_factory, radix_base=3)
    width = radix.tokens_per_word
    assert width > 1
    with pytest.raises(ConfigError, match=f"'dog' takes {width} tokens of tokenizer 'radix'"):
        decode_options(SearchOptions(suppress=["dog"]), radix, 9)
    with pytest.raises(ConfigError, match="suppress_unk: tokenizer 'radix' spells unknown words"):
        decode_options(SearchOptions(suppress_unk=True), radix, 9)
    with pytest.raises(ConfigError, match="prefix: 'a zebra' has a word that"):
        image_options(SearchOptions(prefix="a zebra"), radix, DecodeOptions(max_length=30), [1])
    found = image_options(SearchOptions(prefix="a dog"), radix, DecodeOptions(max_length=30), [1])
    assert radix.decode(found["prefix"][0]) == "a dog"


def test_there_is_a_flag_for_every_option(monkeypatch, tmp_path):
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    for kind in ("enum", "integer", "float", "bool", "list", "string"):
        name = f"DEFINE_{kind}"
        define = getattr(flags, name)
        monkeypatch.setattr(
            flags, name, lambda *args, define=define: define(*args, flag_values=values)
        )
    search_flags.define()
    defined = set(values.flag_values_dict())
    assert defined == {field.name for field in dataclasses.fields(SearchOptions)}
    assert tuple(values["search"].parser.enum_values) == SEARCHES
    words = tmp_path / "words.json"
    words.write_text('{"17": ["dog", "cat|kitten"]}')
    values(["", "--search=sample", "--top_p=0.5", "--no_repeat", "--suppress=a,b", "--prefix=a b"])
    given = search_flags.given_options()
    assert given == {
        "search": "sample",
        "top_p": 0.5,
        "no_repeat": True,
        "suppress": ("a", "b"),
        "prefix": "a b",
    }
    for text, expected in [
        ("dog, cat|kitten", ("dog", "cat|kitten")),
        (str(words), {17: ["dog", "cat|kitten"]}),
    ]:
        values(["", f"--required={text}"])
        assert search_flags.given_options()["required"] == expected
    words.write_text('{"17": ["dog"], "017": ["cat"]}')
    with pytest.raises(DataError, match=r"words\.json: '17' and '017' are one image id"):
        search_flags.given_options()
    os.truncate(words, 2**27)
    with pytest.raises(DataError, match=r"words\.json: 134217728 bytes; expected JSON of at most "):
        search_flags.given_options()
    assert SearchOptions(**given).top_p == 0.5
