"""The subcommand that trains tokenizers: what it writes and prints."""

import pytest
from prepare_runs import run_prepare

from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.tokenizers import make_tokenizer

CAPTIONS = ["a red cube", "a blue cube near a red ball", "two red balls"]


@pytest.fixture
def captions(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("\n".join([*CAPTIONS, ""]), "utf-8")
    return path


def tokenizer(*arguments):
    run_prepare("tokenizer", *arguments)


def test_a_word_tokenizer_by_hand(captions, tmp_path, capsys):
    tokenizer(f"--captions={captions}", f"--output={tmp_path}/run/tokenizer", "--vocab_size=100")
    # Words by falling frequency, ties by their letters: a 3, red 3, cube 2, then ball, balls, ...
    assert capsys.readouterr().out.splitlines() == [
        f"wrote {tmp_path}/run/tokenizer: 3 captions read",
        "12 ids: pad 0, bos 2, eos 3, unk 1",
        "text    a red cube",
        "ids     [2, 4, 5, 6, 3]",
        "decoded a red cube",
    ]
    assert make_tokenizer("word", tmp_path / "run").vocab_size == 12


def test_radix_keeps_its_base(captions, tmp_path, capsys):
    folder = tmp_path / "radix"
    tokenizer("--name=radix", f"--captions={captions}", f"--output={folder}", "--radix_base=5")
    tokenizer("--name=radix", f"--load={folder}", "--text=two red balls")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == lines[5] and lines[5].startswith("8 ids: pad 0, bos 6, eos 7")
    assert lines[-1] == "decoded two red balls"


def test_samples_of_the_references_folder(shared, tmp_path, capsys):
    model = next((shared / "reference/tokenizers").glob("*unigram*.model"))
    (tmp_path / "unigram.model").write_bytes(model.read_bytes())
    model = model.with_suffix(".vocab")
    (tmp_path / "unigram.vocab").write_bytes(model.read_bytes())
    tokenizer("--name=unigram", f"--load={tmp_path}", "--text=a man riding a wave", "--samples=20")
    lines = capsys.readouterr().out.splitlines()
    assert len({line for line in lines if line.startswith("sample")}) > 1


def test_faults(captions, tmp_path):
    with pytest.raises(ConfigError, match="--output is missing; expected the folder to write"):
        tokenizer(f"--captions={captions}")
    with pytest.raises(DataError, match=r"none\.txt: .*; expected a text file of captions"):
        tokenizer(f"--captions={tmp_path}/none.txt", f"--output={tmp_path}/out")
    with pytest.raises(DataError, match=r"word\.model"):
        tokenizer(f"--load={tmp_path}/nothing")
