"""The documents for users say what is true: their Python runs, their commands parse, what they name exists."""

import contextlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from crystalline_ray.cli import cli

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CURRENT = [path for path in DOCUMENTS if path.name != "log.md"]
"""The log's commands are those of their commits."""


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(path: Path) -> Iterator[list[str]]:
    """Find what is run as crystalline-ray in blocks of shell and in code within sentences: the words after it."""
    lines = [line for block in blocks(path, "sh") for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^ *```.*?^ *```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for line in [*lines, *re.findall(r"`([^`]+)`", prose)]:
        for command in re.split(r"&&|\||2>", line):
            name, *words = [*shlex.split(command, comments=True), ""][:-1] or [""]
            while "=" in name and words:  # a variable of the environment
                name, *words = words
            if Path(name).name == "crystalline-ray":
                yield words


def parse(words: list[str]) -> None:
    """Parse words as the command line does, and run nothing."""
    command: click.Command = cli
    name, context = "crystalline-ray", None
    while isinstance(command, click.Group):
        context = click.Context(command, info_name=name, parent=context, **command.context_settings)
        if not words or words[0].startswith("-"):
            break
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        command = found
    with contextlib.suppress(click.exceptions.Exit):  # --help
        command.make_context(name, words, parent=context)  # what a command is made in, it remembers for its help


def options(command: click.Command = cli) -> set[str]:
    inner = command.commands.values() if isinstance(command, click.Group) else ()
    own = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return own.union(*map(options, inner), {"--help"})


def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names: dict[str, object] = {"__name__": "readme"}
    found = blocks(ROOT / "README.md", "python")
    assert found
    for number, block in enumerate(found):
        exec(compile(block, f"README.md, Python block {number}", "exec"), names)


@pytest.mark.parametrize("path", CURRENT, ids=lambda path: path.name)
def test_every_command_parses(path: Path) -> None:
    for words in commands(path):
        if words and "..." not in words:
            parse(words)


def test_commands_are_found() -> None:
    assert ["train", "configs/quickstart.yaml"] in commands(ROOT / "README.md")
    assert ["plan", "--cpus", "64"] in commands(ROOT / "README.md")
    with pytest.raises(click.NoSuchOption):
        parse(["train", "--no-such-option"])


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "docs/crystal.md"], ids=lambda path: path.name)
def test_every_option_in_a_sentence_exists(path: Path) -> None:
    named = re.findall(r"`(--[a-z][a-z0-9-]*)", path.read_text())
    assert named
    assert not set(named) - options()


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=lambda path: path.name)
def test_every_file_that_is_linked_or_run_exists(path: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text())
    scripts = re.findall(r"python (scripts/\S+\.py)", path.read_text())
    missing = [link for link in links if not (path.parent / link).exists()]
    missing += [script for script in scripts if not (ROOT / script).exists()]
    assert not missing


def test_the_house_has_the_rooms_that_the_readme_draws() -> None:
    (house,) = re.findall(r"^crystalline_ray/\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    drawn = {line.split()[0].rstrip("/") for line in house.splitlines()}
    package = ROOT / "crystalline_ray"
    rooms = {path.parent.name for path in package.glob("*/__init__.py")}
    assert rooms <= drawn
    assert all((package / name).exists() for name in drawn)
