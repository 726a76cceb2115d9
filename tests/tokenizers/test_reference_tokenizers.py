"""Tokenizers against every case of the reference, and the published one."""

import json
import shutil
import zipfile

import numpy as np
import pytest

from sparsecap_jax.tokenizers import WordTokenizer, make_tokenizer, train_from_file
from sparsecap_jax.tokenizers.radix import base_to_decimal, decimal_to_base, group_digits

MODEL_TYPE = {"radix": "word", "character": "char"}


@pytest.fixture(scope="module")
def goldens(shared):
    return json.loads((shared / "reference/tokenizers/tokenizers.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def loaded(shared, goldens, tmp_path_factory):
    """(golden figures, the tokenizer loaded from the reference's files), one pair per case."""
    pairs = []
    for number, golden in enumerate(goldens["tokenizers"]):
        folder = tmp_path_factory.mktemp(f"tokenizer{number}")
        for file in golden["files"]:
            model_type = MODEL_TYPE.get(golden["tokenizer"], golden["tokenizer"])
            target = folder / f"{model_type}.{file.rsplit('.', 1)[1]}"
            shutil.copy(shared / "reference/tokenizers" / file, target)
        options = {"radix_base": golden["radix_base"]} if golden["radix_base"] else {}
        config = {"name": golden["tokenizer"], "vocab_size": 10000, **options}
        pairs.append((golden, make_tokenizer(config, folder)))
    return pairs


def test_reference_special_ids(loaded):
    assert len(loaded) == 9
    for golden, tokenizer in loaded:
        assert tokenizer.vocab_size == golden["len"]
        found = [tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id]
        assert found == [golden[f"{name}_token_id"] for name in ("pad", "bos", "eos")]
        unknown = golden["unk_token_id"]
        unknown = unknown if isinstance(unknown, list) else [unknown]
        assert list(tokenizer.unk_ids) == unknown
        assert tokenizer.unk_id == (unknown[0] if len(unknown) == 1 else None)


def test_reference_encoding(loaded):
    checked = 0
    for golden, tokenizer in loaded:
        for case in golden["cases"]:
            text = case["text"]
            assert tokenizer.encode(text, tokenizer.default_max_length) == case["ids_default"]
            for limit in (18, 26, 0):
                assert tokenizer.encode(text, limit) == case[f"ids_max{limit}"], (text, limit)
            assert tokenizer.encode(text, 18, add_special=False) == case["ids_no_special_max18"]
            pieces = [list(piece) for piece in tokenizer.pieces(text)]
            assert pieces == case["pieces"]
            checked += 1
    assert checked == 9 * 35


def test_reference_decoding(loaded):
    for golden, tokenizer in loaded:
        for case in golden["cases"]:
            for limit in ("max18", "max26", "no_special_max18"):
                ids = case[f"ids_{limit}"]
                assert tokenizer.decode(ids) == case[f"decoded_ids_{limit}"]
                assert tokenizer.decode(np.array(ids, np.int32)) == case[f"decoded_ids_{limit}"]
            if "ids_max26_without_bos" in case:
                text = tokenizer.decode(case["ids_max26_without_bos"])
                assert text == case["decoded_max26_without_bos"]
        for case in golden["decode_cases"]:
            assert tokenizer.decode(case["ids"]) == case["text"], case


def test_reference_radix_helpers(goldens, loaded):
    for number, base, digits in goldens["decimal_to_base"]:
        assert decimal_to_base(number, base) == digits
    for digits, base, number in goldens["base_to_decimal"]:
        assert base_to_decimal(digits, base) == number
    for ids, size, groups in goldens["grouper"]:
        assert group_digits(ids, size) == [tuple(group) for group in groups]
    radix = [(golden, tok) for golden, tok in loaded if golden["tokenizer"] == "radix"]
    assert {tokenizer.radix_base for _, tokenizer in radix} >= {8, 64}
    for golden, tokenizer in radix:
        assert tokenizer.tokens_per_word == golden["tokens_per_word"]
        for slot, digits in golden["radix_map"].items():
            if int(slot) >= 0:
                assert list(tokenizer.words[int(slot)]) == digits


def test_published_tokenizer(shared, tmp_path):
    checkpoint = shared / "reference/checkpoint"
    golden = json.loads((checkpoint / "tiny3_xe_tokenizer.json").read_text("utf-8"))
    (archive,) = checkpoint.glob("TINY3_*.zip")
    with zipfile.ZipFile(archive) as files:
        (name,) = [name for name in files.namelist() if name.endswith("word.model")]
        (tmp_path / "tokenizer").mkdir()
        (tmp_path / "tokenizer/word.model").write_bytes(files.read(name))
        vocabulary = files.read(name.replace(".model", ".vocab"))
    tokenizer = WordTokenizer.load(tmp_path)  # the run directory around the tokenizer's folder
    assert tokenizer.vocab_size == golden["vocab_size"] == 3000
    for case in golden["cases"]:
        assert tokenizer.encode(case["text"], 16) == case["ids_max16"]
        assert tokenizer.encode(case["text"]) == case["ids_nomax"]
        assert tokenizer.encode(case["text"], 16, add_special=False) == case["ids_no_bos_eos"]
        assert [piece.value for piece in tokenizer.pieces(case["text"])] == case["pieces"]
        assert tokenizer.decode(case["ids_max16"]) == case["decoded_max16"]
    for case in golden["decode_cases"]:
        assert tokenizer.decode(case["ids"]) == case["text"]
    tokenizer.save(tmp_path / "copy")
    model = (tmp_path / "copy/word.model").read_bytes()
    assert model == (tmp_path / "tokenizer/word.model").read_bytes()
    assert (tmp_path / "copy/word.vocab").read_bytes() == vocabulary


def test_training_gives_the_reference_vocabularies(shared, goldens, tmp_path):
    folder = shared / "reference/tokenizers"
    trained = 0
    for number, golden in enumerate(goldens["tokenizers"]):
        name = golden["tokenizer"]
        options = {"radix_base": golden["radix_base"]} if name == "radix" else {}
        captions = folder / goldens["corpora"][golden["corpus"]]
        size = golden["requested_vocab_size"]
        tokenizer = train_from_file(name, captions, tmp_path / str(number), size, **options)
        vocabulary = (tmp_path / str(number) / f"{tokenizer.model_type}.vocab").read_bytes()
        assert vocabulary == (folder / golden["files"][1]).read_bytes(), golden["files"]
        # The models differ only in that the reference's name their input and output files.
        case = golden["cases"][0]
        assert tokenizer.encode(case["text"], 18) == case["ids_max18"]
        trained += 1
    assert trained == 9
