"""docs/tour.py, the notebook: every cell runs, from the first to the last."""

import re
from pathlib import Path

import jupytext
import matplotlib
import pytest

TOUR = Path(__file__).parents[1] / "docs" / "tour.py"
SMALL = "settings = dict(filters=2, depth=1, batch_size=4, epochs=1, images=10, image_size=Size(16, 16))"


def small(source):
    found, count = re.subn(r"^settings = dict\(.*\)$", SMALL, source, flags=re.MULTILINE)
    assert count == 1
    return found


def test_every_cell_runs(tmp_path, monkeypatch, capsys):
    """As a small network, in this process."""
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "compare.py").touch()  # the notebook looks for the project's folder, and writes into it
    space = {"__name__": "tour"}
    monkeypatch.setattr("IPython.display.display", lambda *_, **__: type("Handle", (), {"update": lambda *_: None})())
    cells = jupytext.reads(small(TOUR.read_text(encoding="utf-8")), fmt="py:percent").cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    assert len(code) > 10 and len(cells) - len(code) > 7
    for source in code:
        exec(compile(source, str(TOUR), "exec"), space)
    assert "stock Keras" in capsys.readouterr().out and (tmp_path / "runs" / "tour" / "best.keras").exists()


@pytest.mark.slow
def test_the_notebook_as_it_is(tmp_path):
    """In a kernel of its own, as a reader runs it: 3 minutes."""
    import nbclient

    notebook = jupytext.read(TOUR)
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": TOUR.parent}}
    ).execute()
    printed = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    ours, stock = map(float, re.search(r"validation dice: lowlevel ([\d.]+), stock Keras ([\d.]+)", printed).groups())
    assert ours > 0.85 and stock > 0.8, printed
