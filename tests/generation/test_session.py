"""Writing and chatting, with a model made to say what the test needs."""

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from crystalline_ray.data.bpe import BpeTokenizer
from crystalline_ray.data.tokenizer import CharTokenizer, Tokenizer
from crystalline_ray.errors import TokenizerError
from crystalline_ray.generation.generator import Generator, Sampling
from crystalline_ray.generation.session import TextSession, chat
from crystalline_ray.model.layout import ParameterLayout
from tests.helpers.model_shapes import gpt2_shape

TOKENIZER = BpeTokenizer.train(["the crystal of kissing spheres"] * 3, 270)


def writer_of(layout: ParameterLayout, weights: NDArray[np.float32], tokenizer: Tokenizer) -> TextSession:
    return TextSession(Generator(layout.shape, weights), tokenizer, Sampling(temperature=0), seed=1)


def writer_that_says(token: int | None) -> TextSession:
    """A model whose likeliest next token is always `token`."""
    assert token is not None
    layout = ParameterLayout(gpt2_shape(TOKENIZER.vocab_size, 8, 4, 1, 1))
    weights = np.zeros(layout.size, np.float32)
    views = layout.views(weights)
    views["ln_f.bias"][:] = 1.0
    views["wte.weight"][token] = 1.0
    return writer_of(layout, weights, TOKENIZER)


def test_tokenizer_of_these_tests_ends_texts() -> None:
    assert TOKENIZER.end_of_text is not None


def test_text_begins_after_the_end_of_another() -> None:
    writer = writer_that_says(ord("a"))
    ended = [writer.ended]
    writer.add("the")
    ended.append(writer.ended)
    assert ended == [True, False]
    assert writer.context == [TOKENIZER.end_of_text, *TOKENIZER.encode("the")]
    writer.add(" crystal")
    assert TOKENIZER.decode(writer.context[1:]) == "the crystal"


@pytest.mark.parametrize(("symbols", "begin"), [("eta\n", "\n"), ("etao", "e")])
def test_without_a_separator_text_begins_after_a_line_break(symbols: str, begin: str) -> None:
    layout = ParameterLayout(gpt2_shape(4, 8, 4, 1, 1))
    weights = np.zeros(layout.size, np.float32)
    views = layout.views(weights)
    views["ln_f.weight"][:] = 1.0
    views["wte.weight"][...] = np.eye(4)  # repeats the token that it is given
    writer = writer_of(layout, weights, CharTokenizer(symbols))
    assert "".join(writer.write(3)) == begin * 3


@pytest.mark.parametrize(("symbols", "between"), [("eta \n", "\n"), ("eta ", " "), ("eta", "")])
def test_lines_are_apart_as_far_as_the_model_knows_how(symbols: str, between: str) -> None:
    layout = ParameterLayout(gpt2_shape(len(symbols), 8, 4, 1, 1))
    tokenizer = CharTokenizer(symbols)
    writer = writer_of(layout, np.zeros(layout.size, np.float32), tokenizer)
    for line in ("tea", "", "eat"):
        writer.add_line(line)
    assert tokenizer.decode(writer.context) == f"tea{between}eat"
    with pytest.raises(TokenizerError):
        writer.add_line("é")
    assert tokenizer.decode(writer.context) == f"tea{between}eat"


def test_writing_lengthens_the_context_beyond_what_the_model_sees() -> None:
    (token,) = TOKENIZER.encode("x").tolist()
    writer = writer_that_says(token)
    writer.add("the")
    assert "".join(writer.write(20)) == "x" * 20
    assert writer.context[-20:] == [token] * 20


def test_end_of_the_text_stops_the_writer_and_is_no_text() -> None:
    writer = writer_that_says(TOKENIZER.end_of_text)
    writer.add("the")
    given = len(writer.context)
    assert "".join(writer.write(5)) == ""
    assert writer.ended
    assert len(writer.context) == given + 1


def test_writer_may_go_on_through_the_ends_of_texts() -> None:
    writer = writer_that_says(TOKENIZER.end_of_text)
    writer.add("the")
    given = len(writer.context)
    assert "".join(writer.write(5, through_ends=True)) == ""
    assert writer.context[given:] == [TOKENIZER.end_of_text] * 5


class Screen:
    """Plays the person: types lines, then the end of the input; an error among them is raised instead."""

    def __init__(self, *lines: str | BaseException) -> None:
        self._lines = iter(lines)
        self.shown = ""

    def read_line(self) -> str:
        line = next(self._lines, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    def show(self, text: str) -> None:
        self.shown += text


class Echo:
    """Stands in for a TextSession: repeats what was added, and ends or is interrupted where the text says so."""

    def __init__(self) -> None:
        self.text = ""
        self.ended = True

    def add_line(self, line: str) -> None:
        if "é" in line:
            raise TokenizerError("no é here")
        self.text += f"[{line}]"
        self.ended = False

    def write(self, max_new_tokens: int) -> Iterator[str]:
        yield f"<{self.text}>"
        if self.text.endswith("interrupt]"):
            raise KeyboardInterrupt
        self.ended = self.text.endswith("end]")


@pytest.mark.parametrize(
    ("lines", "shown"),
    [
        (["a", "b"], "<[a]>\n<[a][b]>\n\n"),
        (["a", ""], "<[a]>\n<[a][]>\n\n"),
        (["a", "/clear", "b", "/quit", "c"], "<[a]>\n<[b]>\n"),
        (["é", "a"], "(no é here)\n<[a]>\n\n"),
        (["interrupt", "a"], "<[interrupt]> ...\n<[interrupt][a]>\n\n"),
        (["end", "a"], "<[end]>\n(end of the text)\n<[end][a]>\n\n"),
        (["a", KeyboardInterrupt()], "<[a]>\n\n"),
    ],
)
def test_chat_takes_turns_on_one_text(lines: list[str | BaseException], shown: str) -> None:
    screen = Screen(*lines)
    chat(Echo, screen.read_line, screen.show, 10)  # type: ignore[arg-type]
    assert screen.shown == shown
