"""A dataset: text made ready once, then found again by what it was made of."""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tokenizers
from numpy.typing import NDArray

from crystalline_ray.data.batches import TokenArray, map_shard, renumber_shard, token_dtype, write_shards
from crystalline_ray.data.config import DataConfig
from crystalline_ray.data.corpus import Corpus, read_corpus
from crystalline_ray.data.documents import Document, Mode, resolve_mode, split
from crystalline_ray.data.readers import STANDARD_INPUT
from crystalline_ray.data.tokenizer import Tokenizer, parse_tokenizer, train_tokenizer
from crystalline_ray.errors import DamageError, DataError, ResourceError, TokenizerError
from crystalline_ray.lattice.symmetry import group_shares, group_sizes
from crystalline_ray.progress import Progress, silent
from crystalline_ray.storage.files import disk_errors
from crystalline_ray.storage.sealed import open_store, seal

FORMAT = 2  # 2: token ids are frequency ranks
_TOKENIZER, _SUMMARY = "tokenizer.json", "summary.json"
_LOCK_SECONDS = 300.0
_ABANDONED_SECONDS = 3600.0  # a builder writes a file every few minutes at the slowest


@dataclass(frozen=True)
class Dataset:
    """Tokens to learn from and to measure by; a token's id is its frequency rank in the training part."""

    folder: Path
    tokenizer: Tokenizer
    train: TokenArray
    validation: TokenArray
    validation_bytes: int | None
    """UTF-8 bytes that the validation tokens stand for; None if they are integers."""
    summary: dict[str, Any]
    """Facts about it, for people to read; `group_shares` and `commonest_share` are shares of the training tokens."""


def prepare(
    data: DataConfig,
    *,
    seq_len: int,
    seed: int,
    corpus: Corpus | None = None,
    tokenizer: Tokenizer | None = None,
    progress: Progress = silent,
) -> Dataset:
    """Read the text, split it, train the tokenizer and write the tokens, or find all that in the cache.

    A `corpus` replaces the text of `data`. A token's id is its frequency rank in the training part; a `tokenizer`, that
    of a model to go on from, is used as it is. A cached dataset that is damaged is built anew, with a note. The default
    cache folder is closed to other users.

    Raises DataError if the text cannot be used, a part is too short for `seq_len` + 1 tokens or there is but one token,
    TokenizerError if the tokenizer cannot encode it, and ResourceError if the cache cannot be written.
    """
    if tokenizer is not None:
        data = data.model_copy(update={"tokenizer": tokenizer.kind, "end_token": tokenizer.end_token})
    if corpus is None:
        if not STANDARD_INPUT.isdisjoint(map(str, data.text)):
            raise DataError("text = standard input: a run reads its text again when it goes on; save it to a file")
        corpus = read_corpus(data, progress)
    mode = resolve_mode(corpus.documents, data.validation_split)
    root = data.cache_dir or default_cache_dir()
    store, key = open_store(root), _key(data, corpus, mode, seed, tokenizer)
    notes = list(corpus.notes)
    with disk_errors(root, "; name another folder with cache_dir"):
        if data.cache_dir is None:
            _make_private(root)
        if cached := key in store.folders():
            try:
                dataset = open_dataset(root / key, contents=True)
            except DataError as error:
                cached = False
                notes.append(f"the cached tokens were damaged and have been made anew ({error})")
        if not cached:
            with store.lock(_LOCK_SECONDS):
                store.sweep(_ABANDONED_SECONDS)
            with store.staging() as staged:
                _build(staged, corpus, data, mode, seed, tokenizer, progress)
                seal(staged)
                with store.lock(_LOCK_SECONDS):
                    store.publish(staged, key, keep_intact=True)  # another process may have been first
            dataset = open_dataset(root / key)
    _require_enough(dataset, seq_len)
    dataset.summary["notes"] += notes
    dataset.summary["cached"] = cached
    return dataset


def open_dataset(folder: Path, *, contents: bool = False) -> Dataset:
    """Open what `prepare` left in `folder`, and verify its `contents`; raises DataError if it is missing or damaged."""
    try:
        with open_store(folder.parent).opened(folder.name, contents=contents) as files:
            tokenizer = parse_tokenizer(files[_TOKENIZER].read_text(encoding="utf-8"))
            summary = json.loads(files[_SUMMARY].read_bytes())
            dtype = token_dtype(tokenizer.vocab_size)
            train, validation = (
                TokenArray([map_shard(files[name]) for name in sorted(files) if name.startswith(f"{part}-")], dtype)
                for part in ("train", "validation")
            )
    except (DamageError, TokenizerError, pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{folder}: {error}") from error
    summary |= {"train_tokens": len(train), "validation_tokens": len(validation)}
    return Dataset(folder, tokenizer, train, validation, summary["validation_bytes"], summary)


def default_cache_dir() -> Path:
    """Return `crystalline_ray` in $XDG_CACHE_HOME if that is absolute, else in ~/.cache.

    Raises ResourceError if there is no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base, "crystalline_ray")
    try:
        return Path.home() / ".cache" / "crystalline_ray"
    except RuntimeError as error:
        raise ResourceError("there is no home folder for the cache; name a folder with cache_dir") from error


def _make_private(folder: Path) -> None:
    """Close a folder of this user to others: versions before this one made it as the umask allowed."""
    if folder.is_dir() and (status := folder.stat()).st_uid == os.getuid() and status.st_mode & 0o077:
        with suppress(OSError):  # some file systems have no modes
            folder.chmod(0o700)


def _key(data: DataConfig, corpus: Corpus, mode: Mode, seed: int, tokenizer: Tokenizer | None) -> str:
    decides: dict[str, Any] = {
        "format": FORMAT,
        "text": corpus.digest,
        "tokenizer": data.tokenizer,
        "split": mode,
        "fraction": data.validation_fraction,
        "seed": seed if mode == "document" else None,
        "vocab_size": None if data.tokenizer == "char" else data.vocab_size,
        "library": tokenizers.__version__ if data.tokenizer == "bpe" else None,
    }
    if data.tokenizer == "none":
        decides["end_token"] = data.end_token
    if tokenizer is not None:  # it decides all tokens, so it stands in the place of a size for training one
        decides["vocab_size"] = blake2b(tokenizer.to_json().encode(), digest_size=16).hexdigest()
    return blake2b(json.dumps(decides, sort_keys=True).encode(), digest_size=16).hexdigest()


def _build(
    folder: Path, corpus: Corpus, data: DataConfig, mode: Mode, seed: int, given: Tokenizer | None, progress: Progress
) -> None:
    documents = corpus.documents
    parts = split(documents, data.validation_fraction, mode, seed)
    # Merges must not be learnt from the validation part. Characters and integers are collected from it too: one that
    # only this part has must have a token.
    learnt_from = parts.train if data.tokenizer == "bpe" else documents
    tokenizer = given or train_tokenizer(data, learnt_from, progress)
    dtype = token_dtype(tokenizer.vocab_size)

    def write(part: str, documents: list[Document], tokenizer: Tokenizer) -> list[Path]:
        chunks = tokenizer.encode_documents(documents, stage=f"tokenizing {part} text", progress=progress)
        return write_shards(folder, part, dtype, chunks)

    train = write("train", parts.train, tokenizer)
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for tokens in TokenArray(list(map(map_shard, train)), dtype).parts():
        counts += np.bincount(tokens, minlength=counts.size)
    if given is None:
        ranks = frequency_ranks(counts)
        for path in train:
            renumber_shard(path, ranks)
        tokenizer, counts = tokenizer.renumbered(ranks), -np.sort(-counts)
    (folder / _TOKENIZER).write_text(tokenizer.to_json(), encoding="utf-8")
    write("validation", parts.validation, tokenizer)
    notes = []
    if data.tokenizer == "bpe" and given is None and tokenizer.vocab_size < (data.vocab_size or 0):
        notes.append(f"the text yields a vocabulary of {tokenizer.vocab_size} tokens, fewer than {data.vocab_size}")
    if data.tokenizer == "none" and tokenizer.end_of_text is None and len(documents) > 1:
        notes.append(f"the {len(documents):,} documents follow one another without a mark; end_token would be one")
    summary = {
        "documents": len(documents),
        "train_documents": len(parts.train),
        "validation_documents": len(parts.validation),
        "split": mode,
        "bytes": tokenizer.count_bytes(documents),
        "validation_bytes": tokenizer.count_bytes(parts.validation),
        "tokenizer": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "group_sizes": group_sizes(counts.size).tolist(),
        "group_shares": group_shares(counts).tolist(),
        "commonest_share": float(counts.max() / counts.sum()),
        "notes": notes,
    }
    (folder / _SUMMARY).write_text(json.dumps(summary), encoding="utf-8")


def frequency_ranks(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each token's rank by how often it occurs, int (V,) to int64 (V,): 0 the commonest, ties by id."""
    return np.argsort(np.argsort(-counts, kind="stable"))


def _require_enough(dataset: Dataset, seq_len: int) -> None:
    longest = min(len(dataset.train), len(dataset.validation)) - 1
    if longest < seq_len:
        advice = f"use seq_len = {longest} or less, or more text" if longest >= 1 else "use more text"
        raise DataError(
            f"the context is longer than the text: seq_len = {seq_len} needs {seq_len + 1} tokens in each part, "
            f"but there are {len(dataset.train)} to train on and {len(dataset.validation)} to validate on; {advice}"
        )
    if dataset.tokenizer.vocab_size < 2:
        one = "integer" if dataset.tokenizer.kind == "none" else "character"
        raise DataError(f"the text is one {one} over and over, so there is nothing to predict; use other text")
