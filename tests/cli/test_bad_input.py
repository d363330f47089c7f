"""Every kind of bad input as one table: one clear message, a non-zero status, and nothing left behind."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from crystalline_ray.cli import main
from crystalline_ray.config import Config
from crystalline_ray.data.tokenizer import CharTokenizer
from crystalline_ray.model.layout import ParameterLayout, initialise
from crystalline_ray.training.checkpoint import MODEL, Checkpoint, folder_name, write_checkpoint
from crystalline_ray.training.state import TrainingState
from tests.helpers.model_shapes import gpt2_shape

TINY = "--engine local --tokenizer char --seq-len 16 --embed-dim 16 --num-layers 1 --num-heads 2"


@dataclass(frozen=True)
class Bad:
    name: str
    command: str
    message: str
    environ: dict[str, str] = field(default_factory=dict)


TABLE = [
    # Commands and options
    Bad("unknown command", "trian", r"No such command 'trian'.*'train'"),
    Bad("unknown option", "train --batchsize 3", r"No such option '--batchsize'.*--batch-size"),
    Bad("the usual name of an option", "train --lr 3", r"'--lr'; did you mean --learning-rate\? See .* train --help$"),
    Bad("another usual name", "train --max-steps 3", r"'--max-steps'; did you mean --steps\? See"),
    Bad("option of nothing", "train --zzz 3", r"^error: No such option '--zzz'\. See crystalline-ray train --help$"),
    Bad("beginning of an option", "generate saved/good --temp 1", r"'--temp'; did you mean --temperature\? See"),
    Bad("option that plan does not need", "plan --lr 3", r"^error: No such option '--lr'\. See"),
    Bad(
        "command without its run", "generate", r"^error: Missing argument 'RUN'\. See crystalline-ray generate --help$"
    ),
    Bad("option without value", "train --steps", r"'--steps' requires an argument"),
    Bad("two configurations", "train a.yaml b.yaml", r"a\.yaml and b\.yaml: one of them"),
    # Configuration files and the environment
    Bad("missing configuration", "train none.yaml", r"none\.yaml: there is no such configuration file"),
    Bad(
        "unknown key",
        "train unknown_key.yaml",
        r"batchsize \(unknown_key\.yaml\): no such field.* batch_size\?",
    ),
    Bad("wrong type", "train wrong_type.yaml", r"seq_len = '64' \(wrong_type\.yaml\): must be a valid integer"),
    Bad("broken YAML", "train broken.yaml", r"broken\.yaml: not valid YAML"),
    Bad("configuration is a text", "train --config text.txt", r"text\.txt: must hold `field: value` lines"),
    Bad(
        "unknown variable",
        "train",
        r"seqlen \(environment variable CRYSTALLINE_RAY_SEQLEN\): no such field; did you mean seq_len\?",
        {"CRYSTALLINE_RAY_SEQLEN": "64"},
    ),
    Bad(
        "variable of wrong type",
        "train",
        r"seq_len = 'long' \(environment variable CRYSTALLINE_RAY_SEQ_LEN\): must be a valid integer",
        {"CRYSTALLINE_RAY_SEQ_LEN": "long"},
    ),
    # Values
    Bad("option of wrong type", "train --seq-len 1.5", r"seq_len = '1\.5' \(--seq-len\): must be a valid integer"),
    Bad("heads not dividing width", "train --num-heads 3", r"num_heads = 3 .* divide embed_dim = 128 .*: 2 and 4"),
    Bad("vocabulary too small", "train --vocab-size 255", r"vocab_size = 255 .*at least 256 with tokenizer = 'bpe'"),
    Bad("unknown tokenizer", "train --tokenizer words", r"tokenizer = 'words' .*must be 'bpe', 'char' or 'none'"),
    Bad("ragged global batch", "train --global-batch-size 20", r"global_batch_size = 20 .*nearest: 16 and 24"),
    Bad("two lengths", "train --steps 3 --epochs 2", r"steps = 3 .* and epochs = 2 .*exclude each other"),
    Bad("zero threads", "train --threads 0", r"threads = '0' \(--threads\): must be greater than or equal to 1"),
    Bad("too many threads", "train --threads 1886", r"threads = '1886' .*less than or equal to 1885"),
    Bad("negative learning rate", "train --learning-rate -1", r"learning_rate = '-1' .*greater than 0"),
    Bad("learning rate not finite", "train --learning-rate nan", r"learning_rate = 'nan' .*finite"),
    Bad(
        "rising learning rate",
        "train --min-learning-rate 1",
        r"min_learning_rate = 1\.0 .*must not exceed",
    ),
    Bad("dropout of everything", "train --dropout 1", r"dropout = '1' .*less than 1"),
    Bad("most of the text held out", "train --validation-fraction 0.9", r"validation_fraction = '0\.9' .*0\.5"),
    Bad("bfloat16 without MKL", "train text.txt --precision bfloat16 --blas numpy", r"'bfloat16' needs blas = 'mkl'"),
    Bad("name with a path", "train --name ../x", r"name = '\.\./x' .*must be 1 to 100 letters"),
    # Texts
    Bad("missing text", "train none.txt", r"none\.txt"),
    Bad("empty file", "train empty.txt", r"empty\.txt: no text"),
    Bad("binary file", "train binary.bin", r"binary\.bin: a binary file"),
    Bad("folder without text", "train folder", r"folder: no files"),
    Bad("missing column", "train rows.jsonl", r"rows\.jsonl.*text"),
    Bad("column named as an option", "train rows.jsonl", r"text_column \(--text-column\)"),
    Bad("address", "train http://example.com/x.txt", r"http://example\.com/x\.txt: addresses are not read"),
    Bad("standard input", "train -", r"text = standard input: .* save it to a file"),
    Bad("integers as text", "train ids.bin", r"ids\.bin: a binary file.*integers are read with .*\(--tokenizer none\)"),
    Bad("text as integers", "train text.txt --tokenizer none", r"text\.txt: tokenizer = 'none' reads integers"),
    Bad("nothing as integers", "train --tokenizer none", r"tokenizer = 'none' needs text"),
    Bad("integers too large", "train ids.bin --tokenizer none --vocab-size 9", r"up to 38, .* below vocab_size = 9"),
    Bad("end of texts", "train text.txt --end-token 3", r"end_token = 3 .*--end-token.* needs tokenizer = 'none'"),
    Bad("unknown character in the sample's prompt", "train text.txt --sample-prompt é", r"'é'.*not in the vocabulary"),
    Bad("context longer than text", "train text.txt --seq-len 9999", r"longer than the text: seq_len = 9999"),
    # The machine
    Bad(
        "disk too small",
        "train text.txt --steps 2000000000 --checkpoint-every 1 --keep-checkpoints 2000000000",
        r"has room for .*the checkpoints of this run need .*TB",
    ),
    Bad(
        "shared memory too small",
        "train text.txt --engine ray --embed-dim 65536 --num-layers 100",
        r"shared memory too small: the arena needs [\d,]+ MiB, .* has [\d,]+ MiB free",
    ),
    Bad(
        "main memory too small",
        "train text.txt --embed-dim 65536 --num-layers 100",
        r"main memory too small: the run needs [\d,]+ MiB .*, [\d,]+ MiB are available",
    ),
    Bad(
        "runs folder is a file",
        "train text.txt --runs-dir text.txt",
        r"runs_dir = text\.txt: text\.txt is a file, not a folder",
    ),
    # Runs and checkpoints
    Bad("name taken", "train text.txt --runs-dir saved --name good", r"name = 'good': saved/good exists already"),
    Bad("nothing to resume", "train --resume", r"no run with a checkpoint in runs"),
    Bad(
        "unknown run to resume",
        "train --resume --runs-dir saved --name bad",
        r"bad: neither the folder nor the name of a run\. In saved there are:$",
    ),
    Bad("resumed with a configuration", "train --resume --config ok.yaml", r"--config ok\.yaml: a resumed run keeps"),
    Bad("resumed with another model", "train saved/good --resume --seq-len 8", r"seq_len = 8 .*keeps its seq_len = 16"),
    Bad("two runs to resume", "train saved/good saved/other --resume", r"one run, not saved/good and saved/other"),
    Bad(
        "misspelt run",
        "report trunkated --runs-dir saved",
        r"trunkated: neither .* run; did you mean truncated\? In saved",
    ),
    Bad("truncated checkpoint", "train saved/truncated --resume", r"step_00000003: model\.safetensors has \d+ bytes"),
    Bad("checkpoint of another shape", "train saved/other --resume", r"shape: .*embed_dim 32, .*embed_dim 16, "),
    Bad("generate from a truncated checkpoint", "generate saved/truncated", r"no checkpoint in .* is intact"),
    Bad("generate from no run", "generate none", r"none: neither the folder nor the name of a run; there are no runs"),
    Bad("generate beside a damaged configuration", "generate saved/damaged", r"config\.yaml: not valid YAML"),
    Bad("evaluate beside a damaged configuration", "evaluate saved/damaged text.txt", r"config\.yaml: not valid YAML"),
    Bad(
        "negative seed", "generate saved/good --seed -1", r"'--seed': -1 is not in the range 0<=x<=9223372036854775807"
    ),
    Bad("huge seed", f"generate saved/good --seed {2**64}", r"'--seed': 18446744073709551616 is not in the range"),
    Bad("negative seed of a chat", "chat saved/good --seed -1", r"'--seed': -1 is not in the range"),
    Bad("unknown character", "generate saved/good --prompt é", r"é"),
    Bad("negative temperature", "generate saved/good --temperature -1", r"temperature.*-1"),
    Bad("no token to draw from", "generate saved/good --top-k 0", r"top_k.*0"),
    Bad("nothing to write", "generate saved/good --max-tokens 0", r"'--max-tokens': 0 is not in the range"),
    Bad("report of an unfinished run", "report saved/good", r"cannot read the report saved/good/report\.json"),
    Bad("comparison with an unfinished run", "report saved/good saved/other", r"cannot read the report saved/good/"),
    Bad("losses of a run without any", "report saved/good --plot a.png", r"cannot read saved/good/metrics\.jsonl"),
    Bad("losses of no run", "report --plot a.png", r"--plot a\.png: name the runs whose losses it shows"),
    Bad(
        "losses as an unknown kind of picture",
        "report saved/good --plot a.bmp",
        r"unknown ending '\.bmp'; must be one of",
    ),
    Bad("evaluate a missing text", "evaluate saved/good none.txt", r"none\.txt"),
    # Measurements
    Bad("unknown model", "bench leaf --model C", r"--model C: must be A, B or a YAML configuration file"),
    Bad("model from nowhere", "bench leaf --model none.yaml", r"none\.yaml: there is no such configuration file"),
    Bad("model in broken YAML", "bench leaf --model broken.yaml", r"broken\.yaml: not valid YAML"),
    Bad("model with an unknown key", "bench leaf --model unknown_key.yaml", r"batchsize .*did you mean batch_size"),
    Bad("no time to measure", "bench leaf --seconds 0", r"--seconds 0: must be a number of seconds above 0"),
    Bad("time that is no number", "bench leaf --seconds nan", r"--seconds nan: must be a number of seconds above 0"),
    Bad("core that is not there", "bench leaf --core 9999", r"--core 9999: must be one of the cores allowed .*: \d"),
    Bad("crystal of two vocabularies", "lattice saved/good --vocab-size 9", r"RUN has a vocabulary of its own"),
    Bad("crystal of nothing", "lattice --vocab-size 0", r"'--vocab-size': 0 is not in the range"),
    Bad(
        "picture that not every matplotlib can write",
        "lattice --plot crystal.pgf",
        r"--plot crystal\.pgf: unknown ending '\.pgf'; must be one of \.png, \.svg, \.pdf$",
    ),
    Bad("plan without cores", "plan --cpus 0", r"'--cpus': 0 is not in the range 1<=x<=1885\. See .* plan --help$"),
    Bad("plan of fewer cores than none", "plan --cpus -5", r"'--cpus': -5 is not in the range 1<=x<=1885"),
    Bad("plan beyond the tree", "plan --cpus 1886", r"'--cpus': 1886 is not in the range 1<=x<=1885"),
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, cache_folder: Path) -> Iterator[Path]:
    """The current folder, with everything that the commands name; no command may change anything there."""
    folder = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CRYSTALLINE_RAY_CACHE_DIR", str(cache_folder))
        Path("text.txt").write_text("to be or not to be, that is the question. " * 40)
        Path("empty.txt").touch()
        Path("binary.bin").write_bytes(bytes(range(256)) * 8)
        Path("folder").mkdir()
        Path("ids.bin").write_bytes(bytes(byte for number in range(39) for byte in (number, 0)))
        Path("rows.jsonl").write_text('{"body": "to be"}\n')
        Path("ok.yaml").write_text("seq_len: 16\n")
        Path("unknown_key.yaml").write_text("batchsize: 3\n")
        Path("wrong_type.yaml").write_text("seq_len: '64'\n")
        Path("broken.yaml").write_text("seq_len: [\n")
        for name, embed_dim in (("good", 16), ("other", 32), ("truncated", 16), ("damaged", 16)):
            save_run(Path("saved", name), embed_dim)
        weights = Path("saved/truncated/checkpoints", folder_name(3), MODEL)
        weights.write_bytes(weights.read_bytes()[:-100])
        Path("saved/damaged/config.yaml").write_text("[" * 100_000)
        yield folder


def contents(folder: Path) -> dict[Path, bytes | None]:
    """What is in every file below a folder, and None for every folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def save_run(run: Path, embed_dim: int) -> None:
    """A run of width 16, whose checkpoint holds a model of width `embed_dim`."""
    config = Config(
        text=(Path("text.txt"),), engine="local", tokenizer="char", seq_len=16, embed_dim=16, num_layers=1, num_heads=2
    )
    tokenizer = CharTokenizer.train([Path("text.txt").read_text()])
    layout = ParameterLayout(gpt2_shape(tokenizer.vocab_size, 16, embed_dim, 1, 2))
    weights = initialise(layout, config.seed)
    state = TrainingState(
        step=3,
        total_steps=10,
        sequences=288,
        epoch=0,
        tokens_seen=4608,
        seed=config.seed,
        optimizer="adamw",
        config_digest=config.digest(),
    )
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints/.lock").touch()  # a run that was trained has one
    (run / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    write_checkpoint(
        run / "checkpoints",
        Checkpoint(
            state=state,
            layout=layout,
            weights=weights,
            moments={"mean": weights, "variance": weights},
            tokenizer_json=tokenizer.to_json(),
        ),
    )


def test_a_misspelt_run_shows_ten_others_a_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(25):
        Path("runs", f"night-{number:02}").mkdir(parents=True)
        Path("runs", f"night-{number:02}", "config.yaml").touch()
    assert main(["report", "nigth-07"]) == 2
    first, *others = capsys.readouterr().err.splitlines()
    assert first == (
        "error: nigth-07: neither the folder nor the name of a run; did you mean night-07? In runs there are:"
    )
    assert others == [*(f"  night-{number:02}" for number in range(10)), "  and 15 more"]


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.name)
def test_bad_input_is_refused(
    bad: Bad, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in bad.environ.items():
        monkeypatch.setenv(name, value)
    arguments = bad.command.split()
    if arguments[:1] == ["train"] and "--resume" not in arguments and "text.txt" in bad.command:
        arguments = [*arguments[:1], *TINY.split(), *arguments[1:]]
    before = contents(workplace)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    messages = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1, error
    assert re.search(bad.message, messages[0]), messages[0]
    assert "Traceback" not in error
    assert contents(workplace) == before


def test_a_run_of_another_user_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(tempfile.mkdtemp())  # pytest's own would not let that user in
    (folder / "run").mkdir(mode=0)
    folder.chmod(0o555)
    for command in ("generate", "train"):
        assert main([command, "/nowhere"]) == 2  # imports what that user could not
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        assert main(["generate", str(folder / "run")]) == 2
        assert capsys.readouterr().err.endswith("no permission to use it\n")
        assert main(["train", "/nowhere", "--runs-dir", str(folder)]) == 2
        assert "no permission to write into" in capsys.readouterr().err
    finally:
        os.seteuid(before)
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_a_full_disk_behind_standard_output_is_named() -> None:
    command = [sys.executable, "-m", "crystalline_ray", "plan", "--cpus", "2"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (1, "error: standard output: No space left on device\n")
