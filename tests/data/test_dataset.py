import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from crystalline_ray.data.config import DataConfig
from crystalline_ray.data.corpus import text_corpus
from crystalline_ray.data.dataset import Dataset, default_cache_dir, open_dataset, prepare
from crystalline_ray.data.tokenizer import CharTokenizer, Tokenizer, train_tokenizer
from crystalline_ray.errors import DataError, ResourceError, TokenizerError
from crystalline_ray.progress import Progress, silent
from crystalline_ray.storage.sealed import MANIFEST
from tests.helpers.small_disk import small_disk

DOCUMENTS = [
    f"document {number} says:\n" + f"{number} is {chr(0x430 + number) * 8}, naïve or not\n" * 20 for number in range(30)
]


def write_documents(path: Path) -> Path:
    path.mkdir()
    for number, text in enumerate(DOCUMENTS):
        (path / f"{number:02}.txt").write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_documents(tmp_path / "text")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the text and, in the cache beside it, its tokens."""
    root = tmp_path_factory.mktemp("built")
    make(write_documents(root / "text"))
    return root


def make(
    text: Path,
    seq_len: int = 16,
    seed: int = 1,
    progress: Progress = silent,
    given: Tokenizer | None = None,
    **settings: Any,
) -> Dataset:
    fields: dict[str, Any] = {"text": text, "vocab_size": 300, "cache_dir": text.parent / "cache"}
    data = DataConfig(**fields | settings)
    return prepare(data, seq_len=seq_len, seed=seed, tokenizer=given, progress=progress)


def everything(dataset: Dataset) -> tuple[bytes, bytes, str]:
    train, validation = (part.read(0, len(part)).tobytes() for part in (dataset.train, dataset.validation))
    return train, validation, dataset.tokenizer.to_json()


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in sorted(folder.iterdir())}


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.name != ".lock"]


def test_both_parts_hold_the_documents_each_followed_by_the_separator(folder: Path) -> None:
    dataset = make(folder)
    end = dataset.tokenizer.end_of_text
    texts = []
    for part in (dataset.train, dataset.validation):
        tokens = part.read(0, len(part))
        assert tokens.dtype == np.uint16
        assert tokens[-1] == end
        ends = np.flatnonzero(tokens == end)
        texts.append([dataset.tokenizer.decode(one[one != end]) for one in np.split(tokens, ends[:-1] + 1)])
    assert sorted(texts[0] + texts[1]) == sorted(DOCUMENTS)
    assert dataset.validation_bytes == sum(len(text.encode()) for text in texts[1])
    summary = dataset.summary
    assert summary["documents"] == 30
    assert (summary["train_documents"], summary["validation_documents"]) == tuple(map(len, texts))
    assert (summary["train_tokens"], summary["validation_tokens"]) == (len(dataset.train), len(dataset.validation))
    assert summary["bytes"] == sum(len(text.encode()) for text in DOCUMENTS)
    assert (summary["split"], summary["vocab_size"], summary["cached"]) == ("document", 300, False)
    assert summary["notes"] == []


def test_merges_are_learnt_from_the_training_part_only(folder: Path) -> None:
    dataset = make(folder, vocab_size=1000)
    parts = [dataset.tokenizer.decode(part.read(0, len(part))) for part in (dataset.train, dataset.validation)]
    # Every document has its own word of eight Cyrillic letters, sixteen bytes: one token if it was learnt from.
    words = [set(re.findall(" [\u0430-\u044f]+", part)) for part in parts]
    learnt, held = ([len(dataset.tokenizer.encode(word)) for word in part] for part in words)
    assert set(learnt) == {1}
    assert min(held) > 4


def test_char_recipe_of_tiny_shakespeare_in_small(tmp_path: Path) -> None:
    text = tmp_path / "play.txt"
    text.write_text("First Citizen:\nBefore we proceed\n" * 100 + "Zounds!")
    dataset = make(text, tokenizer="char")
    size = 100 * 33 + 7
    assert dataset.tokenizer.end_of_text is None
    assert len(dataset.train) == size * 9 // 10
    assert len(dataset.validation) == dataset.validation_bytes == size - size * 9 // 10
    assert dataset.tokenizer.decode(dataset.validation.read(0, len(dataset.validation))).endswith("Zounds!")


def test_another_process_opens_the_same_tokens(folder: Path) -> None:
    dataset = make(folder)
    opened = open_dataset(dataset.folder)
    assert everything(opened) == everything(dataset)
    assert opened.validation_bytes == dataset.validation_bytes
    with pytest.raises(DataError, match=f"absent: {MANIFEST} is missing"):
        open_dataset(folder.parent / "absent")


def test_second_time_nothing_is_built(folder: Path) -> None:
    first = make(folder)
    before = stamps(first.folder)
    stages = set()
    second = make(folder, progress=lambda stage, done, total: stages.add(stage))
    assert second.summary["cached"]
    assert stages == {"reading"}
    assert second.folder == first.folder
    assert stamps(first.folder) == before
    assert everything(second) == everything(first)


def test_what_decides_the_tokens_decides_the_folder(folder: Path) -> None:
    base = make(folder)
    others = [
        make(folder, vocab_size=310),
        make(folder, tokenizer="char"),
        make(folder, validation_fraction=0.2),
        make(folder, validation_split="tail"),
        make(folder, seed=2),
    ]
    assert len({dataset.folder for dataset in [base, *others]}) == 6
    assert make(folder, validation_split="document").folder == base.folder
    assert make(folder, seq_len=8).folder == base.folder
    assert make(folder, validation_split="tail", seed=2).folder == others[3].folder
    moved = shutil.copytree(folder, folder.parent / "moved")
    assert make(moved).folder == base.folder
    (moved / "05.txt").write_text("something else")
    assert make(moved).folder != base.folder


def test_rebuilding_gives_the_same_bytes(folder: Path) -> None:
    first = make(folder)
    second = make(folder, cache_dir=folder.parent / "other")
    assert everything(first) == everything(second)
    for path in first.folder.iterdir():
        assert path.read_bytes() == (second.folder / path.name).read_bytes()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize(
    "name", ["train-00000.arrow", "validation-00000.arrow", "tokenizer.json", "summary.json", MANIFEST]
)
def test_damage_is_noticed_and_made_good(
    built: Path, tmp_path: Path, damage: Callable[[Path], object], name: str
) -> None:
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    folder, (tokens,) = tmp_path / "text", leftovers(tmp_path / "cache")
    first = tmp_path / "cache" / tokens
    expected = everything(open_dataset(built / "cache" / tokens))
    before = {path.name: path.read_bytes() for path in first.iterdir()}
    damage(first / name)
    if damage is not flip:
        with pytest.raises(DataError, match=name):
            open_dataset(first)
    again = make(folder)
    assert not again.summary["cached"]
    assert "damaged and have been made anew" in again.summary["notes"][0]
    assert name in again.summary["notes"][0]
    assert everything(again) == expected
    assert {path.name: path.read_bytes() for path in again.folder.iterdir()} == before
    assert leftovers(again.folder.parent) == [again.folder.name]
    assert make(folder).summary["notes"] == []


@pytest.mark.parametrize("stage", ["learning the vocabulary", "tokenizing train text", "tokenizing validation text"])
def test_interrupted_building_leaves_nothing(folder: Path, stage: str) -> None:
    def interrupt(now: str, done: int, total: int) -> None:
        if now == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(folder, progress=interrupt)
    assert leftovers(folder.parent / "cache") == []


def test_killed_building_leaves_nothing_that_counts(folder: Path) -> None:
    code = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from crystalline_ray.config import DataConfig\nfrom crystalline_ray.data.dataset import prepare\n"
        "def die(stage, done, total):\n    if 'validation' in stage: os.kill(os.getpid(), signal.SIGKILL)\n"
        "text, cache = map(Path, sys.argv[1:])\n"
        "prepare(DataConfig(text=(text,), cache_dir=cache), seq_len=16, seed=1, progress=die)\n"
    )
    arguments = [sys.executable, "-c", code, str(folder), str(folder.parent / "cache")]
    done = subprocess.run(arguments, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    cache = folder.parent / "cache"
    (half,) = leftovers(cache)
    assert half.startswith(".tmp-")
    dataset = make(folder)
    assert not dataset.summary["cached"]
    assert (cache / half).exists()  # it could be at work in another process
    for path in (*(cache / half).iterdir(), cache / half):
        os.utime(path, (0, 0))
    make(folder, seed=2)
    assert not (cache / half).exists()


def test_two_builders_at_once_both_succeed(folder: Path) -> None:
    barrier = threading.Barrier(2, timeout=30)
    results: list[Dataset] = []

    def build() -> None:
        def meet(stage: str, done: int, total: int) -> None:
            if stage == "tokenizing validation text" and done == total:
                barrier.wait()

        results.append(make(folder, progress=meet))

    threads = [threading.Thread(target=build) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(results) == 2
    assert everything(results[0]) == everything(results[1])
    assert leftovers(folder.parent / "cache") == [results[0].folder.name]


def test_disk_that_takes_no_more(folder: Path) -> None:
    """The kernel refuses to let files grow beyond 4 KiB, as a full disk or a quota would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(
            ResourceError, match=r"cannot write .*cache: File too large \(.* free there\); name another .* cache_dir"
        ):
            make(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert leftovers(folder.parent / "cache") == []


def test_full_disk(folder: Path) -> None:
    refusal = r"cannot write .*small: No space left on device \(.* free there\); .* cache_dir"
    with small_disk(folder.parent / "small", 16) as small:
        with pytest.raises(ResourceError, match=refusal):
            make(folder, cache_dir=small)
        assert leftovers(small) == []


def test_cache_folder_that_cannot_be(folder: Path) -> None:
    blocked = folder.parent / "file"
    blocked.write_text("in the way")
    with pytest.raises(
        ResourceError, match=r"cannot write .*file: Not a directory; name another folder with cache_dir"
    ):
        make(folder, cache_dir=blocked)


def test_text_shorter_than_the_context(folder: Path) -> None:
    dataset = make(folder)
    longest = min(len(dataset.train), len(dataset.validation)) - 1
    make(folder, seq_len=longest)
    with pytest.raises(DataError, match=f"needs {longest + 2} tokens in each part.*seq_len = {longest} or less"):
        make(folder, seq_len=longest + 1)


@pytest.mark.parametrize("text", ["x", "xy", "four"])
@pytest.mark.parametrize("tokenizer", ["bpe", "char"])
def test_tiny_text(tmp_path: Path, text: str, tokenizer: str) -> None:
    path = tmp_path / "tiny.txt"
    path.write_text(text)
    with pytest.raises(DataError, match="the context is longer than the text"):
        make(path, tokenizer=tokenizer)


def test_text_of_one_character(tmp_path: Path) -> None:
    path = tmp_path / "same.txt"
    path.write_text("a" * 2000)
    with pytest.raises(DataError, match="one character over and over, so there is nothing to predict"):
        make(path, tokenizer="char")


def test_smaller_vocabulary_than_asked_for_is_noted(folder: Path) -> None:
    dataset = make(folder, vocab_size=50_000)
    size = dataset.tokenizer.vocab_size
    assert 256 < size < 1000
    assert dataset.summary["vocab_size"] == size
    assert dataset.summary["notes"] == [f"the text yields a vocabulary of {size} tokens, fewer than 50000"]
    assert make(folder, vocab_size=50_000).summary["notes"] == dataset.summary["notes"]


def test_large_vocabulary_has_wide_tokens(tmp_path: Path) -> None:
    text = tmp_path / "many.txt"
    text.write_text("".join(map(chr, range(0x10000, 0x10000 + 70_000))), encoding="utf-8")
    dataset = make(text, tokenizer="char", validation_fraction=0.5)
    assert dataset.train.dtype == dataset.validation.dtype == np.uint32
    assert dataset.tokenizer.decode(dataset.validation.read(34_990, 35_000)) == text.read_text(encoding="utf-8")[-10:]


def test_counts_of_this_reading_are_in_the_summary(folder: Path) -> None:
    make(folder)
    (folder / "picture.png").write_bytes(b"\0\1\2")
    (folder / "nothing.txt").write_bytes(b"")
    dataset = make(folder)
    assert dataset.summary["cached"]
    assert dataset.summary["notes"] == [
        "left out 1 file (picture.png): a binary file, or text in an encoding other than UTF-8"
    ]


def test_progress_reaches_its_end(folder: Path) -> None:
    reports: dict[str, list[tuple[int, int]]] = {}
    make(folder, progress=lambda stage, done, total: reports.setdefault(stage, []).append((done, total)))
    assert list(reports) == [
        "reading",
        "learning the vocabulary",
        "tokenizing train text",
        "tokenizing validation text",
    ]
    for steps in reports.values():
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1] > 0


def test_cache_is_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "crystalline_ray"
    monkeypatch.setenv("HOME", str(tmp_path))
    for relative in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        assert default_cache_dir() == tmp_path / ".cache" / "crystalline_ray"


def test_the_users_cache_folder_is_closed_to_others_but_a_named_one_keeps_its_mode(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    named = tmp_path / "named"
    for open_to_all in (default_cache_dir(), named):
        open_to_all.mkdir(parents=True)
        open_to_all.chmod(0o755)
    (tmp_path / "xdg").chmod(0o755)
    make(folder, cache_dir=None)
    make(folder, cache_dir=named)
    modes = [path.stat().st_mode & 0o777 for path in (default_cache_dir(), named, tmp_path / "xdg")]
    assert modes == [0o700, 0o755, 0o755]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_cache_folder_of_another_user_keeps_its_mode(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    default_cache_dir().mkdir()
    default_cache_dir().chmod(0o755)
    os.chown(default_cache_dir(), 65534, 65534)
    make(folder, cache_dir=None)
    assert default_cache_dir().stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_chunks_do_not_change_the_tokens(monkeypatch: pytest.MonkeyPatch, kind: Literal["bpe", "char"]) -> None:
    texts = ["".join(DOCUMENTS), *DOCUMENTS, "x"]
    tokenizer = train_tokenizer(DataConfig(tokenizer=kind, vocab_size=300), texts)
    whole = np.concatenate([part for text in texts for part in (tokenizer.encode(text), [tokenizer.end_of_text])])
    monkeypatch.setattr("crystalline_ray.data.tokenizer_base._CHUNK_LENGTH", 500)
    chunks = list(tokenizer.encode_documents(texts))
    assert len(chunks) > 20
    assert np.concatenate(chunks).tolist() == whole.tolist()
    tokens, num_bytes = tokenizer.tokenise(texts)
    assert tokens.read(0, len(tokens)).tolist() == whole.tolist()
    assert num_bytes == sum(len(text.encode()) for text in texts)


def test_texts_in_memory_give_the_tokens_of_files(folder: Path) -> None:
    data = DataConfig(text=(folder / "absent",), vocab_size=300, cache_dir=folder.parent / "cache")
    dataset = prepare(data, seq_len=16, seed=1, corpus=text_corpus(DOCUMENTS))
    assert dataset.folder == make(folder).folder
    assert everything(dataset) == everything(make(folder, cache_dir=folder.parent / "other"))


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_a_given_tokenizer_is_used_as_it_is(folder: Path, kind: str) -> None:
    first = make(folder, tokenizer=kind)
    other = folder.parent / "other"
    other.mkdir()
    (other / "text.txt").write_text("naïve or not\n" * 100, encoding="utf-8")
    dataset = make(other, given=first.tokenizer)  # whatever `tokenizer` the configuration has
    assert dataset.tokenizer.to_json() == first.tokenizer.to_json()
    again = [dataset.tokenizer.decode(part.read(0, len(part))) for part in (dataset.train, dataset.validation)]
    end = dataset.tokenizer.decode([dataset.tokenizer.end_of_text or 0])
    assert "".join(again).replace(end, "") == "naïve or not\n" * 100
    assert dataset.summary["tokenizer"] == kind
    assert dataset.summary["commonest_share"] == max(np.bincount(dataset.train.read(0, len(dataset.train)))) / len(
        dataset.train
    )
    assert sum(dataset.summary["group_shares"]) == pytest.approx(1)
    assert make(other, given=first.tokenizer).summary["cached"]
    changed = first.tokenizer.renumbered(np.roll(np.arange(first.tokenizer.vocab_size), 1))
    folders = {make(other, given=changed).folder, make(other, tokenizer=kind).folder, dataset.folder}
    assert len(folders) == 3


def test_a_given_tokenizer_must_know_the_text(folder: Path) -> None:
    with pytest.raises(TokenizerError, match=r"'d'.*is not in the vocabulary of 3 characters"):
        make(folder, given=CharTokenizer("abc"))
    assert leftovers(folder.parent / "cache") == []
