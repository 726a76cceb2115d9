"""Changes of a config by flags: names first, values in the types of their fields."""

import sys

import pytest
from test_config import REPO

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.runs.config import default_config, validate
from sparsecap_jax.runs.overrides import describe, load_config, read_config

UP_DOWN = str(REPO / "configs/up_down.py")


@pytest.mark.parametrize("words", ["", ":tiny", ":scst,mask_freeze,num_samples=60", ":supermask"])
def test_a_pruner_that_a_flag_chooses_has_the_values_of_the_recipe(words):
    source = f"{UP_DOWN}{words}"
    for name in ("supermask", "snip"):
        config = read_config(source, [f"pruner.name={name}"])
        recipe = "tiny," if words == ":tiny" else ""
        expected = load_config(UP_DOWN, f"{recipe}{name}").pruner
        assert config.pruner.to_dict() == expected.to_dict()
        assert config.pruner.sparsity == 0.95
        validate(config)


def test_the_pruner_of_the_file_keeps_its_values():
    source = f"{UP_DOWN}:supermask,sparsity=0.9"
    assert read_config(source, ["pruner.name=supermask"]).pruner.sparsity == 0.9


def test_a_pruner_without_a_recipe_has_its_own_defaults(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from sparsecap_jax.runs.config import default_config\n"
        "def get_config():\n    return default_config('transformer')\n"
    )
    config = read_config(str(tmp_path / "mine.py"), ["pruner.name=supermask"])
    assert (config.pruner.sparsity, config.model.name) == (0.8, "transformer")


def test_a_model_and_a_tokenizer_that_flags_choose_have_their_defaults():
    changes = ["model.num_heads=4", "tokenizer.radix_base=64", "model.name=transformer"]
    config = read_config(f"{UP_DOWN}:tiny", [*changes, "tokenizer.name=radix"])
    expected = default_config("transformer", tokenizer="radix")
    expected.model.num_heads, expected.tokenizer.radix_base = 4, 64
    assert config.model.to_dict() == expected.model.to_dict()
    assert config.tokenizer.to_dict() == expected.tokenizer.to_dict()
    validate(config)


@pytest.mark.parametrize(
    ("change", "value"),
    [
        (["train.steps=500"], 500),
        (["optimizer.learning_rate=1e-3"], 1e-3),
        (["optimizer.learning_rate=1"], 1.0),
        (["optimizer.beta=0.98"], 0.98),
        (["optimizer.epsilon=None"], None),
        (["model.remat=true"], True),
        (["model.remat=False"], False),
        (["data.dir=123"], "123"),
        (["data.dir=a=b"], "a=b"),
        (["data.region_buckets=20"], (20,)),
        (["data.region_buckets=20,36"], (20, 36)),
        (["data.region_buckets=(20, 36)"], (20, 36)),
        (["data.region_buckets=20", "data.region_buckets=36"], (20, 36)),
        (["train.init_ignore=a/.*"], ("a/.*",)),
        (["train.init_ignore=['a', 'b']"], ("a", "b")),
        (["train.init_ignore=a{1,2}", "train.init_ignore=b"], ("a{1,2}", "b")),
        (["scst.start_epoch=-1"], -1),
        (["scst.sample=random", "scst.sample=beam"], "beam"),
    ],
)
def test_values_take_the_types_of_their_fields(change, value):
    config = read_config(UP_DOWN, change)
    section, _, key = change[0].partition("=")[0].partition(".")
    found = config[section][key]
    assert (found, type(found)) == (value, type(value))
    assert read_config(UP_DOWN, ["seed=7"]).seed == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.steps=1.5", r"config\.train\.steps is 1\.5; expected int"),
        ("train.steps=many", r"config\.train\.steps is 'many'; expected int"),
        ("model.remat=maybe", r"config\.model\.remat is 'maybe'; expected bool"),
        ("train.stpes=1", r"config\.train\.stpes: unknown key; did you mean 'steps'\?"),
        ("trian.steps=1", r"config\.trian: unknown section; did you mean 'train'\?"),
        ("a.b.c=1", r"config\.a\.b: unknown section"),
        ("sede=1", r"config\.sede: unknown key; did you mean 'seed'\?"),
        ("pruner.name=supermsk", r"config\.pruner\.name is 'supermsk'; did you mean 'supermask'\?"),
        ("pruner.init_value=1", r"config\.pruner\.init_value: unknown key"),
    ],
)
def test_faulty_changes_name_the_field(change, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        read_config(UP_DOWN, [change])


def test_epochs_that_steps_would_hide(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from sparsecap_jax.runs.config import default_config\n\n\ndef get_config():\n"
        "    config = default_config()\n    config.train.steps = 40\n    return config\n"
    )
    for source, change in (
        (str(tmp_path / "mine.py"), ["train.epochs=3"]),
        (UP_DOWN, ["train.epochs=3", "train.steps=40"]),
    ):
        message = r"^config\.train\.epochs has no effect where config\.train\.steps is 40; expected"
        with pytest.raises(ConfigError, match=message):
            read_config(source, change)
        assert read_config(source, [*change, "train.steps=0"]).train.epochs == 3


def test_a_name_in_a_flag_vouches_for_its_module(tmp_path, monkeypatch):
    (tmp_path / "my_captioners.py").write_text(
        "from sparsecap_jax.models import MODELS\n\nclass Mine(MODELS['up_down']):\n"
        '    """Mine."""\n\n    hops: int = 3\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    config = read_config(UP_DOWN, ["model.hops=5", "model.name=my_captioners:Mine"])
    validate(config)
    assert (config.model.hops, config.model.rnn_size) == (5, 1000)
    with pytest.raises(ConfigError, match=r"config\.model\.name is 'my_captioners:None1'"):
        read_config(UP_DOWN, ["model.name=my_captioners:None1"])


def test_config_files_that_fail_are_one_line(tmp_path):
    for text, message in (
        ("def get_config():\n    return {}['a']\n", "KeyError: 'a'"),
        ("import nonesuch\n", "ModuleNotFoundError: No module named 'nonesuch'"),
        ("x = 1\n", "AttributeError: .*get_config"),
    ):
        (tmp_path / "mine.py").write_text(text)
        with pytest.raises(ConfigError, match=rf"mine\.py: {message}"):
            read_config(str(tmp_path / "mine.py"))
    with pytest.raises(ConfigError, match=r"none\.py: no such config file; expected FILE\.py"):
        read_config(str(tmp_path / "none.py:tiny"))


def test_a_file_of_another_kind_is_no_config(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0")
    with pytest.raises(ConfigError, match=r"config\.yaml: no Python file; expected FILE\.py"):
        load_config(tmp_path / "config.yaml")


def test_every_value_has_a_source():
    changes = ["train.steps=9", "pruner.name=supermask"]
    lines = describe(read_config(UP_DOWN, changes), changes)
    for line in (
        "config.seed = 0  # default",
        "config.train.steps = 9  # flag",
        "config.train.epochs = 15  # default",
        "config.optimizer.learning_rate = 0.01  # config file",
        "config.model.name = 'up_down'  # default",
        "config.pruner.name = 'supermask'  # flag",
        "config.pruner.sparsity = 0.95  # config file",
    ):
        assert lines.count(line) == 1
    count = sum(
        len(section)
        for section in default_config(pruner="supermask").to_dict().values()
        if isinstance(section, dict)
    )
    assert len(lines) == count + 3


def test_a_flag_without_a_value_sets_bools_alone():
    assert read_config(UP_DOWN, ["data.skip_bad"]).data.skip_bad is True
    with pytest.raises(ConfigError, match=r"config\.data\.dir: no value; expected str"):
        read_config(UP_DOWN, ["data.dir"])
