"The house: what can be read off the files without running a notebook."
import ast
import json
import re
import shutil
import statistics
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from execute import NBS, notebooks

ROOT, FILES = NBS.parent, notebooks()
HANDWRITTEN = ["playground_parts", "editing_parts"]  # modules that no notebook makes: what 08's panel and 17's ways need besides
PROJECT = tomllib.loads((NBS / "pyproject.toml").read_text())


def cells(file, kind="code"): return [c for c in json.loads(file.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]
def source(cell): return "".join(cell["source"])
def module_name(file): return next(m[1] for c in cells(file) if (m := re.match(r"#\| default_exp (\w+)", source(c))))


def tracked():
    if not (ROOT / ".git").exists(): pytest.skip("not a git checkout")
    return subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")[:-1]


def test_visible_top_level():
    assert {f.split("/")[0] for f in tracked() if not f.startswith(".")} == {"nbs", "data", "environment.yml", "README.md", "LICENSE"}


def test_tracked_tree_is_small():
    assert sum((ROOT / f).stat().st_size for f in tracked()) < 65_000_000  # as design.md has it


def test_a_pipeline_that_draws_its_own_noise_does_so_in_float32():
    "In float16 PyTorch draws other numbers from one seed (in 2.11, not in 2.13; diffusers issue 11056), and ours are always float32's."
    found = []
    for file in FILES:
        made = ""
        for text in map(source, cells(file)):
            if re.search(r"^pipe = ", text, flags=re.M): made = text
            if re.search(r"\bpipe\([^)]*generator=", text):
                found.append(file.stem)
                assert "exact" in made or "dtype" not in made and "models." not in made, (file.stem, text)
    assert {"00_sampling_loop", "02_image_to_image", "05_unet"} <= set(found)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_committed_executed_in_order(file):
    code = [c for c in cells(file) if source(c).strip()]
    assert [c["execution_count"] for c in code] == list(range(1, len(code) + 1))
    outputs = [o for c in code for o in c["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert any({"image/png", "image/jpeg"} & o.get("data", {}).keys() for o in outputs)
    assert json.loads(file.read_text(encoding="utf-8"))["metadata"]["kernelspec"]["name"] == "python3"
    assert file.stat().st_size < 2**20


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_code_fits_the_window_and_cells_are_small(file):
    cut = [[line for line in source(c).splitlines() if line.strip() and not line.startswith("#|")] for c in cells(file)]
    assert [line for lines in cut for line in lines if len(line) > 108] == []
    assert statistics.median(len(lines) for lines in cut if lines) <= 6
    assert [lines[0] for lines in map(str.splitlines, map(source, cells(file))) if len(lines) > 25] == []


def trees(file): return [ast.parse(source(c)) for c in cells(file)]
def nodes(file, kind): return [n for tree in trees(file) for n in ast.walk(tree) if isinstance(n, kind)]
def chain_imports(file): return [(n.module, a.name) for n in nodes(file, ast.ImportFrom) if n.module.startswith("deepdive.") for a in n.names]


def defined(name):
    "What the notebook of this module exports, by its own definitions."
    text = (NBS / "deepdive" / f"{name}.py").read_text(encoding="utf-8")
    tops = [n for n in ast.parse(text).body if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.Assign))]
    return {n.name if hasattr(n, "name") else t.id for n in tops for t in getattr(n, "targets", [n]) if hasattr(t, "id") or hasattr(n, "name")}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_each_name_is_imported_from_where_it_is_defined_and_used(file):
    earlier = [*HANDWRITTEN, *(module_name(f) for f in FILES[:FILES.index(file)])]
    if file.stem == "08_playground": earlier += ["playground"]  # its first cell is the panel, ready-made
    assert [(m, n) for m, n in chain_imports(file) if m.removeprefix("deepdive.") not in earlier] == []
    assert [(m, n) for m, n in chain_imports(file) if n not in defined(m.removeprefix("deepdive."))] == []
    bound = [(a.asname or a.name).split(".")[0] for n in nodes(file, (ast.Import, ast.ImportFrom)) for a in n.names]
    used = {n.id for n in nodes(file, ast.Name)}
    assert [name for name in bound if name not in used] == []
    assert sorted(n for n, k in Counter(bound).items() if k > 1) == []


@pytest.mark.parametrize("before, file", list(zip(FILES, FILES[1:])), ids=lambda f: f.stem)
def test_each_notebook_uses_something_of_the_one_before(before, file):
    assert f"deepdive.{module_name(before)}" in {m for m, _ in chain_imports(file)}


@pytest.mark.parametrize("name", [*map(module_name, FILES), *HANDWRITTEN])
def test_no_module_is_long(name):
    text = (NBS / "deepdive" / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_a_picture_comes_within_the_first_dozen_lines_of_code(file):
    lines = 0
    for cell, tree in zip(cells(file), trees(file)):
        if all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in tree.body): continue
        lines += len([line for line in source(cell).splitlines() if line.strip() and not line.startswith("#|")])
        if any({"image/png", "image/jpeg"} & o.get("data", {}).keys() for o in cell["outputs"]): break
    assert lines <= 12


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_module_can_be_imported_alone(file):
    done = subprocess.run([sys.executable, "-c", f"import deepdive.{module_name(file)}"], cwd=NBS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_exported_modules_are_fresh(tmp_path):
    copy = tmp_path / "nbs"
    shutil.copytree(NBS, copy, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__", ".*"))
    for old in (copy / "deepdive").glob("*.py"):
        if old.stem not in ("__init__", *HANDWRITTEN): old.unlink()
    subprocess.run([Path(sys.executable).parent / "nbdev-export"], cwd=copy, check=True, capture_output=True)
    names = sorted(p.name for p in (NBS / "deepdive").glob("*.py"))
    assert names == sorted(p.name for p in (copy / "deepdive").glob("*.py"))
    for name in names: assert (copy / "deepdive" / name).read_text(encoding="utf-8") == (NBS / "deepdive" / name).read_text(encoding="utf-8"), name
    assert tomllib.loads((copy / "pyproject.toml").read_text()) == PROJECT


def test_environment_and_pyproject_agree():
    listed = re.findall(r'^    - "(.+)"$', (ROOT / "environment.yml").read_text(), flags=re.M)
    assert listed == PROJECT["project"]["dependencies"]
    assert f"python{PROJECT['project']['requires-python']}" in (ROOT / "environment.yml").read_text()


@pytest.mark.parametrize("package", PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["dev"])
def test_every_package_is_bounded_on_both_sides(package): assert ">=" in package and "<" in package


def test_ci_runs_the_readmes_command():
    commands = re.findall(r"^    (pip install .* && pytest nbs)$", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.M)
    assert commands == ['pip install -e "nbs[dev]" && pytest nbs']


def test_readme_lists_every_notebook():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [f.stem for f in FILES if f"nbs/{f.name}" not in readme] == []


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *ROOT.glob("data/**/*.md")]:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if "://" not in link: assert (page.parent / link).exists(), f"{page}: {link}"
    for file in FILES:
        for link in re.findall(r"\]\(([^)#]+)\)", "".join(source(c) for c in cells(file, "markdown"))):
            if "://" not in link: assert (NBS / link).exists(), f"{file}: {link}"


def test_no_registry_or_machine_path_is_named():
    words = [b"regis" + b"try.npmjs", b"py" + b"pi.org", b"files.python" + b"hosted", b"/wo" + b"rk/", b"/ro" + b"ot/"]
    for f in tracked():
        if not f.endswith((".webp", ".safetensors")):
            data = (ROOT / f).read_bytes()
            assert not [w for w in words if w in data], f


def test_ruff():
    assert subprocess.run([sys.executable, "-m", "ruff", "check", NBS, ROOT / "data", "--config", NBS / "pyproject.toml"]).returncode == 0


def test_execute_names_an_unknown_notebook():
    with pytest.raises(ValueError, match="no notebook begins with"): notebooks(("99",))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_exercises_print_not_yet_and_have_a_folded_answer(file):
    checks = [c for c in cells(file) if re.search(r"^check_answer\(", source(c), flags=re.M)]
    assert checks and all("not yet" in json.dumps(c["outputs"]) for c in checks)
    assert "<details><summary>" in "".join(source(c) for c in cells(file, "markdown"))


def test_lecture_map_points_to_headings_that_exist():
    def lines(file): return [line for c in cells(file, "markdown") for line in source(c).splitlines()]
    headings = {f.stem[:2]: {line.lstrip("# ").replace("`", "") for line in lines(f) if line.startswith("#")} for f in FILES}
    places = re.findall(r"`(\d\d): ([^`]+)`", (NBS / "LECTURE.md").read_text(encoding="utf-8"))
    assert len(places) > 40 and [p for p in places if p[1] not in headings[p[0]]] == []
