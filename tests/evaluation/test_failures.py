"""Failures of captions, counted by hand."""

import pytest

from sparsecap_jax.evaluation.failures import count_failures, find_failures

REFERENCES = ["two puppies run on the grass", "a brown dog and a black dog in a field"]


@pytest.mark.parametrize(
    ("caption", "failures"),
    [
        ("two dogs run through the grass", {}),
        ("a black dog plays in a park", {}),  # a narrower word for grass
        ("an animal runs", {}),  # a broader one for dog
        ("a cat runs on the snow", {"wrong object": ["cat", "snow"]}),
        ("a man throws a frisbee", {"wrong object": ["man", "frisbee"]}),
        ("a red dog", {"wrong attribute": ["red"]}),
        ("a tan dog", {}),  # brown
        ("three dogs", {"wrong attribute": ["three"]}),
        ("a couple of dogs", {}),  # two
        ("a brown dog with a black dog", {"repetition": ["dog"]}),
        ("a dog runs with a puppy", {"repetition": ["dog", "puppy"]}),
        ("a dog in a in a field", {"repetition": ["a dog in a in a field"]}),
        ("some glasses", {"wrong object": ["glasses"]}),
        ("", {}),
    ],
)
def test_words_by_hand(caption, failures):
    (found,) = find_failures([caption], [REFERENCES])
    assert {name: words for name, words in found.items() if words} == failures


def test_people_are_compared_by_kind():
    references = [["a skier in the snow"], ["a boy"], ["a man"], ["a woman"], ["several kids"]]
    captions = ["a man", "a girl", "three people", "a man", "three boys"]
    found = find_failures(captions, references)
    wrong = [one["wrong object"] for one in found]
    assert wrong == [[], ["girl"], [], ["man"], []]
    assert [one["wrong attribute"] for one in found] == [[], [], ["three"], [], []]


def test_generic_captions_and_counts():
    captions = ["a dog"] * 3 + ["a red dog"] * 2 + ["a cat"]
    found = find_failures(captions, [REFERENCES] * 6)
    assert [bool(one["generic"]) for one in found] == [True] * 3 + [False] * 3
    assert count_failures(found) == {
        **{"repetition": 0, "generic": 3, "wrong object": 1, "wrong attribute": 2, "none": 0}
    }
    # 0.5% of 801 photos is more than four.
    captions = [*["a dog"] * 4, *["a puppy"] * 5, *(f"dog {n}" for n in range(792))]
    found = find_failures(captions, [REFERENCES] * 801)
    assert count_failures(found)["generic"] == 5
    assert count_failures(found)["none"] == 796
