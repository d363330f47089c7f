"""The section of the configuration that decides which text becomes which tokens."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from crystalline_ray.config_section import COMMON, PLAN, Also, LaxPath, Section, conflict

DEFAULT_VOCAB_SIZE = 2048
MOST_TOKENS = 1_000_000


class DataConfig(Section):
    """The text that is read, how it is cut into tokens and what is held out for validation."""

    text: Annotated[
        tuple[LaxPath, ...],
        BeforeValidator(lambda value: (value,) if isinstance(value, str | Path) else value),
        Field(strict=False),
        COMMON,
        Also("data dataset input"),
    ] = ()
    """Files and folders to learn from; without any, the source text of Python's standard library."""
    text_column: str = Field("text", min_length=1)
    """Column that holds the text in .jsonl, .csv and .parquet files, or the integers in .arrow files."""
    tokenizer: Annotated[Literal["bpe", "char", "none"], COMMON] = "bpe"
    """Kind of token. bpe: byte pairs learned from the text; char: single characters; none: the integers in .npy, .arrow
    and .bin files, as they are."""
    vocab_size: Annotated[int | None, COMMON, PLAN, Also("vocab vocabulary n_vocab")] = Field(
        default_factory=lambda fields: None if fields["tokenizer"] == "none" else DEFAULT_VOCAB_SIZE,
        ge=2,
        le=MOST_TOKENS,
    )
    """Number of tokens in the vocabulary of bpe, at least 256 [default: 2048]; char takes every character of the text;
    for none, integers must be below [default: the highest one + 1]."""
    end_token: int | None = Field(None, ge=0, lt=MOST_TOKENS)
    """Integer that ends a document, for tokenizer none; it is added where rows or offsets end one."""
    bin_dtype: Literal["uint8", "uint16", "uint32", "int32", "int64"] = "uint16"
    """Type of the integers in .bin files, little-endian."""
    validation_fraction: Annotated[float, Also("val_fraction val_split validation_ratio")] = Field(0.1, gt=0, le=0.5)
    """Share of the text that is held out for validation."""
    validation_split: Literal["auto", "document", "tail"] = "auto"
    """Part of the text that is held out. document: whole documents; tail: the end of the text; auto: documents if there
    are at least 20."""
    cache_dir: LaxPath | None = None
    """Folder that keeps tokenized text; by default crystalline_ray in the user's cache folder."""

    @model_validator(mode="after")
    def _vocabulary_holds_what_it_must(self) -> Self:
        if self.tokenizer == "bpe" and (self.vocab_size or 0) < 256:
            raise conflict(self, "{vocab_size} must be at least 256 with {tokenizer}: one token per byte")
        if self.end_token is not None and self.tokenizer != "none":
            raise conflict(self, "{end_token} needs tokenizer = 'none', not {tokenizer}, whose texts end by themselves")
        if self.end_token is not None and self.end_token >= (self.vocab_size or MOST_TOKENS):
            raise conflict(self, "{end_token} must be below {vocab_size}")
        return self
