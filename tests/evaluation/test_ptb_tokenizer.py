"""The Python PTB tokenizer: by hand, and against the Java program."""

import json
import random
import subprocess
import sys
import time

import pytest
from script_captions import WORDS, script_captions

from sparsecap_jax.evaluation import ptb_java
from sparsecap_jax.evaluation.ptb_tokenizer import ptb_tokens, tokenize, tokenize_captions

needs_java = pytest.mark.skipif(not ptb_java.java_available(), reason="no java on the path")

# Captions and the tokens that the Stanford PTBTokenizer of CoreNLP 3.4.1 prints for them.
CASES = {
    "A man riding a wave.": "a man riding a wave .",
    "A cat, a dog and a bird": "a cat , a dog and a bird",
    "The dog's bowl isn't full": "the dog 's bowl is n't full",
    "You can't, won't and shan't.": "you ca n't , wo n't and sha n't .",
    "I'm sure they've said we'll go": "i 'm sure they 've said we 'll go",
    "The boys' bikes": "the boys ' bikes",
    "I cannot. It's gonna fall, gimme that": "i can not . it 's gon na fall , gim me that",
    "'Tis more'n that": "'t is more 'n that",
    'A sign saying "Stop here".': "a sign saying `` stop here '' .",
    'A " fire " truck': "a '' fire '' truck",
    "Signs that say 'slow turtle'": "signs that say ` slow turtle '",
    "A 'b' and `c`": "a ` b ' and ` c `",
    "Fish 'n' chips, rock 'n roll": "fish 'n' chips , rock 'n roll",
    "Seven o'clock at O'Brien's": "seven o'clock at o'brien 's",
    "Hors d'oeuvres, po'boys, ma'am": "hors d'oeuvres , po ` boys , ma'am",
    "A t-shirt, a merry-go-round": "a t-shirt , a merry-go-round",
    "Up- down -side a--b": "up - down - side a -- b",
    "Made of wood/metal and/or glass": "made of wood/metal and/or glass",
    "A sink (and a tub) [sic] {x}": "a sink -lrb- and a tub -rrb- -lsb- sic -rsb- -lcb- x -rcb-",
    "Wait... what?? No!": "wait ... what ?? no !",
    "1,000 people at 10:45am": "1,000 people at 10:45 am",
    "It cost $5.50, 20% off": "it cost $ 5.50 , 20 % off",
    "Add 1/2 or 1 1/2 cups": "add 1/2 or 1\u00a01/2 cups",
    "The '70s, the 1980's, bus '51'": "the '70s , the 1980 's , bus ' 51 '",
    "Bus #9 and #fun @me": "bus # 9 and #fun @me",
    "AT&T, m&m's and R&B": "at&t , m & m 's and r&b",
    "St. Paul at 5 p.m. on the T.V. screen": "st. paul at 5 p.m. on the t.v. screen",
    "Fruit, nuts, etc. on a plate": "fruit , nuts , etc. on a plate",
    "Fruit, nuts, etc. The plate is red": "fruit , nuts , etc. . the plate is red",
    "It is 5 p.m. The man eats": "it is 5 p.m. . the man eats",
    "It is 5 p.m. Tom eats": "it is 5 p.m. tom eats",
    "No. 5 is no. one": "no. 5 is no . one",
    "the patio.and natural air..": "the patio.and natural air . .",
    "bread,butter,, milk.,": "bread , butter , , milk. ,",
    "info at www.cats.co.uk or me@cats.org": "info at www.cats.co.uk or me@cats.org",
    "a <b>bold</b> man < woman": "a <b> bold </b> man < woman",
    "nice :-) or :( day": "nice :--rrb- or :-lrb- day",
    "call 555-123-4567.": "call 555-123-4567 .",
    "a café’s “menu” – 5€": "a café 's `` menu '' -- 5 $",
    "एक कुत्ता दौड़ रहा है।": "एक कुत्ता दौड़ रहा है ।",
    "धीरे-धीरे चलती गाड़ी": "धीरे - धीरे चलती गाड़ी",
    "சிவப்பு கார், நாய்!": "சிவப்பு கார் , நாய் !",
    "สุนัข วิ่ง ใกล้น้ำ": "สุนัข วิ่ง ใกล้น้ำ",
    "كلبٌ يَركُضُ، قطة؟ ٣٫٥ ١٢": "كلبٌ يَركُضُ ، قطة ؟ ٣٫٥ ١٢",
    "שָׁלוֹם, כלב רץ": "שָׁלוֹם , כלב רץ",
    "la foret\u0302, un cafe\u0301 ferme\u0301": "la foret\u0302 , un cafe\u0301 ferme\u0301",
    "vis-a\u0300-vis": "vis-a \u0300 - vis",
    "İstanbul'da IŞIK": "i\u0307stanbul ` da işik",
    "dogs \U0001f436\U0001f3fd\u200d\U0001f98a love ❤\ufe0f 1\ufe0f\u20e3": "dogs love ❤ 1",
    "می\u200cرود خانهٔ": "می رود خانهٔ",
    "一只狗，在跑。犬が「走る」": "一只狗 ， 在跑 。 犬が 走る",
    "කුකු ನಾಯಿ": "ක ක ನ ಯ",
    "dog’slow ’dog’ ol’ rock ’n’ roll": "dog 's low 'd og ' ol’ rock ’n’ roll",
    "c'est l’été, 1½ m²": "c'est l’été , 1 1/2 m ²",
    "  two   blanks\nand lines ": "two blanks and lines",
    "": "",
    " \t": "",
}


@pytest.mark.parametrize("caption", CASES)
def test_tokens_by_hand(caption):
    assert ptb_tokens(caption, "a cat") == CASES[caption].split(" ") * bool(CASES[caption])


@needs_java
def test_hand_cases_are_those_of_java():
    captions = list(CASES)
    java = ptb_java.java_tokenize_captions(captions)
    assert java == tokenize_captions(captions)
    dropped = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
    by_hand = [
        " ".join(token for token in tokens.split(" ") if token not in dropped)
        for tokens in CASES.values()
    ]
    assert java == by_hand


def test_the_next_caption_decides_on_a_last_period():
    assert ptb_tokens("at 5 p.m.", "The dog") == ["at", "5", "p.m.", "."]
    assert ptb_tokens("at 5 p.m.", "Tom eats") == ["at", "5", "p.m."]
    assert ptb_tokens("on Avenue S.", "A dog") == ["on", "avenue", "s", "."]
    assert ptb_tokens("on Avenue S.", "a dog") == ["on", "avenue", "s."]
    assert ptb_tokens("on Avenue S.") == ["on", "avenue", "s."]
    captions = ["on Avenue S.", "A dog", "on Avenue S.", "a dog", "on fig.", "5 dogs"]
    expected = ["on avenue s", "a dog", "on avenue s.", "a dog", "on fig.", "5 dogs"]
    assert tokenize_captions(captions) == expected


def test_punctuation_goes_and_groups_stay():
    captions = {7: ['A "big" dog, (wet) - isn\'t it?'], "b": ["...", "A cat."]}
    tokens = {7: ["a big dog -lrb- wet -rrb- is n't it"], "b": ["", "a cat"]}
    assert tokenize(captions) == tokens
    assert list(tokenize(captions)) == [7, "b"]
    assert tokenize({}) == {}


def test_plain_captions_take_the_same_way_as_others():
    """The shortcut for plain captions agrees with the lexer."""
    words = ["a", "A", "cat", "etc", "St", "cannot", "gonna", "p", "No", "fig", "of", "the", "The"]
    words += ["Tom", "s", "inc", "wan", "art", "in", "tv"]
    rng = random.Random(0)
    captions = []
    for _ in range(3000):
        text = "".join(
            rng.choice(words) + rng.choice([" ", " ", "  ", ", ", " , "]) for _ in range(4)
        )
        captions.append(text.rstrip(" ,") + rng.choice(["", " ", ".", " .", ". ", " . "]))
    dropped = {",", "."}
    by_lexer = [
        " ".join(token for token in ptb_tokens(caption, following) if token not in dropped)
        for caption, following in zip(captions, [*captions[1:], None], strict=True)
    ]
    assert tokenize_captions(captions) == by_lexer


@pytest.fixture(scope="module")
def real_captions(shared):
    content = json.loads((shared / "data/coco_karpathy_test/references.json").read_text("utf-8"))
    return [caption for captions in content.values() for caption in captions]


@needs_java
def test_equals_java_on_the_karpathy_test_captions(real_captions):
    assert len(real_captions) == 25010
    assert ptb_java.compare(real_captions) == []


@needs_java
def test_equals_java_on_flickr8k(shared):
    text = (shared / "data/flickr8k_text/Flickr8k.token.txt").read_text("utf-8")
    captions = [line.split("\t")[1] for line in text.split("\n") if line]
    assert len(captions) == 40460
    assert ptb_java.compare(captions) == []


@needs_java
def test_equals_java_on_captions_in_many_scripts():
    captions = script_captions(7000)
    assert len(WORDS) > 30
    assert ptb_java.compare(captions) == []


@needs_java
def test_equals_java_on_every_character():
    """Every character of the Basic Multilingual Plane within, before, behind and between words."""
    ends = {*range(0x0A, 0x0E), *range(0x1C, 0x1F), 0x85, 0x2028, 0x2029}  # of lines, for Java
    chars = [chr(i) for i in range(0x20, 0x10000) if not 0xD800 <= i < 0xE000 and i not in ends]
    groups = [chars[place : place + 12] for place in range(0, len(chars), 12)]
    captions = [" ".join(f"q{c}q {c} {c}q q{c} 1{c}2" for c in group) for group in groups]
    assert ptb_java.compare(captions) == []


@needs_java
def test_equals_java_on_damaged_captions(real_captions):
    """Captions with random punctuation, digits and capitals put in."""
    rng = random.Random(4)
    marks = "''\"\".,,--/;:!?()&$#@*+=[]`0123456789ABST"
    damaged = []
    for caption in rng.sample(real_captions, 4000):
        letters = list(caption)
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(letters) + 1)
            letters[place : place + rng.randint(0, 1)] = rng.choice(marks)
        damaged.append("".join(letters))
    assert ptb_java.compare(damaged) == []


@needs_java
def test_java_sees_one_line_per_caption():
    captions = ["a\nb", "", "c\r\nd", "e\u2028f", "g"]
    assert ptb_java.java_tokenize_captions(captions) == ["a b", "", "c d", "e f", "g"]
    assert tokenize_captions(captions) == ["a b", "", "c d", "e f", "g"]
    java = ptb_java.java_tokenize_captions
    assert tokenize({1: ["Cats."], 2: []}, java) == {1: ["cats"], 2: []}
    assert ptb_java.java_tokenize_captions([]) == []


def test_files_to_compare(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_bytes(b"\xef\xbb\xbfa.jpg#0\ta cat\r\n\ndogs\n")
    assert ptb_java._read(str(path)) == ["a cat", "dogs"]
    command = [sys.executable, "-m", "sparsecap_jax.evaluation.ptb_java", str(tmp_path / "absent")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    expected = f"error: {tmp_path}/absent: no such file or folder; expected captions, one a line\n"
    assert (done.returncode, done.stderr) == (1, expected)


def test_speed(real_captions):
    """600,000 captions take less than 20 seconds: CPU time, with room for slow machines."""
    start = time.process_time()
    tokenize_captions(real_captions)
    seconds = time.process_time() - start
    assert seconds / len(real_captions) * 600_000 < 20


@pytest.mark.parametrize("unit", ["<!--", "a'", "a"])
def test_time_grows_with_the_text_alone(unit):
    """Captions on which rules read far ahead in vain; unbounded, they take about 10 s."""
    start = time.process_time()
    tokenize_captions([(unit * 80_000)[:80_000]])
    assert time.process_time() - start < 4


def test_tokens_up_to_the_bound_are_whole():
    assert tokenize_captions(["a" * 999 + " dog!", "<!-- " + "x" * 990 + "--> dog"]) == [
        "a" * 999 + " dog",
        "<!--\u00a0" + "x" * 990 + "--> dog",
    ]


def test_coco_captions_of_the_toolkit():
    captions = ptb_java.coco_captions()
    assert len(captions) == 414113 + 202654
    assert captions[0] == "A very clean and well decorated empty bathroom"


@needs_java
def test_check_program(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ptb_java, "coco_captions", lambda: ["A cat."])
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"1": ["A dog.", "Dogs."]}))
    text = tmp_path / "captions.txt"
    text.write_text("x.jpg#0\tA dog.\n")
    assert ptb_java.main([str(path), str(text)]) == 0
    shown = capsys.readouterr().out
    assert "COCO 2014: 1 captions, 0 differ" in shown
    assert f"{path}: 2 captions, 0 differ" in shown
    monkeypatch.setattr(ptb_java, "tokenize_captions", lambda captions: ["?"] * len(captions))
    assert ptb_java.main([]) == 1
    assert "'A cat.'" in capsys.readouterr().out
