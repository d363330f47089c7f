"""The section of the configuration that decides which text becomes which tokens."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from crystalline_ray.config_section import LaxPath, Section, conflict


def _one_or_many(value: object) -> object:
    return (value,) if isinstance(value, str | Path) else value


class DataConfig(Section):
    """Which text is read, how it is cut into tokens and what is held out for validation."""

    text: Annotated[tuple[LaxPath, ...], BeforeValidator(_one_or_many), Field(strict=False)] = Field(
        default=(),
        description="Files or folders to learn from; none: the source text of Python's standard library",
    )
    text_column: str = Field(
        default="text", min_length=1, description="Column that holds the text in .jsonl, .csv and .parquet files"
    )
    tokenizer: Literal["bpe", "char"] = Field(
        default="bpe", description="bpe: byte pairs learnt from the text; char: one token per character"
    )
    vocab_size: int = Field(
        default=2048,
        ge=2,
        le=1_000_000,
        description="Tokens in the vocabulary of bpe, from 256; char: all it finds",
    )
    validation_fraction: float = Field(
        default=0.1, gt=0, le=0.5, description="Share of the text held out for validation"
    )
    validation_split: Literal["auto", "document", "tail"] = Field(
        default="auto",
        description="Hold out whole documents or the tail of the text; auto: documents if there are 20 or more",
    )
    cache_dir: LaxPath | None = Field(
        default=None, description="Folder for tokenized text; none: crystalline_ray in the user's cache folder"
    )

    @model_validator(mode="after")
    def _bytes_fit_vocabulary(self) -> Self:
        if self.tokenizer == "bpe" and self.vocab_size < 256:
            raise conflict(self, "{vocab_size} must be at least 256 with {tokenizer}: one token per byte")
        return self
