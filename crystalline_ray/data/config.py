"""The section of the configuration that decides which text becomes which tokens."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from crystalline_ray.config_section import COMMON, PLAN, Also, LaxPath, Section, conflict


def _one_or_many(value: object) -> object:
    return (value,) if isinstance(value, str | Path) else value


class DataConfig(Section):
    """Which text is read, how it is cut into tokens and what is held out for validation."""

    text: Annotated[
        tuple[LaxPath, ...], BeforeValidator(_one_or_many), Field(strict=False), COMMON, Also("data dataset input")
    ] = ()
    """Files and folders to learn from; without any, the source text of Python's standard library."""
    text_column: str = Field("text", min_length=1)
    """Column that holds the text in .jsonl, .csv and .parquet files."""
    tokenizer: Annotated[Literal["bpe", "char"], COMMON] = "bpe"
    """Kind of token. bpe: byte pairs learned from the text; char: single characters."""
    vocab_size: Annotated[int, COMMON, PLAN, Also("vocab vocabulary n_vocab")] = Field(2048, ge=2, le=1_000_000)
    """Number of tokens in the vocabulary of bpe, at least 256; char takes every character of the text."""
    validation_fraction: Annotated[float, Also("val_fraction val_split validation_ratio")] = Field(0.1, gt=0, le=0.5)
    """Share of the text that is held out for validation."""
    validation_split: Literal["auto", "document", "tail"] = "auto"
    """Part of the text that is held out. document: whole documents; tail: the end of the text; auto: documents if there
    are at least 20."""
    cache_dir: LaxPath | None = None
    """Folder that keeps tokenized text; by default crystalline_ray in the user's cache folder."""

    @model_validator(mode="after")
    def _bytes_fit_vocabulary(self) -> Self:
        if self.tokenizer == "bpe" and self.vocab_size < 256:
            raise conflict(self, "{vocab_size} must be at least 256 with {tokenizer}: one token per byte")
        return self
