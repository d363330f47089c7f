"""An interactive text that a person and a model write in turns."""

import re
from collections.abc import Callable

from crystalline_ray.errors import TokenizerError
from crystalline_ray.generation.session import TextSession

COMMANDS = "/clear forgets the text, /quit or Ctrl-D ends, Ctrl-C stops the model in the middle, /help shows this."
GREETING = (
    "This model continues text; it has not been taught to answer. Type the beginning of something and it writes on, as "
    f"far as its context reaches back. An empty line lets it go on. {COMMANDS}"
)


def chat(
    new_session: Callable[[], TextSession],
    read_line: Callable[[], str],
    show: Callable[[str], None],
    max_new_tokens: int,
) -> None:
    """Take turns until /quit, the end of the input, or Ctrl-C while a line is awaited.

    `new_session` begins a text; `read_line` raises EOFError at the end of the input; `show` takes text in pieces, line
    breaks included. A line that is a single word after a slash is a command, no text.
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
            _take_turn(session, line, show, max_new_tokens)


def _take_turn(session: TextSession, line: str, show: Callable[[str], None], max_new_tokens: int) -> None:
    try:
        session.add_line(line)
    except TokenizerError as error:
        show(f"({error})\n")
        return
    try:
        for piece in session.write(max_new_tokens):
            show(piece)
    except KeyboardInterrupt:
        show(" ...")
    show("\n(end of the text)\n" if session.ended else "\n")
