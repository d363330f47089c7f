"""A model that writes: text in, text out, token by token in between; by itself or in turns with a person."""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress

from crystalline_ray.data.tokenizer import Tokenizer
from crystalline_ray.errors import TokenizerError
from crystalline_ray.generation.generator import Generator, Sampling, generate

COMMANDS = "/clear forgets the text, /quit or Ctrl-D ends, Ctrl-C stops the model in the middle, /help shows this."
GREETING = (
    "This model continues text; it has not been taught to answer. Type the beginning of something and it writes on, as "
    f"far as its context reaches back. An empty line lets it go on. {COMMANDS}"
)


class TextSession:
    """Lets a model continue a text; `seed` is the key of the draws, and each call of `write` uses the next one."""

    def __init__(self, generator: Generator, tokenizer: Tokenizer, sampling: Sampling, seed: int) -> None:
        self.context: list[int] = []
        """All tokens so far, given and written; the model sees as many of the last as it has context for."""
        self._generator, self._tokenizer, self._sampling, self._seed = generator, tokenizer, sampling, seed
        self._line_break = ""
        for text in (" ", "\n"):  # the last one that the model knows
            with suppress(TokenizerError):
                tokenizer.encode(text)
                self._line_break = text

    @property
    def ended(self) -> bool:
        """Whether the context is empty or at the end of a text, so that a new one begins."""
        return not self.context or self.context[-1] == self._tokenizer.end_of_text

    def add(self, text: str) -> None:
        """Add given text to the context; raises TokenizerError if it has a character that the model does not know."""
        tokens = self._tokenizer.encode(text).tolist()
        if not self.context and self._tokenizer.end_of_text is not None:
            self.context.append(self._tokenizer.end_of_text)  # in training, this stands before a text's first token
        self.context += tokens

    def add_line(self, line: str) -> None:
        """Add text on a line of its own, after a space where the model knows no line break; raises as `add`."""
        self.add(line if self.ended or not line else self._line_break + line)

    def write(self, max_tokens: int, *, through_ends: bool = False) -> Iterator[str]:
        """Yield text as whole characters until `max_tokens` are written or the model ends the text.

        With `through_ends` the model may begin another text after that; the end itself is no text either way.
        """
        end_of_text = self._tokenizer.end_of_text
        stream = self._tokenizer.stream(continued=not self.ended)
        tokens = generate(
            self._generator,
            self.context or [self._tokenizer.start],
            max_new_tokens=max_tokens,
            sampling=self._sampling,
            seed=self._seed,
            stop_token=None if through_ends else end_of_text,
        )
        self._seed += 1
        before = len(self.context)
        for token in tokens:
            self.context.append(token)
            if token != end_of_text and (text := stream.feed(token)):
                yield text
        if len(self.context) < before + max_tokens and end_of_text is not None:
            self.context.append(end_of_text)
        if text := stream.flush():
            yield text


def chat(
    new_session: Callable[[], TextSession], read_line: Callable[[], str], show: Callable[[str], None], max_tokens: int
) -> None:
    """Take turns until /quit, the end of the input, or Ctrl-C while a line is awaited.

    `new_session` begins a text; `read_line` raises EOFError at the end of the input; `show` takes text in pieces. A
    line that is a single word after a slash is a command, no text.
    """
    session = new_session()
    while True:
        try:
            line = read_line()
        except (EOFError, KeyboardInterrupt):
            show("\n")
            return
        command = line.strip()
        if command == "/quit":
            return
        if command == "/clear":
            session = new_session()
        elif re.fullmatch(r"/[a-z]+", command):
            show(f"({COMMANDS if command == '/help' else f'{command} is no command; {COMMANDS}'})\n")
        else:
            try:
                session.add_line(line)
                for piece in session.write(max_tokens):
                    show(piece)
            except TokenizerError as error:
                show(f"({error})\n")
                continue
            except KeyboardInterrupt:
                show(" ...")
            show("\n(end of the text)\n" if session.ended else "\n")
