"""Captions in scripts beyond ASCII: words to train on, what tokenizers write, and scores."""

import json
import unicodedata

import pytest

from sparsecap_jax.data.datasets import load_splits
from sparsecap_jax.data.karpathy import load_karpathy
from sparsecap_jax.evaluation.metrics import FAST_METRICS, score_captions
from sparsecap_jax.evaluation.ptb_tokenizer import tokenize_captions
from sparsecap_jax.text import is_unspaced, normalize, unicode_words, words
from sparsecap_jax.tokenizers import train_tokenizer

HINDI = ["एक कुत्ता घास पर दौड़ रहा है", "दो लड़के गेंद से खेल रहे हैं"]
HINDI_REFERENCES = [
    ["एक भूरा कुत्ता मैदान में दौड़ रहा है", "कुत्ता घास पर भाग रहा है"],
    ["दो बच्चे फुटबॉल खेल रहे हैं", "लड़के मैदान में गेंद से खेलते हैं"],
]
WORDS = {
    "कुत्ता दौड रहा है।": "कुत्ता दौड रहा है",
    "สุนัข วิ่ง ใกล้น้ำ": "สุนัข วิ่ง ใกล้น้ำ",
    "كلبٌ يَركُضُ، قطة؟": "كلبٌ يَركُضُ قطة",
    "שָׁלוֹם, כֶּלֶב רץ!": "שָׁלוֹם כֶּלֶב רץ",
    "சிவப்பு கார், நாய்": "சிவப்பு கார் நாய்",
    "Un CAFE\u0301 ferme\u0301": "un café fermé",
    "İstanbul'da": "i\u0307stanbulda",
    "dogs \U0001f436\U0001f3fd\u200d\U0001f98a love ❤\ufe0f 1\ufe0f\u20e3": "dogs love 1",
    "ශ\u0dca\u200dරී හාවා\u200d": "ශ\u0dca\u200dරී හාවා",
    "می\u200cرود": "می رود",
    "ನಾಯಿ ഓടുന്നു ଗୋଟିଏ ខ្មែរ": "ನಾಯಿ ഓടുന്നു ଗୋଟିଏ ខ្មែរ",
    "一只狗，在跑。": "一只狗 在跑",
    "ﾊﾟﾝ ﬁn Ｄｏｇ": "パン fin dog",
}


@pytest.mark.parametrize("caption", WORDS)
def test_words_keep_their_marks(caption):
    expected = unicodedata.normalize("NFC", WORDS[caption])
    assert " ".join(words(caption)) == expected
    assert words(unicodedata.normalize("NFD", caption)) == expected.split()


@pytest.mark.parametrize("caption", [*WORDS][:8])
def test_scoring_keeps_training_words_whole(caption):
    text = " ".join(words(caption))
    assert tokenize_captions([text]) == [text]


def test_words_of_a_dataset(tmp_path):
    captions = ["कुत्ता दौड़ रहा है", "สุนัข วิ่ง", "un cafe\u0301 ferme\u0301"]
    content = {"images": [{"id": 1, "file_name": "1.jpg"}]}
    content["annotations"] = [{"image_id": 1, "caption": text} for text in captions]
    (tmp_path / "captions_val.json").write_text(json.dumps(content))
    (record,) = load_splits("coco_json", tmp_path)["val"]
    assert record.captions == ("कुत्ता दौड\u093c रहा है", "สุนัข วิ่ง", "un café fermé")
    assert record.raw == tuple(captions)


def test_tokens_of_a_split_are_composed(tmp_path):
    image = {"filename": "1.jpg", "split": "val"}
    image["sentences"] = [{"tokens": ["cafe\u0301", "d'ici"], "raw": "Cafe\u0301 d'ici."}]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": [image]}))
    (record,) = load_karpathy(tmp_path / "dataset_coco.json")["val"]
    assert (record.captions, record.raw) == (("café d'ici",), ("Cafe\u0301 d'ici.",))


def test_normalize():
    assert normalize("½ … № ™ x²") == "½ … № ™ x²"
    assert normalize("น้ํา ນ້ຳ \u0958 ｶﾞ ﬁ ª") == "น้ำ ນ້ຳ \u0915\u093c ガ fi a"


def test_unicode_words_are_characters_where_there_are_no_blanks():
    assert unicode_words("一只狗，dog狗 7只") == ["一", "只", "狗", "dog", "狗", "7", "只"]
    assert unicode_words("犬が走っている。") == list("犬が走っている")
    assert unicode_words("น้ำตก") == ["น้", "ำ", "ต", "ก"]
    assert unicode_words("ខ្មែរ ຫມາ") == ["ខ្", "មែ", "រ", "ຫ", "ມ", "າ"]
    assert unicode_words("한국어 कुत्ता A man's") == ["한국어", "कुत्ता", "a", "mans"]
    assert is_unspaced("一只狗在跑 on TV") and not is_unspaced("a dog 狗")


@pytest.mark.parametrize("tokenizer", ["python", "unicode"])
def test_hindi_scores_are_those_of_java(tokenizer):
    references = dict(enumerate(HINDI_REFERENCES))
    scores = score_captions(dict(enumerate(HINDI)), references, FAST_METRICS, tokenizer)
    assert scores["CIDEr"] == pytest.approx(3.0245407252450027, rel=1e-12)
    assert scores["ROUGE_L"] == pytest.approx(0.7020460358056266, rel=1e-12)
    assert scores["Bleu_4"] == pytest.approx(6.838911998687613e-05, rel=1e-9)


def test_decomposed_accents_score_as_composed_ones():
    composed = {1: "un café près de la forêt", 2: "une fenêtre fermée à clé"}
    references = {1: ["le café est près de la forêt"], 2: ["la fenêtre est fermée"]}
    other = {i: [unicodedata.normalize("NFD", text) for text in references[i]] for i in references}
    scores = score_captions(composed, references, FAST_METRICS, "python")
    assert scores["CIDEr"] == pytest.approx(3.3482555338433553, rel=1e-12)
    assert score_captions(composed, other, FAST_METRICS, "python") == scores


CHINESE = ["一只狗在草地上跑。", "两个孩子在玩球。", "一只黑色的狗在跑。"]
JAPANESE = ["犬が芝生の上を走っている。", "子供がボールで遊んでいる。", "黒い犬が走っている。"]


@pytest.mark.parametrize("captions", [CHINESE, JAPANESE])
@pytest.mark.parametrize("name", ["char", "unigram", "bpe"])
def test_chinese_and_japanese_train_and_score(name, captions, tmp_path, caplog):
    texts = [" ".join(words(text)) for text in captions]
    tokenizer = train_tokenizer(name, texts * 4, tmp_path / name, vocab_size=60)
    decoded = [tokenizer.decode(tokenizer.encode(text)) for text in texts]
    assert decoded == [text.removesuffix("。") for text in captions]
    candidates = dict(enumerate(decoded[1:] + decoded[:1]))
    references = {number: [text] for number, text in enumerate(captions)}
    scores = score_captions(candidates, references, FAST_METRICS, "unicode")
    assert not caplog.records
    by_hand = [
        {number: " ".join(text) for number, text in candidates.items()},
        {number: [" ".join(text.removesuffix("。"))] for number, (text,) in references.items()},
    ]
    assert scores == score_captions(*by_hand, FAST_METRICS, "none")
    assert 0 < scores["Bleu_1"] < 1 and scores["CIDEr"] > 0
    assert score_captions(candidates, references, ["Bleu_1"], "python")["Bleu_1"] < 1e-9
    assert "captions in a script without blanks" in caplog.text


@pytest.mark.parametrize("name", ["word", "char", "unigram"])
def test_tokenizers_write_normalised_text(name, tmp_path):
    captions = ["น้ำตก สูง", "cafe\u0301 ﬁn", "द\u095cी पानी", "パン"]
    tokenizer = train_tokenizer(name, captions * 5, tmp_path / name, vocab_size=80)
    for caption in captions:
        assert tokenizer.decode(tokenizer.encode(caption)) == normalize(caption)
    pieces = tokenizer.pieces("un cafe\u0301 ﬁn")
    assert (pieces[0].start, pieces[-1].end) == (0, len(" un café fin"))
    assert "".join(" un café fin"[piece.start : piece.end] for piece in pieces) == " un café fin"
