"""docs/bptt.ipynb: it runs from beginning to end, and shows what is saved in it."""

import json
import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs/bptt.ipynb"
nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")


def shown(cell):
    """Return the text that a cell has put out, numbers with fewer digits: the last ones depend on the processor."""
    parts = [output.get("text") or output["data"]["text/plain"] for output in cell.get("outputs", [])]
    return re.sub(r"\d+ digits", "N digits", "".join("".join(part) for part in parts))


@pytest.mark.filterwarnings("default")  # the notebook's machinery is not ours to mend
def test_the_notebook_runs_and_shows_what_is_saved(monkeypatch):
    """No cell fails, each puts out what it did, and the figures of the small network are the saved ones."""
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    saved = json.loads(NOTEBOOK.read_text("utf-8"))
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    client.execute()  # raises where a cell does
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    before = [cell for cell in saved["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] for cell in before)
    assert [bool(shown(cell)) for cell in code] == [bool(shown(cell)) for cell in before]
    for now, then in zip(code[:5], before[:5], strict=True):
        assert shown(now) == shown(then)
    assert any("text/html" in output.get("data", {}) for cell in code for output in cell.outputs)
    assert not any(output.get("name") == "stderr" for cell in code for output in cell.outputs)
