"""Tokenizers by hand, their random segmentations and folders, and bad input."""

import pickle
import threading

import ml_collections
import numpy as np
import pytest

from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.tokenizers import (
    TOKENIZERS,
    BpeTokenizer,
    CharTokenizer,
    RadixTokenizer,
    UnigramTokenizer,
    WordTokenizer,
    make_tokenizer,
    read_captions,
    train_from_file,
    train_tokenizer,
)
from sparsecap_jax.tokenizers.radix import base_to_decimal, decimal_to_base

CAPTIONS = ["a red cube", "a blue cube near a red ball", "two red balls"]


def test_word_ids_by_hand(tmp_path, caplog):
    with caplog.at_level("INFO"):
        tokenizer = WordTokenizer.train(CAPTIONS, tmp_path / "tokenizer", vocab_size=1000)
    # 8 words: a and red 3 times, cube twice, ball, balls, blue, near, two once, and 4 special ids.
    assert tokenizer.vocab_size == 12
    assert "12 of the 1000 ids asked for" in caplog.text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tokenizer"]
    lines = (tmp_path / "tokenizer/word.vocab").read_text("utf-8").splitlines()
    words = [line.split("\t")[0] for line in lines]
    assert words == ["<pad>", "<unk>", "<bos>", "<eos>", *(f"▁{w}" for w in words_by_count())]
    assert tokenizer.encode("a red cube") == [2, 4, 5, 6, 3]
    assert tokenizer.encode("a red cube", 3) == [2, 4, 5]
    assert tokenizer.encode("a green pig near") == [2, 4, 1, 10, 3]
    assert tokenizer.encode_tokens(["a", "green", "pig", "near"]) == [2, 4, 1, 1, 10, 3]
    assert tokenizer.encode_tokens(["a", "pig"], 2, add_special=False) == [4, 1]
    assert tokenizer.decode([2, 4, 1, 6, 3, 0]) == "a <unk> cube"
    assert tokenizer.max_tokens(7) == 7


def words_by_count():
    return ["a", "red", "cube", "ball", "balls", "blue", "near", "two"]


def test_radix_by_hand(tmp_path):
    tokenizer = RadixTokenizer.train(CAPTIONS, tmp_path / "t", vocab_size=100, radix_base=3)
    # 8 words and the unknown are slots 0..8; "9 slots" needs three digits in base 3.
    assert (tokenizer.tokens_per_word, tokenizer.vocab_size) == (3, 6)
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 4, 5)
    assert tokenizer.unk_ids == (1, 3, 3) and tokenizer.unk_id is None
    # cube is slot 2 = 002, two is slot 7 = 021, each digit plus 1.
    assert tokenizer.encode("two cube") == [4, 1, 3, 2, 1, 1, 3, 5]
    assert tokenizer.decode([1, 3, 2, 1, 1, 3, 5, 1, 1]) == "two cube"
    assert tokenizer.encode_tokens(["pig", "cube"]) == [4, 1, 3, 3, 1, 1, 3, 5]
    # A limit of 6 makes (6 - 2) // 3 + 2 = 3 words, BOS among them.
    assert tokenizer.encode("a a a a", 6) == [4, 1, 1, 1, 1, 1, 1]
    assert tokenizer.max_tokens(6) == 7
    again = make_tokenizer("radix", tmp_path / "t")  # the folder remembers its base
    assert again.radix_base == 3
    with pytest.raises(ConfigError, match=r"radix_base: found 4, expected 3 as in"):
        RadixTokenizer.load(tmp_path / "t", radix_base=4)
    (tmp_path / "t/radix.json").unlink()
    with pytest.raises(ConfigError, match="radix_base is missing"):
        RadixTokenizer.load(tmp_path / "t")
    assert RadixTokenizer.load(tmp_path / "t", radix_base=3).encode("two")[1:4] == [1, 3, 2]
    (tmp_path / "t/radix.json").write_text('{"radix_base": "3"}')
    with pytest.raises(DataError, match="expected an integer of 2 or more"):
        RadixTokenizer.load(tmp_path / "t")


@pytest.mark.parametrize("base", [2, 3, 7, 10, 100, 768])
def test_radix_digits_count_up(base):
    """Digit strings of 0, 1, 2, ... are those of an odometer."""
    odometer = [1]
    for number in range(2000):
        assert decimal_to_base(number, base) == odometer
        assert base_to_decimal(odometer, base) == number
        place = len(odometer) - 1
        while place >= 0 and odometer[place] == base:
            odometer[place] = 1
            place -= 1
        odometer = [2, *odometer] if place < 0 else odometer
        if place >= 0:
            odometer[place] += 1


@pytest.mark.parametrize("cls", [UnigramTokenizer, BpeTokenizer])
def test_sampling(cls, shared, tmp_path):
    captions = shared / "reference/tokenizers/big_train_captions.txt"
    tokenizer = train_from_file(cls.name, captions, tmp_path, 300)
    text = "a man riding a motorcycle on a dirt road"
    best = tokenizer.encode(text)
    drawn = [tokenizer.encode(text, sample=True, seed=seed) for seed in range(30)]
    assert len({tuple(ids) for ids in drawn}) > 10
    assert {tokenizer.decode(ids) for ids in drawn} == {text}
    assert drawn == [tokenizer.encode(text, sample=True, seed=seed) for seed in range(30)]
    threaded = []
    thread = threading.Thread(
        target=lambda: threaded.extend(
            tokenizer.encode(text, sample=True, seed=seed) for seed in range(30)
        )
    )
    thread.start()
    thread.join()
    assert threaded == drawn
    assert tokenizer.encode(text) == best
    assert len(tokenizer.encode(text, 5, sample=True, seed=1)) == 5
    if cls is BpeTokenizer:  # without dropped merges nothing is left to chance
        assert tokenizer.encode(text, sample=True, alpha=0.0, seed=1) == best


def test_unigram_samples_follow_the_distribution(shared, tmp_path):
    """Segmentation x is drawn with probability P(x)^alpha / sum, P from the .vocab file."""
    captions = shared / "reference/tokenizers/big_train_captions.txt"
    tokenizer = train_from_file("unigram", captions, tmp_path, 300)
    lines = (tmp_path / "unigram.vocab").read_text("utf-8").splitlines()
    scores = {piece: float(score) for piece, score in (line.split("\t") for line in lines)}
    text, alpha = "▁standing", 0.1

    def segmentations(rest):
        if not rest:
            yield (), 0.0
        for end in range(1, len(rest) + 1):
            if rest[:end] in scores:
                for tail, score in segmentations(rest[end:]):
                    yield (rest[:end], *tail), scores[rest[:end]] + score

    expected = {pieces: np.exp(alpha * score) for pieces, score in segmentations(text)}
    total = sum(expected.values())
    ids = {piece: number for number, piece in enumerate(scores)}
    draws = 4000
    counts = {}
    for seed in range(draws):
        drawn = tokenizer.encode("standing", add_special=False, sample=True, alpha=alpha, seed=seed)
        counts[tuple(drawn)] = counts.get(tuple(drawn), 0) + 1
    assert len(expected) > 5
    for pieces, weight in expected.items():
        probability = weight / total
        found = counts.pop(tuple(ids[piece] for piece in pieces), 0) / draws
        deviation = np.sqrt(probability * (1 - probability) / draws)
        assert abs(found - probability) < 5 * deviation + 1 / draws
    assert not counts


def test_one_segmentation_cannot_be_sampled(tmp_path):
    word = WordTokenizer.train(CAPTIONS, tmp_path / "w", vocab_size=50)
    char = CharTokenizer.train(CAPTIONS, tmp_path / "c", vocab_size=50)
    for tokenizer in (word, char):
        with pytest.raises(ConfigError, match="one segmentation"):
            tokenizer.encode("a cube", sample=True)


def test_pickle(tmp_path):
    tokenizer = RadixTokenizer.train(CAPTIONS, tmp_path / "t", vocab_size=50, radix_base=5)
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode("two blue balls") == tokenizer.encode("two blue balls")
    assert vars(again).keys() == vars(tokenizer).keys()


@pytest.mark.parametrize("name", ["word", "unigram", "bpe", "char"])
def test_folder_round_trip(name, tmp_path):
    config = {"name": name, "vocab_size": 40}
    tokenizer = train_tokenizer(config, iter(CAPTIONS), tmp_path / "new")
    files = {f.name: f.read_bytes() for f in (tmp_path / "new").iterdir()}
    assert set(files) == {f"{name}.model", f"{name}.vocab"}
    again = make_tokenizer(config, tmp_path / "new")
    assert again.encode(CAPTIONS[1]) == tokenizer.encode(CAPTIONS[1])
    assert again.decode(again.encode(CAPTIONS[1])) == CAPTIONS[1]
    again.save(tmp_path / "new")  # over itself
    assert {f.name: f.read_bytes() for f in (tmp_path / "new").iterdir()} == files


def test_bad_models(tmp_path):
    with pytest.raises(DataError, match=r"word\.model: no such file.*expected a SentencePiece"):
        WordTokenizer.load(tmp_path)
    WordTokenizer.train(CAPTIONS, tmp_path, vocab_size=50)
    model = (tmp_path / "word.model").read_bytes()
    for data in (b"", b"not a model", model[:1000], model[:-1]):
        (tmp_path / "word.model").write_bytes(data)
        with pytest.raises(DataError, match=r"word\.model: corrupt SentencePiece model"):
            WordTokenizer.load(tmp_path)


def test_model_with_other_special_ids(tmp_path):
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS),
        model_writer=model,
        model_type="word",
        vocab_size=10,
        minloglevel=2,
    )
    (tmp_path / "word.model").write_bytes(model.getvalue())
    with pytest.raises(DataError, match=r"special ids of the model: found .*'pad_id': -1"):
        WordTokenizer.load(tmp_path)


def test_bad_captions_files(tmp_path):
    path, folder = tmp_path / "captions.txt", tmp_path / "tokenizer"
    with pytest.raises(DataError, match="no such file"):
        train_from_file("word", path, folder, 50)
    path.write_bytes(b"a cat\na caf\xe9\n")
    with pytest.raises(DataError, match=r"captions\.txt: line 2 is not UTF-8 \(byte 5\)"):
        train_from_file("word", path, folder, 50)
    path.write_bytes(b"\n \n")
    with pytest.raises(DataError, match="no captions"):
        train_from_file("word", path, folder, 50)
    path.write_bytes(b"\xef\xbb\xbf" + "un café\r\nun thé\n".encode())
    assert read_captions(path) == ["un café", "un thé"]
    tokenizer = train_from_file("word", path, folder, 50)
    assert tokenizer.decode(tokenizer.encode("un thé")) == "un thé"


@pytest.mark.parametrize("name", ["word", "radix", "unigram", "bpe", "char"])
def test_long_captions_train_whole(name, tmp_path):
    """SentencePiece by itself leaves out a line of over 4,192 bytes, or with U+2585, unsaid."""
    captions = ["the dog " * 600, *["one \u2585 horse"] * 9]
    tokenizer = train_tokenizer(name, captions, tmp_path, vocab_size=60)
    assert tokenizer.decode(tokenizer.encode("dog horse", add_special=False)) == "dog horse"


def test_captions_beyond_all_bounds_are_an_error(tmp_path):
    found = "found 1048577 bytes, expected at most 1048576"
    with pytest.raises(DataError, match=rf"training caption 1, 'xxx+' \.\.\.: {found}"):
        train_tokenizer("word", ["a", "x" * (2**20 + 1)], tmp_path / "x", vocab_size=9)
    assert not (tmp_path / "x").exists()


def test_bad_training(tmp_path):
    folder = tmp_path / "tokenizer"
    with pytest.raises(ConfigError, match=r"vocab_size: found 4, expected at least 5"):
        WordTokenizer.train(CAPTIONS, folder, vocab_size=4)
    # 4 special ids, 13 letters (a b c d e l n o r s t u w) and the blank.
    with pytest.raises(ConfigError, match=r"vocab_size: found 10, expected at least 18"):
        UnigramTokenizer.train(CAPTIONS, folder, vocab_size=10)
    for captions in ([], ["", "  "]):
        with pytest.raises(DataError, match="no text to train a tokenizer on"):
            WordTokenizer.train(captions, folder, vocab_size=50)
    with pytest.raises(DataError, match="training caption 1: expected text, found int"):
        WordTokenizer.train(iter(["a", 5]), folder, vocab_size=50)
    with pytest.raises(DataError, match="training caption 0: surrogates not allowed"):
        WordTokenizer.train(["\ud800"], folder, vocab_size=50)
    with pytest.raises(ConfigError, match="expected a base of 2 or more"):
        RadixTokenizer.train(CAPTIONS, folder, vocab_size=50, radix_base=1)
    assert list(tmp_path.iterdir()) == []


def test_bad_options(tmp_path):
    with pytest.raises(ConfigError, match=r"'wrod'; did you mean 'word'.*valid: bpe"):
        make_tokenizer("wrod", tmp_path)
    with pytest.raises(ConfigError, match=r"tokenizer\.radix_base: unknown key"):
        make_tokenizer({"name": "word", "radix_base": 8}, tmp_path)
    with pytest.raises(ConfigError, match=r"tokenizer\.vocab_size is missing"):
        train_tokenizer("word", CAPTIONS, tmp_path)
    with pytest.raises(ConfigError, match=r"tokenizer\.name is missing"):
        make_tokenizer({"vocab_size": 8}, tmp_path)
    tokenizer = WordTokenizer.train(CAPTIONS, tmp_path / "t", vocab_size=50)
    with pytest.raises(ConfigError, match="max_length: found -1"):
        tokenizer.encode("a", -1)
    for ids in ([-1], [0.5], [[1, 2]]):
        with pytest.raises(DataError, match="expected one row of integers from 0 on"):
            tokenizer.decode(ids)
    assert tokenizer.decode(np.int64(4)) == "a"


def test_config_dicts(tmp_path):
    config = ml_collections.ConfigDict({"name": "radix", "vocab_size": 50, "radix_base": 4})
    trained = train_tokenizer(config, CAPTIONS, tmp_path / "t")
    assert make_tokenizer(config, tmp_path / "t").radix_base == trained.radix_base == 4
    word = {"name": "word", "vocab_size": 50, "radix_base": None}
    assert make_tokenizer(word, tmp_path / "t").vocab_size == 12


def test_names():
    assert {name: cls.name for name, cls in TOKENIZERS.items() if name != cls.name} == {
        "character": "char"
    }


class Shouting(WordTokenizer):
    """A user's tokenizer: words in capitals."""

    name = "shouting"

    def decode(self, ids):
        return super().decode(ids).upper()


def test_tokenizers_of_users(tmp_path, monkeypatch):
    monkeypatch.setattr(TOKENIZERS, "_entries", dict(TOKENIZERS))
    TOKENIZERS.register("shouting", Shouting)
    trained = train_tokenizer("shouting", CAPTIONS, tmp_path / "t", vocab_size=50)
    again = make_tokenizer({"name": "shouting", "vocab_size": 50}, tmp_path / "t")
    assert again.decode(trained.encode(CAPTIONS[0])) == CAPTIONS[0].upper()
    with pytest.raises(ConfigError, match="'word' is registered already"):
        TOKENIZERS.register("word", Shouting)
    with pytest.raises(ConfigError, match=r"'no_class', which is .*; expected a sub"):
        TOKENIZERS.register("no_class", lambda: None)
    with pytest.raises(ConfigError, match="add --plugin=os"):
        make_tokenizer("os:system", tmp_path)
