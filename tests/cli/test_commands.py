"""The commands as a person types them, in one process with the local engine."""

import io
import json
import math
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from inspect import get_annotations
from pathlib import Path
from typing import Any

import pytest
from rich.filesize import decimal

from crystalline_ray.cli import main
from crystalline_ray.config import SECTIONS, Config, load_config
from crystalline_ray.config_section import COMMON, PLAN
from crystalline_ray.spheres.plan import plan_spheres
from tests.helpers.model_shapes import SWITCHES

TINY = [
    "--engine", "local", "--tokenizer", "char", "--seq-len", "16", "--embed-dim", "16", "--num-layers", "1",
    "--num-heads", "2", "--batch-size", "2", "--global-batch-size", "8", "--steps", "6", "--eval-every", "2",
    "--checkpoint-every", "2", "--sample-tokens", "5", "--eval-batches", "3", "--warmup-steps", "1",
    "--learning-rate", "0.02", "--validation-fraction", "0.03",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(corpus_file: Path, cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with runs/base, as `train` leaves it."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CRYSTALLINE_RAY_CACHE_DIR", str(cache_folder))
        assert main(["train", str(corpus_file), *TINY, "--name", "base"]) == 0
        yield folder


@pytest.fixture
def workplace(trained: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    monkeypatch.setenv("CRYSTALLINE_RAY_CACHE_DIR", str(cache_folder))
    return trained


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Run a command with --json; standard output must be one object and nothing else."""
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # NaN and Infinity are no JSON


def test_train_writes_what_a_run_is(workplace: Path) -> None:
    run = workplace / "runs/base"
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "metrics.jsonl", "report.json", "checkpoints"}
    config = load_config(run / "config.yaml")
    assert (config.name, config.steps, config.global_batch_size) == ("base", 6, 8)


def test_train_accepts_the_documented_line(
    workplace: Path, corpus_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "--epochs 1 --batch-size 16 --seq-len 64 --threads 12 --vocab-size 1000 --embed-dim 128"
    line += " --num-layers 2 --num-heads 4"
    report = run_json(capsys, "train", str(corpus_file), *line.split(), "--engine", "local", "--sample-tokens", "0")
    assert report["steps"] == report["total_steps"] > 0
    assert [sphere["role"] for sphere in report["spheres"]] == ["root"] + ["leaf"] * 12


def test_train_takes_the_configuration_and_texts_as_arguments(
    workplace: Path, corpus_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("tiny.yaml").write_text(f"text: nowhere.txt\nengine: local\ncache_dir: {workplace}\nepochs: 4\n")
    options = [*TINY, "--name", "from_yaml", "--steps", "1"]
    report = run_json(capsys, "train", "tiny.yaml", str(corpus_file), *options)
    assert report["run"] == "from_yaml"
    config = load_config(Path("runs/from_yaml/config.yaml"))
    assert (config.text, config.steps, config.epochs) == ((corpus_file,), 1, None)


def test_resume_goes_on_with_the_run_that_was_saved_last_or_named(
    workplace: Path, corpus_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run_json(capsys, "train", str(corpus_file), *TINY, "--name", "newest")
    for arguments, run in (([], "newest"), (["--name", "base"], "base"), (["runs/base"], "base")):
        shutil.rmtree(Path("runs", run, "checkpoints", "step_00000006"))
        report = run_json(capsys, "train", *arguments, "--resume", "--threads", "1")
        assert (report["run"], report["steps"], report["weights_digest"]) == (run, 6, whole["weights_digest"])
        assert [sphere["role"] for sphere in report["spheres"]] == ["root", "leaf"]


SWITCH_FLAGS = ["--" + name.replace("_", "-") for name in SWITCHES]


@pytest.mark.parametrize(
    "switches", ["--head lattice", " ".join((*SWITCH_FLAGS, "--embedding-init lattice --positions clock"))]
)
def test_a_model_of_the_crystal_is_trained_saved_resumed_and_used(
    switches: str, workplace: Path, corpus_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree("runs/tree", ignore_errors=True)
    whole = run_json(capsys, "train", str(corpus_file), *TINY, "--name", "tree", *switches.split())
    assert whole["validation_loss"] < whole["first_validation_loss"]
    shutil.rmtree("runs/tree/checkpoints/step_00000006")
    resumed = run_json(capsys, "train", "--name", "tree", "--resume")
    assert resumed["weights_digest"] == whole["weights_digest"]
    evaluation = run_json(capsys, "evaluate", "tree")
    assert evaluation["nats_per_token"] == pytest.approx(whole["validation_loss"], rel=1e-5)
    assert (evaluation["crystalline_score"] is None) == ("head" in switches)
    assert main(["generate", "tree", "--prompt", "the ", "--max-tokens", "20", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.startswith("the ")


def test_generate_streams_the_prompt_and_repeats_itself_with_one_seed(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for seed in ("1", "1", "2"):
        assert main(["generate", "base", "--prompt", "the ", "--max-tokens", "40", "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("the ")
    assert len(texts[0]) == len("the ") + 40 + len("\n")


def test_generate_json_says_what_was_asked_and_written(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, "generate", "runs/base", "--prompt", "the ", "--max-tokens", "7", "--temperature", "0")
    assert found["prompt"] == "the "
    assert found["tokens"] == len(found["text"]) == 7


def test_generate_begins_without_a_prompt(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_json(capsys, "generate", "base", "--max-tokens", "3")["tokens"] == 3


def test_evaluate_measures_the_held_out_text_as_training_did(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_json(capsys, "evaluate", "base")
    report = run_json(capsys, "report", "base")
    assert found["nats_per_token"] == pytest.approx(report["validation_loss"], rel=1e-12)
    assert found["bits_per_byte"] == pytest.approx(report["bits_per_byte"], rel=1e-12)
    assert found["crystalline_score"] == pytest.approx(report["crystalline_score"], rel=1e-12)
    assert found["perplexity"] == pytest.approx(math.exp(found["nats_per_token"]))
    assert main(["evaluate", "base"]) == 0
    assert f"crystalline score  {found['crystalline_score']:.4f}\n" in capsys.readouterr().out


def test_perplexity_of_a_diverged_model_is_infinite(
    workplace: Path, corpus_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*TINY, "--name", "wild", "--runs-dir", str(tmp_path), "--learning-rate", "100", "--weight-decay", "0"]
    assert main(["train", str(corpus_file), *options]) == 0
    found = run_json(capsys, "evaluate", str(tmp_path / "wild"))
    assert found["nats_per_token"] > 710
    assert found["perplexity"] is None
    assert main(["evaluate", str(tmp_path / "wild")]) == 0
    assert "perplexity         inf\n" in capsys.readouterr().out


def test_evaluate_measures_any_text(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("known.txt").write_text("the crystal of kissing spheres " * 20)
    Path("strange.txt").write_text("zzzzttttxxxxgggg".replace("z", "y").replace("x", "v") * 20)
    known, strange = (run_json(capsys, "evaluate", "base", name) for name in ("known.txt", "strange.txt"))
    assert known["tokens"] == 31 * 20 - 1
    assert known["bytes"] == 31 * 20
    assert known["nats_per_token"] < strange["nats_per_token"]


def test_evaluate_refuses_a_training_text_that_has_changed(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("changing.txt").write_text("round the sphere " * 200)
    assert main(["train", "changing.txt", *TINY, "--name", "changing", "--steps", "1"]) == 0
    Path("changing.txt").write_text("round the crystal " * 200)
    capsys.readouterr()
    assert main(["evaluate", "changing"]) == 2
    assert "has changed since it was trained on" in capsys.readouterr().err


def test_evaluate_measures_standard_input(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "the crystal of kissing spheres " * 20
    Path("known.txt").write_text(text)
    expected = run_json(capsys, "evaluate", "base", "known.txt")
    for name in ("-", "/dev/stdin"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert run_json(capsys, "evaluate", "base", name) == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    assert main(["evaluate", "base", "-"]) == 2
    assert "error: -: no text" in capsys.readouterr().err


def test_chat_continues_what_is_on_the_screen(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = "the crystal\n\né\n/clear\nthe crystal\n/help\n/qiut\n/quit\nnever read\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    assert main(["chat", "base", "--max-tokens", "9"]) == 0
    shown = capsys.readouterr()
    assert "has not been taught to answer" in shown.err
    assert ">" not in shown.out  # nobody is there to be asked for a line
    turns, rest = shown.out[:20], shown.out[20:]
    refusal, rest = rest.split("\n", maxsplit=1)
    again, told = rest[:10], rest[10:].splitlines()
    assert "'é'" in refusal
    assert again == turns[:10] != turns[10:]
    assert turns[9] == turns[19] == "\n"
    assert [line.split()[0] for line in told] == ["(/clear", "(/qiut"]
    assert told[1].startswith("(/qiut is no command; /clear forgets")


def test_chat_asks_a_person_for_each_line_and_fits_a_terminal(workplace: Path) -> None:
    def drive(fd: int) -> bytes:
        """Read the chat's terminal until it asks, answer /quit, and read on to the end."""
        shown = b""
        while b"> " not in shown:
            shown += os.read(fd, 4096)
        os.write(fd, b"/quit\n")
        with suppress(OSError):  # the terminal is gone with the program
            while piece := os.read(fd, 4096):
                shown += piece
        return shown

    command = [sys.executable, "-m", "crystalline_ray", "chat", "base"]
    process, terminal = pty.fork()
    if process == 0:
        os.execve(command[0], command, {**os.environ, "TERM": "xterm", "COLUMNS": "80"})
    shown = drive(terminal).decode()
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    greeting = shown.split("> ")[0].splitlines()
    assert all(60 < len(line.rstrip()) <= 80 for line in greeting[:-1])


def test_report_lists_all_runs(workplace: Path, corpus_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("runs/base", "listed/other")
    shutil.copytree("runs/base", "listed/unfinished")
    Path("listed/unfinished/report.json").unlink()
    report = run_json(capsys, "report", "base")
    found = run_json(capsys, "report", "--runs-dir", "listed")
    assert [row["run"] for row in found] == ["other", "unfinished"]
    assert [row["steps"] for row in found] == [6, 6]
    assert [row["validation_loss"] for row in found] == [report["validation_loss"]] * 2
    assert [row["stopped"] for row in found] == ["finished", "no report yet"]
    assert main(["report", "--runs-dir", "listed"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows[-2:]] == ["other", "unfinished"]
    assert all(f"{report['validation_loss']:.4f}" in row for row in rows[-2:])
    Path("listed/other/report.json").write_text("{")
    damage = run_json(capsys, "report", "--runs-dir", "listed")[0]
    assert (damage["run"], damage["stopped"]) == ("other", "unreadable")
    assert damage["error"].startswith("listed/other/report.json is not a report of a run")
    assert main(["report", "--runs-dir", "listed"]) == 0
    table, _, below = capsys.readouterr().out.partition("no report yet\n")
    assert "listed/other" not in table
    assert " ".join(below.split()) == " ".join(damage["error"].split())
    assert main(["report", "--runs-dir", "nowhere"]) == 0
    assert capsys.readouterr().out == "there are no runs\n"


def test_report_compares_runs_and_draws_their_losses(
    workplace: Path, corpus_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    options = ["--name", "slower", "--learning-rate", "0.005"]
    slower = run_json(capsys, "train", str(corpus_file), *TINY, *options)
    reports = [run_json(capsys, "report", run) for run in ("base", "slower")]
    assert run_json(capsys, "report", "base", "slower", "--plot", "losses.png") == reports
    assert Path("losses.png").read_bytes().startswith(b"\x89PNG")
    assert main(["report", "base", "slower", "--plot", "losses.svg"]) == 0
    rows = {line.rsplit(maxsplit=2)[0]: line.split()[-2:] for line in capsys.readouterr().out.splitlines()}
    assert rows["train loss"] == [f"{report['train_loss']:.4f}" for report in reports]
    assert rows["weights"] == [report["weights_digest"][:12] for report in reports]
    assert rows["learning_rate"] == ["0.02", "0.005"]
    assert "batch_size" not in rows  # alike in both
    assert slower["weights_digest"] == reports[1]["weights_digest"]


@pytest.mark.parametrize("cores", [1, 13, 64, 157, 1885])
def test_plan_json_holds_the_whole_tree(cores: int, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, "plan", "--cpus", str(cores))
    plan = plan_spheres([range(cores)])
    assert found["counts"] == plan.counts()
    assert [sphere["id"] for sphere in found["spheres"]] == list(range(len(plan.spheres)))
    assert set(found["spheres"][0]) == {"id", "level", "role", "parent", "groups", "node", "core"}


@pytest.mark.parametrize(
    ("cores", "headline"),
    [
        (64, "1 + 12 + 51 = 64 spheres on 64 cores: 1 root, 12 controls, 51 leaves"),
        (157, "1 + 12 + 144 = 157 spheres on 157 cores: 1 root, 12 controls, 144 leaves"),
        (1885, "1 + 12 + 144 + 1728 = 1,885 spheres on 1,885 cores: 1 root, 156 controls, 1,728 leaves"),
    ],
)
def test_plan_shows_the_levels_and_stays_short(cores: int, headline: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--cpus", str(cores)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(headline)
    assert len(shown.splitlines()) < 40


def test_plan_names_every_sphere_of_a_small_tree_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--cpus", "64"]) == 0
    named: list[int] = []
    for first, last in re.findall(r"(?:root|control|leaf|leaves) (\d+)(?:-(\d+))?  ", capsys.readouterr().out):
        named += range(int(first), int(last or first) + 1)
    assert sorted(named) == list(range(64))


def test_plan_says_which_leaves_idle_and_what_memory_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, "plan", "--cpus", "64", "--batch-size", "2", "--global-batch-size", "400")
    assert "4 of 51 leaves" in found["notes"][0]
    assert "306 or 408" in found["notes"][0]
    larger = run_json(capsys, "plan", "--cpus", "64", "--embed-dim", "256")
    assert larger["memory"]["weights"] > found["memory"]["weights"] > 0
    parts = [found["memory"][part] for part in ("weights", "moments", "gradients", "ledger")]
    assert found["memory"]["shared"] == sum(parts)


def test_plan_tells_what_routes_take(capsys: pytest.CaptureFixture[str]) -> None:
    memory = run_json(capsys, "plan", "--cpus", "13", "--batch-size", "2", "--routing", "symmetry")["memory"]
    assert memory["routes"] == 3 * 12 * (1 + 24) * 8
    assert "routes" not in run_json(capsys, "plan", "--cpus", "13")["memory"]


def test_plan_says_why_gradients_take_most_of_the_memory_and_what_would_shrink_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    box64 = ["plan", "--cpus", "157", "--config", str(Path(__file__).parents[2] / "configs/box64.yaml")]
    found = run_json(capsys, *box64)
    size = found["memory"]["weights"] // 2
    # in each group the sum, and all but the first of its 17 micro-batches while they wait
    assert found["memory"]["gradients"] == 12 * (1 + 16) * size
    (note,) = (note for note in found["notes"] if note.startswith("gradients take 27.4 GB: 204 copies of 134.4 MB"))
    for field, value in (("sum_unit", "2"), ("batch_size", "4")):
        less = run_json(capsys, *box64, f"--{field.replace('_', '-')}", value)["memory"]["gradients"]
        assert less < 0.6 * found["memory"]["gradients"]
        assert f"{decimal(less)} with {field} {value}" in note
    assert not any("gradients" in note for note in run_json(capsys, "plan", "--cpus", "13")["notes"])


@pytest.mark.usefixtures("short_peak")
def test_doctor_finds_what_the_machine_has_and_plan_without_cores_is_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, "doctor")
    assert found["versions"]["Python"] == sys.version.split()[0]
    assert len(found["allowed_cores"]) >= found["train"]["leaves"] >= 1
    assert found["blas"][0]["threads"] >= 1
    assert found["memory"]["total"] > found["memory"]["free"] > 0
    planned = run_json(capsys, "plan")
    assert planned["counts"] == {"root": 1} | {role: found["train"][role] for role in ("controls", "leaves")}
    workspace = planned["memory"]["per_leaf"]
    assert found["train"]["leaf_workspace"] == workspace > 0
    for command, pieces in (("plan", ()), ("doctor", (found["blas"][0]["library"],))):
        assert main([command]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert all(piece in shown for piece in (decimal(workspace), *pieces))


@pytest.mark.usefixtures("short_peak")
def test_doctor_says_what_ray_address_means(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for address, meaning in (("", "not set: training starts a Ray of its own"), ("10.0.0.1:6379", "is refused")):
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert run_json(capsys, "doctor")["ray_address"] == (address or None)
        assert main(["doctor"]) == 0
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("RAY_ADDRESS"))
        assert line.split("  ", 1)[1].strip().startswith(address or "not set")
        assert meaning in line


BENCH_FIELDS = {
    "model", "precision", "blas", "tokens_per_second", "step_seconds", "gemm_share", "peak_share", "peak_memory_mb",
}  # fmt: skip


@pytest.mark.usefixtures("short_peak")
def test_bench_leaf_measures_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text("vocab_size: 300\nseq_len: 8\nembed_dim: 16\nnum_layers: 1\nbatch_size: 2\n")
    monkeypatch.setenv("CRYSTALLINE_RAY_NUM_HEADS", "2")
    found = run_json(capsys, "bench", "leaf", "--model", "tiny.yaml", "--seconds", "0.01")
    assert found.keys() >= BENCH_FIELDS
    assert (found["model"], found["precision"], found["step_tokens"]) == ("tiny.yaml", "float32", 16)
    assert main(["bench", "leaf", "--model", "tiny.yaml", "--seconds", "0.01"]) == 0
    shown = capsys.readouterr()
    assert "adamw_update" in shown.out
    assert shown.err == ""


def help_sections(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    capsys.readouterr()
    assert main(arguments) == 0
    parts = re.split(r"^(\w+):$", capsys.readouterr().out, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_full_help_has_every_field_in_its_section_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    sections = help_sections(capsys, "train", "--help-all")
    for heading, section in SECTIONS.items():
        for name, field in section.model_fields.items():
            if name in get_annotations(section):
                assert f"--{name.replace('_', '-')}" in sections[heading]
                assert field.description
                assert field.description.split()[0] in sections[heading]
    assert "[default: 0.95]" in sections["Optimizer"]
    assert f"[default: {Config().seq_len}]" in sections["Model"]


def test_help_shows_the_common_options_first(capsys: pytest.CaptureFixture[str]) -> None:
    sections = help_sections(capsys, "train", "--help")
    shown = re.findall(r"^  --([a-z-]+)", "".join(sections.values()), flags=re.MULTILINE)
    common = [name.replace("_", "-") for name, field in Config.model_fields.items() if COMMON in field.metadata]
    assert set(common) == set(shown) - {"config", "resume", "json", "help-all"}
    assert len(common) <= 22
    assert {"batch-size", "learning-rate", "steps", "threads"} < set(shown)
    assert "--help-all" in sections["Options"]


def test_plan_takes_the_fields_that_are_marked_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    marked = [name.replace("_", "-") for name, field in Config.model_fields.items() if PLAN in field.metadata]
    sections = help_sections(capsys, "plan", "--help-all" if len(marked) > 20 else "--help")
    shown = re.findall(r"^  --([a-z-]+)", "".join(sections.values()), flags=re.MULTILINE)
    assert set(shown) - {"cpus", "config", "json", "help-all"} == set(marked)


def test_help_imports_neither_numpy_nor_ray() -> None:
    code = (
        "import sys\n"
        "from crystalline_ray.cli import cli, main\n"
        "for name in [None, *cli.commands]:\n"
        "    assert main([*filter(None, [name]), '--help']) == 0\n"
        "assert main(['train', '--help-all']) == 0\n"
        "print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not {"numpy", "ray", "pyarrow", "tokenizers", "torch", "rich"} & set(done.stderr.split())


def test_the_package_runs_as_a_module_and_completes_in_a_shell() -> None:
    command = [sys.executable, "-m", "crystalline_ray"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True, timeout=60).stdout
    assert shown.startswith("Usage: crystalline-ray ")
    assert "_CRYSTALLINE_RAY_COMPLETE=bash_source crystalline-ray" in shown
    words = {
        "_CRYSTALLINE_RAY_COMPLETE": "bash_complete",
        "COMP_WORDS": "crystalline-ray train --learn",
        "COMP_CWORD": "2",
    }
    found = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60, env=os.environ | words
    ).stdout
    assert found == "plain,--learning-rate\n"


def test_interruption_before_training_ends_with_130_and_no_run(
    workplace: Path, corpus_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("crystalline_ray.training.run.prepare", interrupt)
    assert main(["train", str(corpus_file), *TINY, "--name", "interrupted"]) == 130
    assert capsys.readouterr().err.strip() == "error: interrupted"
    assert not Path("runs/interrupted").exists()


def test_reader_that_goes_away_is_no_error() -> None:
    python = f"{sys.executable} -c 'import sys, crystalline_ray.cli as c; sys.exit(c.main())'"
    command = f"{python} plan --cpus 1885 --json | head -c 20"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.startswith('{"counts"')
    assert found.stderr == ""


def test_plan_takes_its_configuration_as_train_does(capsys: pytest.CaptureFixture[str]) -> None:
    box = str(Path(__file__).parents[2] / "configs" / "box64.yaml")
    assert main(["plan", box, "--cpus", "64", "--json"]) == 0
    given = json.loads(capsys.readouterr().out)
    assert main(["plan", "--config", box, "--cpus", "64", "--json"]) == 0
    assert given == json.loads(capsys.readouterr().out)
    assert main(["plan", box, "--config", box]) == 2
    assert "give one configuration" in capsys.readouterr().err


def test_a_closed_output_is_no_traceback() -> None:
    code = "import sys; from crystalline_ray.cli import main; sys.exit(main(['doctor']))"
    done = subprocess.run(
        ["sh", "-c", f'{sys.executable} -c "{code}" >&-'], capture_output=True, text=True, timeout=120, check=False
    )
    assert "Traceback" not in done.stderr
