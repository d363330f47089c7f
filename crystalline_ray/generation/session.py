"""A model that writes: text in, text out, token by token in between."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from crystalline_ray.data.tokenizer import Tokenizer
from crystalline_ray.engine.process import one_worker_thread
from crystalline_ray.errors import TokenizerError
from crystalline_ray.generation.generator import Generator, Sampling, generate
from crystalline_ray.generation.load import TrainedModel
from crystalline_ray.lattice.tree import SHELLS
from crystalline_ray.model.config import ModelShape


class TextSession:
    """Lets a model continue a text.

    Args:
        shape: the model.
        weights: flat float32 array in the order of the parameter layout.
        tokenizer: the one the model was trained with.
        sampling: how tokens are drawn.
        seed: key of the draws; each call of `write` uses the next one.
        head_tree: outline of the lattice head's tree.

    Attributes:
        context: all tokens so far, given and written; the model sees as many of the last as it has context for.
    """

    def __init__(
        self,
        shape: ModelShape,
        weights: NDArray[np.float32],
        tokenizer: Tokenizer,
        sampling: Sampling,
        seed: int,
        head_tree: str = SHELLS,
    ) -> None:
        self.context: list[int] = []
        self._generator = Generator(shape, weights, head_tree)
        self._tokenizer = tokenizer
        self._line_break = next(text for text in ("\n", " ", "") if _knows(tokenizer, text))
        self._sampling = sampling
        self._seed = seed

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
        """Add text on a line of its own, or nothing if it is empty; raises as `add`.

        Where the model knows no line break, a space stands for it, and where it knows no space either, nothing.
        """
        self.add(line if self.ended or not line else self._line_break + line)

    def write(self, max_new_tokens: int, *, through_ends: bool = False) -> Iterator[str]:
        """Yield text as whole characters until `max_new_tokens` are written or the model ends the text.

        With `through_ends` the model may begin another text after that; the end itself is no text either way.
        """
        end_of_text = self._tokenizer.end_of_text
        stream = self._tokenizer.stream(continued=not self.ended)
        tokens = generate(
            self._generator,
            self.context or [self._tokenizer.start],
            max_new_tokens=max_new_tokens,
            sampling=self._sampling,
            seed=self._seed,
            stop_token=None if through_ends else end_of_text,
        )
        self._seed += 1
        before = len(self.context)
        while True:
            # As in training, for the same bits; the caller's own products between two tokens keep their threads.
            with one_worker_thread():
                token = next(tokens, None)
            if token is None:
                break
            self.context.append(token)
            if token != end_of_text and (text := stream.feed(token)):
                yield text
        if len(self.context) < before + max_new_tokens and end_of_text is not None:
            self.context.append(end_of_text)
        if text := stream.flush():
            yield text


def write_sample(model: TrainedModel, prompt: str, num_tokens: int, seed: int) -> str:
    """Return the prompt and what a model writes after it, through the ends of texts."""
    session = TextSession(model.shape, model.weights, model.tokenizer, Sampling(), seed, model.head_tree)
    session.add(prompt)
    return prompt + "".join(session.write(num_tokens, through_ends=True))


def _knows(tokenizer: Tokenizer, text: str) -> bool:
    try:
        tokenizer.encode(text)
    except TokenizerError:
        return False
    return True
