"""Text from outside reaches terminal, table and JSON file as text."""

import csv
import io
import json

from common.output import write_text
from common.text import cell, printable, say

import pytest

NAMES = [
    "a.png",
    "café 猫.png",
    "\x1b[2J\x1b]0;title\x07",
    "two\nlines\r",
    "\u202egnp.exe",
    "\udcff\udc00",
    "\x00\x9b31m",
    "tab\t",
    "\u2028",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_what_is_said_is_one_visible_line(name, encoding):
    file = io.TextIOWrapper(io.BytesIO(), encoding)
    say(f"left out: {name}", file)
    line = file.buffer.getvalue().decode(encoding)
    assert line.endswith("\n") and line[:-1].isprintable() and line.startswith("left out: ")
    if name == NAMES[1] and encoding == "utf-8":
        assert name in line


@pytest.mark.parametrize("name", [*NAMES, "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://a")', ' =1"'])
def test_a_cell_is_no_formula(name):
    file = io.StringIO()
    csv.writer(file).writerow([cell(name), 1])
    ((text, _),) = csv.reader(io.StringIO(file.getvalue()))
    assert text[0] not in "=+-@\t\r" and text.isprintable() and text.removeprefix("'") == printable(name)


@pytest.mark.parametrize("name", NAMES)
def test_json_gives_the_name_back(tmp_path, name):
    write_text(tmp_path / "a.json", json.dumps({name: [name]}, ensure_ascii=False))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {name: [name]}
