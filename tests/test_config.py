import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from crystalline_ray.config import SECTIONS, Config, load_config, resume_config
from crystalline_ray.config_section import Also, Given
from crystalline_ray.errors import ConfigError
from tests.helpers.model_shapes import ALL_ON


def from_yaml(tmp_path: Path, text: str, environ: Mapping[str, str] | None = None, **flags: Any) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load_config(path, environ=environ, **flags)


def test_command_line_wins_over_environment_over_file_over_default(tmp_path: Path) -> None:
    config = from_yaml(
        tmp_path,
        "seq_len: 32\nbatch_size: 4\nnum_layers: 2",
        {"CRYSTALLINE_RAY_SEQ_LEN": "64", "CRYSTALLINE_RAY_BATCH_SIZE": "6"},
        seq_len="256",
    )
    assert (config.seq_len, config.batch_size, config.num_layers, config.num_heads) == (256, 6, 2, 4)


def test_derived_defaults_follow_what_was_given() -> None:
    config = load_config(batch_size="5", learning_rate="0.02")
    assert config.global_batch_size == 60
    assert config.micro_batches == 12
    assert config.min_learning_rate == pytest.approx(0.002)
    assert (config.steps, config.epochs) == (None, 1)


def test_length_given_by_a_higher_source_replaces_that_of_a_lower_one(tmp_path: Path) -> None:
    assert from_yaml(tmp_path, "epochs: 3", steps="7").steps == 7
    assert from_yaml(tmp_path, "epochs: 3", steps="7").epochs is None
    assert from_yaml(tmp_path, "steps: 7", {"CRYSTALLINE_RAY_EPOCHS": "2"}).epochs == 2


def test_yaml_numbers_in_scientific_notation_are_numbers(tmp_path: Path) -> None:
    assert from_yaml(tmp_path, "learning_rate: 3e-4\nepsilon: 1.0e-6").learning_rate == 3e-4


def test_yaml_whole_number_serves_as_a_float(tmp_path: Path) -> None:
    assert from_yaml(tmp_path, "clip_norm: 2").clip_norm == 2.0


def test_text_is_one_path_or_several(tmp_path: Path) -> None:
    assert from_yaml(tmp_path, "text: a.txt").text == (Path("a.txt"),)
    assert from_yaml(tmp_path, "text: [a.txt, b]").text == (Path("a.txt"), Path("b"))
    assert load_config(environ={"CRYSTALLINE_RAY_TEXT": "a.txt:b"}).text == (Path("a.txt"), Path("b"))
    assert load_config(text=(Path("c"),)).text == (Path("c"),)


@pytest.mark.parametrize(("text", "pin"), [("true", True), ("0", False), ("no", False)])
def test_environment_text_is_parsed(text: str, pin: bool) -> None:
    assert load_config(environ={"CRYSTALLINE_RAY_PIN": text}).pin is pin


def test_none_clears_an_optional_field(tmp_path: Path) -> None:
    assert from_yaml(tmp_path, "threads: 3", {"CRYSTALLINE_RAY_THREADS": "none"}).threads is None


def test_other_variables_of_the_environment_are_not_ours() -> None:
    assert load_config(environ={"PATH": "/bin", "SEQ_LEN": "3"}) == Config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize: 3", r"batchsize \(.*config.yaml\): no such field; did you mean batch_size\?"),
        ("zzz: 3", r"zzz \(.*config.yaml\): no such field$"),
        ("seq_len: '64'", r"seq_len = '64' \(.*config.yaml\): must be a valid integer"),
        ("seq_len: 64.5", r"seq_len = 64.5 .*integer"),
        ("seq_len: true", r"seq_len = True .*integer"),
        ("pin: 1", r"pin = 1 .*boolean"),
        ("seq_len:", r"seq_len = None .*integer"),
        ("seq_len: [1]", r"seq_len = \[1\] .*integer"),
        ("name: 7", r"name = 7 .*string"),
        ("seq_len: 3\nseq_len: 4", r"not valid YAML: seq_len is given twice .*line 2"),
        ("{", r"not valid YAML"),
        ("- 3", r"must hold `field: value` lines, not a single list"),
        ("text: 3", r"text = 3 .*must be a valid tuple"),
        ("text: ['']", r"text = .*must not be empty"),
        ("learning_rate: .nan", r"learning_rate = nan .*finite"),
        ("learning_rate: -1e-3", r"learning_rate = -0.001 .*greater than 0"),
        ("dropout: 1", r"dropout = 1 .*less than 1"),
        ("beta2: 1.0", r"beta2 = 1.0 .*less than 1"),
        ("validation_fraction: 0.6", r"validation_fraction = 0.6 .*less than or equal to 0.5"),
        ("threads: 0", r"threads = 0 .*greater than or equal to 1"),
        ("tokenizer: words", r"tokenizer = 'words' .*must be 'bpe', 'char' or 'none'"),
        ("vocab_size: 255", r"vocab_size = 255 .*at least 256 with tokenizer = 'bpe' \(default\)"),
        ("embed_dim: 130", r"num_heads = 4 \(default\) must divide embed_dim = 130 .*; nearest: 2 and 5"),
        (
            "head_tree: frequency",
            r"head_tree = 'frequency' .* needs head = 'lattice': with head = 'full' \(default\) there",
        ),
        (
            "embed_dim: 28\npositions: clock",
            r"embed_dim = 28 .* / num_heads = 4 \(default\) must be even with positions = 'clock'",
        ),
        ("num_heads: 200", r"num_heads = 200 .* must divide embed_dim = 128 \(default\); nearest: 128$"),
        (
            "global_batch_size: 20",
            r"global_batch_size = 20 .*multiple of batch_size = 8 \(default\); nearest: 16 and 24",
        ),
        ("global_batch_size: 4", r"global_batch_size = 4 .*nearest: 8$"),
        (
            "batch_size: 3\nglobal_batch_size: 12\nrouting: symmetry",
            r"global_batch_size = 12 .* with routing = 'symmetry' .* twelve groups of equally many micro-batches of "
            r"batch_size = 3 .*; nearest: 36$",
        ),
        ("routing: symmetry\nglobal_batch_size: 104", r"global_batch_size = 104 .*; nearest: 96 and 192$"),
        ("routing: random", r"routing = 'random' .*must be 'round_robin' or 'symmetry'"),
        ("steps: 3\nepochs: 4", r"steps = 3 .* and epochs = 4 .*exclude each other"),
        ("smoothing_weight: 1", r"smoothing_weight = 1 .*less than 1"),
        ("smoothing_weight: -0.1", r"smoothing_weight = -0.1 .*greater than or equal to 0"),
        ("laplacian_prior: -1", r"laplacian_prior = -1 .*greater than or equal to 0"),
        ("smoothing: similar", r"smoothing = 'similar' .*must be 'none', 'crystal' or 'uniform'"),
        (
            "smoothing: crystal\nhead: lattice",
            r"smoothing = 'crystal' .* needs head = 'full', not head = 'lattice' .*on a target's path",
        ),
        ("epsilon: 1e-60", r"epsilon = 1e-60 .*greater than or equal to 0.0000000000000001"),
        (
            "learning_rate: 20.0",
            r"learning_rate = 20.0 .* times weight_decay = 0.1 \(default\) must not exceed 1: weights would change",
        ),
        ("min_learning_rate: 1", r"min_learning_rate = 1.0 .*must not exceed learning_rate = 0.001 \(default\)"),
    ],
)
def test_refusal_names_field_value_source_and_what_is_allowed(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_yaml(tmp_path, text)


def test_char_vocabulary_may_be_smaller_than_the_bytes(tmp_path: Path) -> None:
    assert from_yaml(tmp_path, "tokenizer: char\nvocab_size: 65").vocab_size == 65


def test_all_refused_values_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        from_yaml(tmp_path, "seq_len: 0\nbatch_size: 0\nlearning_rate: 0")
    named = [line.split(" = ")[0] for line in str(caught.value).splitlines()]
    assert sorted(named) == ["batch_size", "learning_rate", "seq_len"]


@pytest.mark.parametrize(
    ("environ", "fields", "message"),
    [
        (
            {"CRYSTALLINE_RAY_SEQLEN": "3"},
            {},
            r"variable CRYSTALLINE_RAY_SEQLEN\): no such field; did you mean seq_len\?",
        ),
        (
            {"CRYSTALLINE_RAY_SEQ_LEN": "x"},
            {},
            r"seq_len = 'x' \(environment variable CRYSTALLINE_RAY_SEQ_LEN\): .*int",
        ),
        ({"CRYSTALLINE_RAY_PIN": "perhaps"}, {}, r"pin = 'perhaps' .*boolean"),
        ({"CRYSTALLINE_RAY_TEXT": ""}, {}, r"text = '' .*must not be empty"),
        ({}, {"seqlen": "3"}, r"seqlen \(given\): no such field; did you mean seq_len\?"),
        ({}, {"seq_len": "1.5"}, r"seq_len = '1.5' \(given\): .*integer"),
        ({}, {"seq_len": Given("1.5", "--seq-len")}, r"seq_len = '1.5' \(--seq-len\): .*integer"),
        (
            {},
            {"name": "../elsewhere"},
            r"name = '../elsewhere' \(given\): must be 1 to 100 letters \(a-z, A-Z\), digits, '\.', '_' or '-', "
            r"a letter or digit first$",
        ),
        ({}, {"name": "a\n"}, r"name = 'a\\n' .*must be 1 to 100 letters"),
        ({}, {"name": "é"}, r"name = 'é' .*must be 1 to 100 letters"),
        ({}, {"name": "a" * 101}, r"name = 'a*' .*must be 1 to 100 letters"),
        ({}, {"name": ""}, r"name = '' .*must be 1 to 100 letters"),
        ({}, {"runs_dir": ""}, r"runs_dir = '' \(given\): must not be empty"),
        ({}, {"seed": str(2**63)}, r"seed = .*less than"),
    ],
)
def test_refusal_names_variable_or_argument(environ: dict[str, str], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(environ=environ, **fields)


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: there is no such configuration file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.yaml: cannot be read"):
        load_config(tmp_path / "binary.yaml")


def test_yaml_makes_no_python_objects(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not valid YAML: could not determine a constructor for the tag"):
        from_yaml(tmp_path, f"text: !!python/object/apply:os.system ['touch {tmp_path}/ran']")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../run", "/run", ".", "..", "a/b", "a\0b", ""])
def test_no_name_leads_out_of_the_folder_of_runs(name: str) -> None:
    with pytest.raises(ConfigError, match="name = "):
        load_config(name=name)


def test_saved_configuration_loads_as_the_same(tmp_path: Path) -> None:
    config = load_config(text=(Path("a"), Path("ü b")), steps="5", epsilon="1e-9", name="x", sample_prompt="no")
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(path) == config
    assert list(yaml.safe_load(path.read_text())) == [
        field for section in SECTIONS.values() for field in section.model_fields
    ]


def test_digest_follows_what_decides_the_weights_and_nothing_else() -> None:
    digest = Config().digest()
    assert len(digest) == 64
    other: dict[str, Any] = {
        "tokenizer": "char", "vocab_size": 300, "validation_fraction": 0.2, "seq_len": 64,
        "embed_dim": 64, "dropout": 0.1, **ALL_ON, "embedding_init": "lattice",
        "positions": "clock",
        "batch_size": 4, "global_batch_size": 48, "sum_unit": 2, "routing": "symmetry", "steps": 9,
        "optimizer": "sgd", "learning_rate": 0.1, "schedule": "linear", "warmup_steps": 3, "seed": 7,
        "smoothing": "uniform", "smoothing_weight": 0.2, "smoothing_schedule": "linear", "smoothing_neighbours": 3,
        "laplacian_prior": 0.1,
    }  # fmt: skip
    for field, value in other.items():
        assert Config(**{field: value}).digest() != digest, field
    for field, value in {
        "text": (Path("a"),),
        "engine": "local",
        "threads": 3,
        "pin": False,
        "name": "x",
        "log_every": 3,
    }.items():
        assert Config(**{field: value}).digest() == digest, field  # type: ignore[arg-type]


def test_resume_takes_new_threads_but_keeps_what_decides_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(Config(seq_len=32, threads=2).to_yaml(), encoding="utf-8")
    resumed = resume_config(path, environ={"CRYSTALLINE_RAY_ENGINE": "local"}, threads="5", seq_len="32")
    assert (resumed.threads, resumed.engine, resumed.seq_len) == (5, "local", 32)
    assert resumed.digest() == Config(seq_len=32).digest()
    with pytest.raises(ConfigError, match=r"seq_len = 64 \(--seq-len\): a resumed run keeps its seq_len = 32"):
        resume_config(path, seq_len=Given("64", "--seq-len"))
    with pytest.raises(ConfigError, match=r"batch_size = 4 \(environment variable CRYSTALLINE_RAY_BATCH_SIZE\)"):
        resume_config(path, environ={"CRYSTALLINE_RAY_BATCH_SIZE": "4"})


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("lr", "learning_rate"), ("bs", "batch_size"), ("batch", "batch_size"), ("max_steps", "steps"),
        ("ctx", "seq_len"), ("block_size", "seq_len"), ("n_layer", "num_layers"), ("n_head", "num_heads"),
        ("n_embd", "embed_dim"), ("wd", "weight_decay"), ("drop_out", "dropout"), ("cpus", "threads"),
    ],
)  # fmt: skip
def test_the_names_of_other_trainers_lead_to_the_field(tmp_path: Path, name: str, field: str) -> None:
    fields: dict[str, Any] = {name: 3}
    message = rf"^{name} \(.*\): no such field; did you mean {field}\?$"
    with pytest.raises(ConfigError, match=message):
        from_yaml(tmp_path, f"{name}: 3")
    with pytest.raises(ConfigError, match=message):
        load_config(environ={f"CRYSTALLINE_RAY_{name.upper()}": "3"})
    with pytest.raises(ConfigError, match=message):
        load_config(**fields)
    with pytest.raises(ConfigError, match=message):
        Config(**fields)


def test_no_name_leads_to_two_fields() -> None:
    names = [
        name
        for info in Config.model_fields.values()
        for mark in info.metadata
        if isinstance(mark, Also)
        for name in mark.split()
    ]
    assert len(names) == len(set(names))
    assert not set(names) & set(Config.model_fields)


def test_configuration_made_in_python_is_refused_in_the_same_words() -> None:
    with pytest.raises(ConfigError, match=r"^seq_len = 0 \(given\): must be greater than or equal to 1$"):
        Config(seq_len=0)
    with pytest.raises(ConfigError, match=r"^num_heads = 3 \(given\) must divide embed_dim = 128 \(default\); nearest"):
        Config(num_heads=3)
    with pytest.raises(ConfigError, match=r"^seq_len = '64' \(given\): must be a valid integer$"):
        Config(seq_len="64")  # type: ignore[arg-type]


def test_a_person_in_python_names_a_file_and_fields_and_asks_for_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRYSTALLINE_RAY_SEED", "7")
    (tmp_path / "mine.yaml").write_text("seq_len: 64\nsteps: 5")
    config = load_config(str(tmp_path / "mine.yaml"), steps=20, text=["a.txt"])
    assert (config.seq_len, config.steps, config.text, config.seed) == (64, 20, (Path("a.txt"),), 1337)
    assert load_config(environ=os.environ).seed == 7


def test_nesting_without_end_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml: not valid YAML for a configuration: nested too deeply"):
        from_yaml(tmp_path, "[" * 100_000)


def test_every_field_is_described_and_in_one_section() -> None:
    fields = [field for section in SECTIONS.values() for field in section.model_fields]
    assert sorted(fields) == sorted(Config.model_fields)
    assert all(Config.model_fields[field].description for field in fields)
