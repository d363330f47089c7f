import codecs
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crystalline_ray.data.config import DataConfig
from crystalline_ray.data.corpus import Corpus, read_corpus, standard_library, text_corpus
from crystalline_ray.data.dataset import prepare
from crystalline_ray.data.documents import only_texts
from crystalline_ray.data.readers import is_binary
from crystalline_ray.errors import DataError

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1"


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(*paths: Path, column: str = "text") -> Corpus:
    return read_corpus(DataConfig(text=paths, text_column=column))


def texts(*paths: Path, column: str = "text") -> list[str]:
    return list(only_texts(read(*paths, column=column).documents))


def test_folder_is_read_recursively_in_order_and_skips_what_is_no_text(tmp_path: Path) -> None:
    put(tmp_path / "b.md", "# b\r\n")
    put(tmp_path / "a.txt", "a")
    put(tmp_path / "deep/er/c.py", "c = 1\n")
    put(tmp_path / "deep/d.rst", "d")
    put(tmp_path / "deep/no_suffix", "e")
    put(tmp_path / "empty.txt", "")
    put(tmp_path / "image.png", PNG)
    for hidden in (".hidden", ".git/config", "__pycache__/x.txt", "node_modules/m.js", "deep/.venv/y.py"):
        put(tmp_path / hidden, "not this")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    corpus = read(tmp_path)
    assert corpus.documents == ["a", "# b\r\n", "d", "c = 1\n", "e"]
    assert corpus.notes == ("left out 1 file (image.png): a binary file, or text in an encoding other than UTF-8",)


def test_the_order_of_paths_and_the_place_of_a_folder_do_not_matter(tmp_path: Path) -> None:
    for folder in ("here", "elsewhere/copy"):
        put(tmp_path / folder / "x/one.txt", "one")
        put(tmp_path / folder / "two.txt", "two")
    put(tmp_path / "m.txt", "three")
    here, there, single = tmp_path / "here", tmp_path / "elsewhere/copy", tmp_path / "m.txt"
    assert texts(here, single) == texts(single, here) == ["three", "two", "one"]
    assert read(here, single).digest == read(single, there).digest
    put(there / "two.txt", "changed")
    assert read(here).digest != read(there).digest


def test_digest_knows_where_a_document_ends(tmp_path: Path) -> None:
    one = [put(tmp_path / "1/a.txt", "ab"), put(tmp_path / "1/b.txt", "c")]
    other = [put(tmp_path / "2/a.txt", "a"), put(tmp_path / "2/b.txt", "bc")]
    assert read(*one).digest != read(*other).digest


def test_a_file_reached_twice_is_read_once(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", "a")
    (tmp_path / "link.txt").symlink_to(path)
    assert texts(tmp_path, path, tmp_path) == ["a"]


def test_explicit_hidden_file_is_read(tmp_path: Path) -> None:
    assert texts(put(tmp_path / ".notes", "hidden")) == ["hidden"]


@pytest.mark.parametrize(
    ("raw", "text", "replaced"),
    [
        (b"caf\xe9 au lait", "caf\ufffd au lait", 1),
        ("genuine \ufffd and ".encode() + b"\xff\xfe bad", "genuine \ufffd and \ufffd\ufffd bad", 2),
        (b"cut short: \xe2\x82", "cut short: \ufffd", 1),
        (b"plain \xe2\x82" + "\ufffd, twice".encode(), "plain \ufffd\ufffd, twice", 1),
        (codecs.BOM_UTF8 + b"marked", "marked", 0),
    ],
)
def test_invalid_utf8_is_replaced_and_counted(tmp_path: Path, raw: bytes, text: str, replaced: int) -> None:
    corpus = read(put(tmp_path / "x.txt", raw))
    assert corpus.documents == [text]
    note = f"{replaced} byte sequences that are not UTF-8 were replaced by U+FFFD, in 1 file (x.txt)"
    assert corpus.notes == ((note,) if replaced else ())


@pytest.mark.parametrize(
    ("raw", "binary"),
    [
        (PNG, True),
        (b"a" * 8191 + b"\0", True),
        (b"a" * 8192 + b"\0", False),
        (bytes(range(1, 32)) * 9, True),
        ("Пример текста".encode("cp1251"), True),
        ("text".encode("utf-16"), True),
        ("Müßiggänger über Bäume".encode("latin-1"), False),
        (("日本語のテキスト" * 1000).encode(), False),
        (b"\x1b[31mred\x1b[0m\ttab\r\n", False),
        (b"", False),
    ],
)
def test_what_counts_as_binary(raw: bytes, binary: bool) -> None:
    assert is_binary(raw) is binary


def test_tables_give_a_document_a_row(tmp_path: Path) -> None:
    rows = ["first", 'second, with "quotes"\nand two lines', "x" * 200_000, "ünï\u2028code"]
    put(
        tmp_path / "rows.jsonl", "".join(json.dumps({"id": i, "text": row}) + "\n" for i, row in enumerate(rows)) + "\n"
    )
    raw = "\n".join(json.dumps({"text": row}, ensure_ascii=False) for row in rows)
    put(tmp_path / "raw.jsonl", raw)
    quoted = ('"' + row.replace('"', '""') + '"' for row in rows)
    put(tmp_path / "rows.csv", "id,text\r\n" + "".join(f"7,{row}\r\n" for row in quoted))
    for name, kind in [("plain", pa.string()), ("large", pa.large_string())]:
        pq.write_table(pa.table({"text": pa.array(rows, kind)}), tmp_path / f"{name}.parquet")
    pq.write_table(pa.table({"text": pa.array(rows).dictionary_encode()}), tmp_path / "words.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert texts(path) == rows, path.name


def test_other_column_and_empty_rows(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl", '{"body": "one"}\n{"body": null}\n{"body": ""}\n{"body": "two"}\n')
    put(tmp_path / "b.csv", "n,body\n1,three\n2,\n\n3,four\n")
    pq.write_table(pa.table({"body": ["five", None, ""]}), tmp_path / "c.parquet")
    assert texts(tmp_path, column="body") == ["one", "two", "three", "four", "five"]


def test_invalid_text_in_tables_is_replaced_and_counted(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl", b'{"text": "half \\ud800 pair"}\n{"text": "bad \xff byte"}\n{"text": "\\ud83d\\ude00"}\n')
    put(tmp_path / "b.csv", b"text\nbad \xfe byte\n")
    broken = pa.array([b"bad \xff byte"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": broken}), tmp_path / "c.parquet")
    corpus = read(tmp_path)
    bad = "bad \ufffd byte"
    assert corpus.documents == ["half \ufffd pair", bad, "\U0001f600", bad, bad]
    assert corpus.notes == (
        "4 byte sequences that are not UTF-8 were replaced by U+FFFD, in 3 files (a.jsonl, b.csv, c.parquet)",
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"body": "x", "id": 1}', r"a\.jsonl, line 1: no column 'text'; columns there: 'body', 'id'"),
        ("a.jsonl", '{"text": "x"}\n{"text": 5}', r"a\.jsonl, line 2: column 'text' must hold text, here it is 5"),
        ("a.jsonl", '{"text": "x"}\n{"text": ', r"a\.jsonl, line 2: not valid JSON"),
        ("a.jsonl", "[1, 2]", r"a\.jsonl, line 1: each line must be a JSON object, this is \[1, 2\]"),
        ("a.csv", "id,body\n1,x\n", r"a\.csv: no column 'text'; columns there: 'id', 'body'"),
        ("a.csv", 'text\n"never closed\n', r"a\.csv, line \d: not valid CSV"),
        ("a.csv", "id,text\n1,x\n2\n", r"a\.csv, line 3: 1 fields, but the header has 2"),
        ("a.parquet", "text, not parquet", r"a\.parquet: not a valid parquet file"),
        ("a.txt", "", r"a\.txt: no text$"),
        ("a.csv", "text\n", r"a\.csv: no text$"),
        ("a.txt", PNG, r"a\.txt: a binary file"),
        ("a.txt", "text".encode("utf-16"), r"a\.txt: text in UTF-16; convert it to UTF-8"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(put(tmp_path / name, content))


def test_bad_parquet_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column 'text'; columns there: 'id', 'body'"):
        read(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="column 'id' must hold text, it holds int64"):
        read(tmp_path, column="id")


def test_a_table_without_the_column_stops_no_folder_but_is_named(tmp_path: Path) -> None:
    put(tmp_path / "a.txt", "one")
    put(tmp_path / "b.jsonl", '{"body": "two"}\n')
    put(tmp_path / "c.csv", "body\nthree\n")
    reason = "no column 'text'; choose one with text_column (--text-column)"
    assert read(tmp_path).documents == ["one"]
    assert read(tmp_path).notes == (f"left out 2 files (b.jsonl, c.csv): {reason}",)
    with pytest.raises(DataError, match=r"b\.jsonl, line 1: no column 'text'.* text_column \(--text-column\)"):
        read(tmp_path, tmp_path / "b.jsonl")
    put(tmp_path / "b.jsonl", '{"text": "two"}\n{"body": "four"}\n')  # damaged rather than another table
    with pytest.raises(DataError, match=r"b\.jsonl, line 2: no column 'text'"):
        read(tmp_path)


def test_what_a_folder_has_beside_text_is_named_up_to_five_files(tmp_path: Path) -> None:
    put(tmp_path / "a.txt", "one")
    for number in range(7):
        put(tmp_path / f"{number}.png", PNG)
    put(tmp_path / "wide.txt", "text".encode("utf-16"))
    assert read(tmp_path).notes == (
        "left out 7 files (0.png, 1.png, 2.png, 3.png, 4.png, ...): "
        "a binary file, or text in an encoding other than UTF-8",
        "left out 1 file (wide.txt): text in UTF-16; convert it to UTF-8 first (iconv -f UTF-16 -t UTF-8)",
    )


@pytest.mark.parametrize("url", ["http://example.com/x.txt", "https://example.com", "s3://bucket/x"])
def test_addresses_are_not_read(url: str) -> None:
    with pytest.raises(DataError, match=f"^{url}: addresses are not read; download the text first"):
        texts(Path(url))


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_standard_input_is_read(tmp_path: Path, name: str) -> None:
    code = (
        "import sys; from crystalline_ray.data.corpus import read_corpus;"
        "from crystalline_ray.data.config import DataConfig;"
        "print(read_corpus(DataConfig(text=sys.argv[1])).documents)"
    )
    arguments = [sys.executable, "-c", code, name]
    done = subprocess.run(arguments, input=b"caf\xc3\xa9", capture_output=True, timeout=60, check=True)
    assert done.stdout.decode() == "['caf\u00e9']\n"


def test_a_run_must_find_its_text_again() -> None:
    with pytest.raises(DataError, match=r"text = standard input: .* save it to a file"):
        prepare(DataConfig(text=(Path("-"),)), seq_len=4, seed=1)


def test_texts_in_memory_are_documents_as_if_they_were_files(tmp_path: Path) -> None:
    put(tmp_path / "1.txt", "one")
    put(tmp_path / "2.txt", "two or more: \ufffd")
    corpus = text_corpus(["one", "", "two or more: \ud800"])
    assert corpus.documents == ["one", "two or more: \ufffd"]
    assert corpus.digest == read(tmp_path).digest
    assert text_corpus("one text").documents == ["one text"]
    for nothing in ([], [""], ""):
        with pytest.raises(DataError, match="no text"):
            text_corpus(nothing)
    with pytest.raises(DataError, match=r"texts\[1\] must be a str, it is a bytes"):
        text_corpus(["a", b"b"])  # type: ignore[list-item]


def test_missing_and_odd_paths(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: no such file or folder"):
        read(tmp_path / "absent")
    with pytest.raises(DataError, match="no files to read"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe: neither a file nor a folder"):
        read(tmp_path / "pipe")
    put(tmp_path / "only/a.bin", PNG)
    put(tmp_path / "only/b.bin", PNG)
    with pytest.raises(DataError, match=r"only: no text; left out 2 files \(a\.bin, b\.bin\): a binary file"):
        read(tmp_path / "only")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user can reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("locked", ["file", "folder"])
def test_no_permission(open_folder: Path, locked: str) -> None:
    path = put(open_folder / "sub/secret.txt", "secret")
    (path if locked == "file" else path.parent).chmod(0)
    nobody = 65534
    if os.geteuid() == 0:  # root may read anything, so look with the eyes of somebody else
        os.seteuid(nobody)
    try:
        with pytest.raises(DataError, match=r"sub(/secret\.txt)?: no permission to read it"):
            read(open_folder)
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        path.parent.chmod(0o755)


def test_progress_ends_with_all_files(tmp_path: Path) -> None:
    for number in range(40):
        put(tmp_path / f"{number}.txt", "x")
    reports = []
    read_corpus(DataConfig(text=(tmp_path,)), progress=lambda *report: reports.append(report))
    assert reports[0] == ("reading", 0, 40)
    assert reports[-1] == ("reading", 40, 40)
    assert len(reports) < 10


def test_standard_library_is_source_text_without_tests() -> None:
    files = standard_library()
    names = [file.name for file in files]
    assert names == sorted(names)
    assert {"argparse.py", "json/decoder.py", "asyncio/tasks.py"} <= set(names)
    assert len(names) > 300
    skipped = {"test", "tests", "site-packages", "dist-packages", "__pycache__", "idlelib"}
    assert not [name for name in names if skipped & set(name.split("/")) or not name.endswith(".py")]


def test_no_paths_mean_the_standard_library(tmp_path: Path) -> None:
    """In another Python whose library is one small folder, since reading the real one is slow."""
    put(tmp_path / "lib/a.py", "import b\n")
    put(tmp_path / "lib/test/c.py", "assert False\n")
    code = (
        "import sysconfig, sys; from crystalline_ray.data.corpus import read_corpus;"
        "from crystalline_ray.data.config import DataConfig;"
        f"sysconfig.get_path = lambda name: {str(tmp_path / 'lib')!r};"
        "print(read_corpus(DataConfig()).documents)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "['import b\\n']\n"
