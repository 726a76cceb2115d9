"""Chinese captions by config alone: trained through a tokenizer, validated, evaluated, rewarded."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import tiny_config

from sparsecap_jax.commands.evaluate import evaluate_run
from sparsecap_jax.files import read_csv
from sparsecap_jax.runs.config import tokenizer_section
from sparsecap_jax.runs.loop import train
from sparsecap_jax.scst.document_frequency import count_documents
from sparsecap_jax.scst.rewards import RewardWeights, make_rewards
from sparsecap_jax.tokenizers import train_tokenizer

WIDTH = 6
SCENES = ("黑狗跑。", "白猫，睡。")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two kinds of images, with features of their own."""
    directory = tmp_path_factory.mktemp("data")
    (directory / "bu" / "cocobu_att").mkdir(parents=True)
    for number, split in enumerate(["train"] * 8 + ["val", "val", "test", "test"]):
        kind = number % 2
        features = np.full((2, WIDTH), 2.0 * kind - 1, np.float32)
        np.save(directory / "bu" / "cocobu_att" / f"{number}.npy", features)
        if number in (0, 8, 10):
            content = {"images": [], "annotations": []}
        content["images"].append({"id": number, "file_name": f"{number}.jpg"})
        content["annotations"].append({"image_id": number, "caption": SCENES[kind]})
        name = f"captions_{split}2014.json" if split != "test" else "captions_val2014b.json"
        (directory / name).write_text(json.dumps(content, ensure_ascii=False))
    (directory / "test_ids.txt").write_text("10\n11\n")
    (directory / "val_ids.txt").write_text("8\n9\n")
    return directory


def test_chinese_captions_train_and_score(data, tmp_path):
    config = tiny_config(data, pruner="none", steps=150, eval_every=150, log_every=150)
    config.optimizer.learning_rate = 0.02
    config.data.update(name="coco_json", feature_size=WIDTH, region_buckets=(2,), batch_size=4)
    config.max_seq_length = 8
    config.eval.tokenizer = "unicode"
    with config.unlocked():
        config.tokenizer = tokenizer_section("char", vocab_size=40)
    train(config, tmp_path / "run", lambda line: None)
    (row,) = read_csv(tmp_path / "run" / "validation.csv")
    shown = {"metrics": ["Bleu_1"], "report": lambda line: None}
    scores = evaluate_run(tmp_path / "run", output=tmp_path / "scored", **shown)
    entries = json.loads((tmp_path / "scored" / "captions.json").read_text())
    assert [entry["caption"] for entry in entries] == ["黑狗跑", "白猫 睡"]
    assert float(row["Bleu_1"]) == pytest.approx(1) and scores["Bleu_1"] == pytest.approx(1)
    words = evaluate_run(tmp_path / "run", output=tmp_path / "words", tokenizer="python", **shown)
    assert words["Bleu_1"] < 1  # whole captions as words


def test_rewards_are_of_words_between_blanks(tmp_path):
    """A near caption earns nothing in Chinese as it is written, and its share between blanks."""
    weights = RewardWeights(cider_d=1.0, bleu=(1.0, 0.0, 0.0, 0.0))
    for written, expected in ((["黑狗跑"], 0.0), (["黑 狗 跑"], 2 / 3)):
        others = [text.replace("黑", "白") for text in written]
        frequency = count_documents([written, others])
        tokenizer = train_tokenizer("char", [*written, *others] * 3, tmp_path / "t", vocab_size=12)
        rewards = make_rewards(weights, frequency, [written, others], tokenizer)
        tokens = jnp.array([[tokenizer.encode(text)[1:] for text in (written[0], others[0])]])
        lengths = jnp.full((1, 2), tokens.shape[-1])
        exact, near = np.asarray(rewards(rewards.resources, np.array([0]), tokens, lengths))[0]
        assert exact > 1 and near == pytest.approx(expected, abs=1e-6)
