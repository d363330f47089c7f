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

from crystalline_ray.data.corpus import read_corpus
from crystalline_ray.data.files import standard_library
from crystalline_ray.data.readers import is_binary
from crystalline_ray.errors import DataError

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1"


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def texts(*paths: Path, column: str = "text") -> list[str]:
    return [document.text for document in read_corpus(paths, text_column=column).documents]


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
    corpus = read_corpus([tmp_path])
    assert [(d.name, d.text) for d in corpus.documents] == [
        ("a.txt", "a"),
        ("b.md", "# b\r\n"),
        ("deep/d.rst", "d"),
        ("deep/er/c.py", "c = 1\n"),
        ("deep/no_suffix", "e"),
    ]
    assert (corpus.skipped_binary, corpus.skipped_empty, corpus.replaced_utf8) == (1, 1, 0)
    assert corpus.num_bytes == 1 + 5 + 1 + 6 + 1


def test_the_order_of_paths_and_the_place_of_a_folder_do_not_matter(tmp_path: Path) -> None:
    for folder in ("here", "elsewhere/copy"):
        put(tmp_path / folder / "x/one.txt", "one")
        put(tmp_path / folder / "two.txt", "two")
    put(tmp_path / "m.txt", "three")
    here, there, single = tmp_path / "here", tmp_path / "elsewhere/copy", tmp_path / "m.txt"
    assert texts(here, single) == texts(single, here) == ["three", "two", "one"]
    assert read_corpus([here, single]).digest == read_corpus([single, there]).digest
    put(there / "two.txt", "changed")
    assert read_corpus([here]).digest != read_corpus([there]).digest


def test_digest_knows_where_a_document_ends(tmp_path: Path) -> None:
    one = [put(tmp_path / "1/a.txt", "ab"), put(tmp_path / "1/b.txt", "c")]
    other = [put(tmp_path / "2/a.txt", "a"), put(tmp_path / "2/b.txt", "bc")]
    assert read_corpus(one).digest != read_corpus(other).digest


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
    corpus = read_corpus([put(tmp_path / "x.txt", raw)])
    assert corpus.documents[0].text == text
    assert corpus.replaced_utf8 == replaced


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
    document = read_corpus([tmp_path / "rows.jsonl"]).documents[1]
    assert document.name == "rows.jsonl, row 2"


def test_other_column_and_empty_rows(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl", '{"body": "one"}\n{"body": null}\n{"body": ""}\n{"body": "two"}\n')
    put(tmp_path / "b.csv", "n,body\n1,three\n2,\n\n3,four\n")
    pq.write_table(pa.table({"body": ["five", None, ""]}), tmp_path / "c.parquet")
    corpus = read_corpus([tmp_path], text_column="body")
    assert [document.text for document in corpus.documents] == ["one", "two", "three", "four", "five"]
    assert corpus.skipped_empty == 2 + 1 + 2


def test_invalid_text_in_tables_is_replaced_and_counted(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl", b'{"text": "half \\ud800 pair"}\n{"text": "bad \xff byte"}\n{"text": "\\ud83d\\ude00"}\n')
    put(tmp_path / "b.csv", b"text\nbad \xfe byte\n")
    broken = pa.array([b"bad \xff byte"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": broken}), tmp_path / "c.parquet")
    corpus = read_corpus([tmp_path])
    bad = "bad \ufffd byte"
    assert [document.text for document in corpus.documents] == ["half \ufffd pair", bad, "\U0001f600", bad, bad]
    assert corpus.replaced_utf8 == 4


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
        ("a.txt", "", r"a\.txt: no text; skipped 1 empty"),
        ("a.csv", "text\n", r"a\.csv: no text; skipped 1 empty"),
        ("a.txt", PNG, r"a\.txt: a binary file"),
        ("a.txt", "text".encode("utf-16"), r"a\.txt: text in UTF-16; convert it to UTF-8"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_corpus([put(tmp_path / name, content)])


def test_bad_parquet_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column 'text'; columns there: 'id', 'body'"):
        read_corpus([tmp_path])
    with pytest.raises(DataError, match="column 'id' must hold text, it holds int64"):
        read_corpus([tmp_path], text_column="id")


def test_missing_and_odd_paths(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: no such file or folder"):
        read_corpus([tmp_path / "absent"])
    with pytest.raises(DataError, match="no files to read"):
        read_corpus([tmp_path])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe: neither a file nor a folder"):
        read_corpus([tmp_path / "pipe"])
    put(tmp_path / "only/a.bin", PNG)
    put(tmp_path / "only/b.bin", PNG)
    with pytest.raises(DataError, match=r"only: no text, only 2 binary file\(s\)"):
        read_corpus([tmp_path / "only"])


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
            read_corpus([open_folder])
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        path.parent.chmod(0o755)


def test_progress_ends_with_all_files(tmp_path: Path) -> None:
    for number in range(40):
        put(tmp_path / f"{number}.txt", "x")
    reports = []
    read_corpus([tmp_path], progress=lambda *report: reports.append(report))
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
        f"sysconfig.get_path = lambda name: {str(tmp_path / 'lib')!r};"
        "print([d.name for d in read_corpus([]).documents])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "['a.py']\n"
