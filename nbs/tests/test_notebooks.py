"""Every notebook runs top to bottom in a kernel of its own; its exercises say `not yet` to the stub and `right` to the folded answer,
which can be run twice."""
import re

import nbformat
import pytest

from execute import execute, notebooks


def with_answers(file, folder):
    "Write the notebook with each folded answer run and checked, twice, right after its stub; returns the new file and how many there were."
    nb = nbformat.read(file, as_version=4)
    answers = [a for c in nb.cells if c.cell_type == "markdown" for a in re.findall(r"<details>.*?```python\n(.*?)```", c.source, flags=re.S)]
    for answer in answers:
        name = re.match(r"def (\w+)\(", answer)[1]
        at = next(i for i, c in enumerate(nb.cells) if c.cell_type == "code" and "Your lines here" in c.source and f"def {name}(" in c.source)
        check = re.search(r"^check_answer\(.*", nb.cells[at].source, flags=re.M | re.S)[0]
        nb.cells[at + 1:at + 1] = [nbformat.v4.new_code_cell(answer + check) for _ in range(2)]
    out = folder / file.name
    nbformat.write(nb, out)
    return out, len(answers)


@pytest.mark.parametrize("file", notebooks(), ids=lambda f: f.stem)
def test_notebook(file, tmp_path):
    copy, exercises = with_answers(file, tmp_path)
    nb = execute(copy)
    outputs = [o for c in nb.cells if c.cell_type == "code" for o in c.outputs]
    assert not [o for o in outputs if o.get("name") == "stderr"]
    said = [o.text[:5] for c in nb.cells if c.cell_type == "code" and re.search(r"^check_answer\(", c.source, flags=re.M)
            for o in c.outputs if o.output_type == "stream"]
    assert exercises and said == ["not y", "right", "right"] * exercises
