"""Relations in captions of toy scenes, against the scenes themselves."""

import pytest

from sparsecap_jax.data.toy_grammar import caption_scene
from sparsecap_jax.data.toy_scenes import make_toy_scenes
from sparsecap_jax.data.toy_world import INVERSE, Draws, Group, Scene, sample_scene
from sparsecap_jax.errors import DataError
from sparsecap_jax.evaluation.toy_relations import relation_is_right, relation_scores


def group(shape, colour, box):
    return Group(
        shape=shape,
        colour=colour,
        pattern="plain",
        size="small",
        arrangement="single",
        boxes=(box,),
    )


BALL = group("ball", "red", (10, 40, 50, 80))
CONE = group("cone", "blue", (120, 50, 160, 80))
SCENE = Scene("grass", (BALL, CONE))  # the ball is to the left of the cone


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a red ball to the left of a blue cone on the grass", True),
        ("a red ball on the right side of a blue cone", False),
        ("a blue cone right of a red ball", True),
        ("a blue cone left of a red sphere", False),
        ("on the grass a red ball is in front of a blue cone", False),
        ("a red ball and a blue cone on a lawn", None),
        # Nothing tells which is meant: taken to speak of the ball.
        ("a green star left of a green star", True),
        ("two crimson spheres left of something", True),
    ],
)
def test_by_hand(caption, expected):
    assert SCENE.relation == "left"
    assert relation_is_right(caption, SCENE) is expected


def test_captions_of_the_dataset_are_right():
    told = []
    for number in range(400):
        scene, draws = sample_scene(0, number), Draws(0, number, purpose=1)
        told += [relation_is_right(" ".join(caption_scene(scene, draws)), scene) for _ in "ab"]
    stated = [verdict for verdict in told if verdict is not None]
    # Both groups may look alike; then the order is lost, and with it some of the inverted captions.
    assert sum(stated) >= 0.99 * len(stated)
    # All frames but one of weight 2 in 23 tell it; long captions are drawn again.
    assert 0.85 < len(stated) / len(told) < 0.95


def test_scores_of_a_folder(tmp_path):
    folder = make_toy_scenes(tmp_path / "scenes", sizes=(0, 0, 4), seed=3)
    ways = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
    ways |= {"front": "in front of", "behind": "behind"}
    truths = [sample_scene(3, number).relation for number in range(4)]
    captions = {1: f"it {ways[truths[0]]} it", "2": f"it {ways[truths[1]]} it"}
    captions |= {3: f"it {ways[INVERSE[truths[2]]]} it", 4: "a cat"}
    scores = relation_scores(captions, folder)
    assert scores == {"relation_accuracy": pytest.approx(2 / 3), "relations_told": 0.75}
    with pytest.raises(DataError, match="no captions to judge"):
        relation_scores({}, folder)
    with pytest.raises(DataError, match=r"no toy scenes \(manifest.json\)"):
        relation_scores(captions, tmp_path)
