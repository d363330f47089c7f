"""An interactive text that a person and a model write in turns."""

from collections.abc import Callable

from crystalline_ray.errors import TokenizerError
from crystalline_ray.generation.session import TextSession

GREETING = """\
This model continues text; it has not been taught to answer. Type the beginning of something and it writes on, with
what is on the screen in view as far as its context reaches. An empty line lets it go on.
/clear forgets all, /quit or Ctrl-D ends, Ctrl-C stops the model in the middle."""


def chat(
    new_writer: Callable[[], TextSession],
    read_line: Callable[[], str],
    show: Callable[[str], None],
    max_new_tokens: int,
) -> None:
    """Take turns until /quit, the end of the input, or Ctrl-C while a line is awaited.

    `new_writer` gives a writer with an empty context; `read_line` raises EOFError at the end of the input; `show` takes
    text in pieces, line breaks included.
    """
    writer = new_writer()
    while True:
        try:
            line = read_line()
        except (EOFError, KeyboardInterrupt):
            show("\n")
            return
        if line.strip() == "/quit":
            return
        if line.strip() == "/clear":
            writer = new_writer()
            continue
        try:
            writer.add_line(line)
        except TokenizerError as error:
            show(f"({error})\n")
            continue
        try:
            for piece in writer.write(max_new_tokens):
                show(piece)
        except KeyboardInterrupt:
            show(" ...")
        show("\n(end of the text)\n" if writer.ended else "\n")
