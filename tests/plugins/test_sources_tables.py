"""Parquet, CSV and WARC: every row is a document, a counted bad row, or an error that says where."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
import tracemalloc
import zlib

import pyarrow
import pyarrow.parquet
import pytest

from recipe_plugins.sources.extraction import Extractor
from recipe_plugins.sources.warc import html
from recipe_runner import BadRow, RecipeError
from recipe_runner.testing import make
from recipe_runner.testing.local import slot


def rows(use, path, **config):
    source = slot("source", {"use": use, "path": str(path), **config}).build()
    return [row for piece in source.pieces() for row in source.read(piece)]


def curate(use, path, folder, **more):
    sources = {"mine": {"use": use, "path": str(path), **more}}
    return make("curation", {"sources": sources, "heldout": 0}, folder)


# ── parquet ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def parquet(tmp_path):
    table = pyarrow.table({"body": [f"text {n}" for n in range(25)], "n": list(range(25))})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    return tmp_path / "a.parquet"


def test_parquet_gives_every_row_once_group_by_group(parquet, tmp_path):
    found = rows("parquet", parquet)
    assert [row["n"] for row in found] == list(range(25))
    assert rows("parquet", parquet, columns=["body"])[24] == {"body": "text 24"}
    corpus = curate("parquet", parquet, tmp_path / "out", format={"use": "text", "fields": {"text": "body"}})
    assert {record.text for record in corpus.read("mine")} == {f"text {n}" for n in range(25)}


def test_parquet_without_the_column_is_an_error_that_names_it(parquet, tmp_path):
    with pytest.raises(RecipeError, match=r"no column 'text'") as caught:
        rows("parquet", parquet, columns=["text"])
    assert "body, n" in caught.value.next
    with pytest.raises(RecipeError, match=r"a.parquet: row 1: no field 'text'; it has 'body', 'n'"):
        curate("parquet", parquet, tmp_path / "out", format="text")


def test_what_is_no_parquet_is_an_error(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(RecipeError, match="no readable Parquet"):
        rows("parquet", tmp_path)


# ── csv ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_parquet_with_a_damaged_page_is_an_error_that_names_the_file(parquet):
    data = bytearray(parquet.read_bytes())
    data[100:140] = bytes(byte ^ 0xFF for byte in data[100:140])
    parquet.write_bytes(data)
    with pytest.raises(RecipeError, match="is no readable Parquet file"):
        rows("parquet", parquet)


def test_csv_holds_line_ends_quotes_nul_and_long_values(tmp_path):
    long = "x" * 300_000
    text = f'\ufeffid,text\r\n1,"two\nlines, ""quoted"""\r\n\r\n2,nul\0byte\r\n3,{long}\r\n'
    (tmp_path / "a.csv").write_bytes(text.encode())
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"id,text\n4,packed\n"))
    assert [row["text"] for row in rows("csv", tmp_path)] == ['two\nlines, "quoted"', "nul\0byte", long, "packed"]


def test_csv_with_two_columns_of_one_name_is_an_error(tmp_path):
    (tmp_path / "a.csv").write_text("text,n,text\none,1,two\n")
    with pytest.raises(RecipeError, match=r"a\.csv has two columns 'text'"):
        rows("csv", tmp_path / "a.csv")


@pytest.mark.parametrize(("mark", "said"), [("\t", r"\t"), (";", ";")])
def test_csv_that_another_mark_parts_is_an_error_that_says_so(tmp_path, mark, said):
    (tmp_path / "a.tsv").write_text(f"id{mark}body\n1{mark}one, two\n")
    with pytest.raises(RecipeError, match=r"a\.tsv has one column, 'id.{1,2}body', as commas part it") as caught:
        rows("csv", tmp_path)
    assert caught.value.next == f'delimiter: "{said}"'
    for given in (mark, said):  # without double quotes YAML leaves `\\t` as two characters
        assert rows("csv", tmp_path, delimiter=given) == [{"id": "1", "body": "one, two"}]


def test_csv_rows_that_do_not_fit_are_bad_and_an_open_quote_is_an_error(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"id,text\n1,a,b\n2,caf\xe9\n3,fine\n")
    assert rows("csv", tmp_path) == [
        BadRow(f"{tmp_path}/a.csv:2", "3 values under 2 columns"), BadRow(f"{tmp_path}/a.csv:3", "not UTF-8"),
        {"id": "3", "text": "fine"},
    ]  # fmt: skip
    (tmp_path / "a.csv").write_bytes(b'id,text\n1,"open\n')
    with pytest.raises(RecipeError, match=r"a.csv:2: unexpected end of data"):
        rows("csv", tmp_path)
    (tmp_path / "a.csv").write_bytes(b"")
    with pytest.raises(RecipeError, match="is empty"):
        rows("csv", tmp_path)


# ── warc ─────────────────────────────────────────────────────────────────────────────────────────────────────────

SAID = b"A page says something worth reading here. " * 20
PAGE = b"<html><body><article><p>" + SAID + b"</p></article></body></html>"


def record(kind, number, content):
    head = [f"WARC-Type: {kind}", f"WARC-Record-ID: <urn:{number}>", f"WARC-Target-URI: http://a.b/{number}"]
    lines = ["WARC/1.0", *head, f"Content-Length: {len(content)}", "", ""]
    return "\r\n".join(lines).encode() + content + b"\r\n\r\n"


def response(body, status=b"200 OK", more=b""):
    return b"HTTP/1.1 " + status + b"\r\nContent-Type: text/html\r\n" + more + b"\r\n" + body


CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(PAGE), PAGE)
ARCHIVE = [
    record("warcinfo", 0, b"software: x"),
    record("response", 1, response(PAGE)),
    record("request", 2, b"GET /"),
    record("response", 3, response(b"gone", b"404 Not Found")),
    record("conversion", 4, "Schon Text: ä".encode()),
    record("response", 5, response(CHUNKED, more=b"Transfer-Encoding: chunked\r\n")),
    record("response", 6, response(gzip.compress(PAGE), more=b"Content-Encoding: gzip\r\n")),
]


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_warc_gives_pages_and_says_where_they_come_from(tmp_path, name):
    data = b"".join(gzip.compress(part) for part in ARCHIVE) if name.endswith("gz") else b"".join(ARCHIVE)
    (tmp_path / name).write_bytes(data)
    found = rows("warc", tmp_path, extract="none")
    assert [(row["id"], row["meta"]["url"]) for row in found] == \
        [(f"urn:{n}", f"http://a.b/{n}") for n in (1, 3, 4, 5, 6)]  # fmt: skip
    assert [row["text"] for row in found] == [PAGE.decode(), "", "Schon Text: ä", PAGE.decode(), PAGE.decode()]


def test_warc_that_is_cut_or_junk_is_an_error_and_a_giant_page_a_bad_row(tmp_path):
    whole = b"".join(ARCHIVE)
    (tmp_path / "a.warc").write_bytes(whole[:-200])
    with pytest.raises(RecipeError, match="ends inside the record"):
        rows("warc", tmp_path, extract="none")
    (tmp_path / "a.warc").write_bytes(ARCHIVE[0] + bytes(range(256)) * 1000)
    with pytest.raises(RecipeError, match=f"a.warc@{len(ARCHIVE[0])}: no WARC record begins here"):
        rows("warc", tmp_path, extract="none")
    (tmp_path / "a.warc").write_bytes(record("response", 1, bytes(3_000_000)) + ARCHIVE[4])
    giant, text = rows("warc", tmp_path, extract="none", max_page="1MB")
    assert (giant.reason, giant.where[-8:]) == ("longer than max_page, 1,000,000 bytes", "a.warc@0")
    assert text["id"] == "urn:4"


def test_a_page_is_unpacked_as_far_as_max_page(tmp_path):
    for content in (gzip.compress(bytes(80_000_000)), gzip.compress(PAGE)[:-9], zlib.compress(bytes(2_000_000))):
        packed = response(content, more=b"Content-Encoding: gzip\r\n")
        (tmp_path / "a.warc").write_bytes(record("response", 1, packed) + ARCHIVE[4])
        tracemalloc.start()
        first, text = rows("warc", tmp_path, extract="none", max_page="1MB")
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < 20_000_000
        assert text["id"] == "urn:4"
        whole = len(content) < 1_000
        assert first["text"] == "" if whole else first.reason == "longer than max_page, 1,000,000 bytes"


@pytest.mark.parametrize("wbits", [zlib.MAX_WBITS, -zlib.MAX_WBITS])
def test_deflate_is_with_a_head_or_without(wbits):
    packer = zlib.compressobj(wbits=wbits)
    packed = packer.compress(PAGE) + packer.flush()
    assert html(response(packed, more=b"Content-Encoding: deflate\r\n"), 10_000) == PAGE


def test_a_header_that_no_longer_holds_of_the_body_does_no_harm():
    assert html(response(PAGE, more=b"Content-Encoding: gzip\r\n"), 10_000) == PAGE
    assert html(response(PAGE, more=b"Transfer-Encoding: chunked\r\n"), 10_000) == PAGE


def test_an_extraction_that_hangs_or_dies_is_a_bad_row_and_the_next_goes_on(tmp_path, monkeypatch):
    (tmp_path / "trafilatura.py").write_text(
        "import os, re\ndef extract(page, **options):\n"
        "    if page == b'hang': re.match(r'(a+)+b', 'a' * 60)\n"
        "    if page == b'die': os._exit(3)\n"
        "    return page.decode() if page != b'none' else None\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with Extractor(0.5) as extractor:
        said = [extractor.text(page) for page in (b"one", b"hang", b"two", b"die", b"none", b"three")]
    assert said == [
        "one", BadRow("", "extraction took longer than 0.5 s"), "two", BadRow("", "extraction ended with status 3"),
        "", "three",
    ]  # fmt: skip


@pytest.mark.skipif(importlib.util.find_spec("trafilatura") is not None, reason="it is installed here")
def test_without_the_extra_the_error_names_it(tmp_path):
    (tmp_path / "a.warc").write_bytes(b"".join(ARCHIVE))
    with pytest.raises(RecipeError) as caught:
        rows("warc", tmp_path)
    assert "recipe-runner[html]" in caught.value.next


def test_trafilatura_s_text_is_the_page_s(tmp_path):
    pytest.importorskip("trafilatura")
    (tmp_path / "a.warc").write_bytes(b"".join(ARCHIVE))
    corpus = curate("warc", tmp_path, tmp_path / "out")
    said = {record.id: record.text for record in corpus.read("mine")}
    assert said["urn:1"].startswith("A page says something")
    assert json.loads((corpus.path / "ledger.json").read_text())["domains"]["mine"]["read"]["rows"] == 5
