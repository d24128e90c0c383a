"""Notebook 08's panel, and 17's, in a real browser: Chromium, by Playwright, on JupyterLab and the classic Notebook. Skipped
where there is no Chromium (`apt install chromium`).

`DEEPDIVE_SCREENSHOTS=folder` keeps screenshots at widths of 1400 and 700 pixels."""
import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepdive.autoencoder import pil_to_latents
from deepdive.editing_parts import edits
from deepdive.playground_parts import Settings, parameters, png
from deepdive.sampling_loop import data_folder, latents_to_pil
from execute import NBS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if not CHROMIUM: pytest.skip("there is no Chromium here: apt install chromium", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api")

PANEL = """from deepdive.sampling_loop import load_models
from deepdive.playground import leaf_through, playground
models = load_models()
def fails(images): raise ValueError("this push has no number to give")
panel = playground(models, pushes={"fails": fails}, num_inference_steps=6)
panel"""
CELLS = [PANEL, "print(6 * 7)", "leaf_through([image for image, _ in panel.kept] * 2, ['one', 'two'])"]
EDITING = """from functools import partial
from deepdive.editing import edit, inpaint, load_editor
from deepdive.editing_parts import EditingPanel, edits
from deepdive.sampling_loop import load_models
models = load_models()
panel = EditingPanel(partial(edit, load_editor(models)), partial(inpaint, models), edits(1)[0].image)
panel"""
NO_NEWS = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}


@contextmanager
def served(home, app, cells=CELLS):
    "The address of a server of `app`, whose folder, settings and home are the temporary `home`, with a notebook panel.ipynb of `cells`."
    cells = [dict(cell_type="code", id=f"cell{i}", metadata={}, source=s, outputs=[], execution_count=None) for i, s in enumerate(cells)]
    kernel = dict(kernelspec=dict(name="python3", display_name="Python 3", language="python"), language_info=dict(name="python"))
    (home / "panel.ipynb").write_text(json.dumps(dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=5)))
    (home / "CONFIG" / "labconfig").mkdir(parents=True)
    (home / "CONFIG" / "labconfig" / "page_config.json").write_text(json.dumps(NO_NEWS))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {**os.environ, **{f"JUPYTER_{kind}_DIR": str(home / kind) for kind in ("CONFIG", "RUNTIME", "DATA")}, "HOME": str(home),
           "IPYTHONDIR": str(home / "ipython"), "PYTHONPATH": str(NBS), "DEEPDIVE_DATA": str(data_folder())}
    address, log = f"http://127.0.0.1:{port}", open(home / "lab.log", "w")
    server = subprocess.Popen(
        [sys.executable, "-m", app, "--no-browser", "--allow-root", f"--ServerApp.root_dir={home}", f"--port={port}", "--ip=127.0.0.1",
         "--IdentityProvider.token=", "--ServerApp.port_retries=0"], cwd=home, env=env, stdout=log, stderr=log)
    try:
        for _ in range(240):
            try: urllib.request.urlopen(f"{address}/api", timeout=5).close()
            except OSError: time.sleep(.5)
            else: break
        else: raise RuntimeError((home / "lab.log").read_text()[-2000:])
        yield address
    finally:
        server.terminate()
        server.wait(30)
        log.close()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def shown(browser, address):
    "The page there; `faults` collects what the browser's console calls an error."
    page = browser.new_page(viewport=dict(width=1400, height=1500))
    page.faults = []
    page.on("console", lambda m: m.type == "error" and page.faults.append(m.text))
    page.on("pageerror", lambda e: page.faults.append(str(e)))
    page.set_default_timeout(240_000)
    page.goto(address)
    return page


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    "The notebook in JupyterLab, with its panel shown."
    with served(tmp_path_factory.mktemp("lab"), "jupyterlab") as address:
        page = shown(browser, f"{address}/lab/tree/panel.ipynb?reset")
        page.get_by_text("| Idle").wait_for()
        run_cell(page, 0)
        page.get_by_role("button", name="Make").wait_for()
        finished(page)
        yield page


def run_cell(page, n):
    page.locator(".jp-Notebook .jp-CodeCell").nth(n).locator(".cm-content").click()
    page.keyboard.press("Control+Enter")


def panel(page): return page.locator(".jp-Notebook .jp-CodeCell").first.locator(".jp-OutputArea")
def button(page, name): return panel(page).get_by_role("button", name=name, exact=True)


def finished(page, prompt=None, but=None):
    "Wait for the finished picture, of `prompt`, and with other bytes than `but`; returns its bytes."
    panel(page).get_by_text("done", exact=True).wait_for()
    for _ in range(1200):
        shown = panel(page).locator("figure img").first
        if panel(page).get_by_text("done", exact=True).count() and shown.count():
            data, alt = shown.get_attribute("src"), shown.get_attribute("alt")
            if data != but and prompt in (None, alt) and "predicted" not in alt and "UNet" not in alt: return data
        page.wait_for_timeout(200)
    raise AssertionError("no picture")


def number(page, name, value):
    box = panel(page).get_by_role("spinbutton", name=name, exact=True)
    box.fill(str(value))
    box.press("Enter")


def settings(page): return panel(page).get_by_role("textbox", name="Our code").input_value()


def upload(page, name, content):
    with page.expect_file_chooser() as chooser: panel(page).get_by_role("button", name="Upload a picture").click()
    chooser.value.set_files(dict(name=name, mimeType="", buffer=content))


def rotated():
    "A JPEG, twice as wide as high, that its EXIF data turn upright."
    file, exif = io.BytesIO(), Image.Exif()
    exif[274] = 6
    Image.effect_noise((96, 48), 80).convert("RGB").save(file, "jpeg", exif=exif)
    return file.getvalue()


def test_every_control_has_a_label_and_the_tab_key_goes_in_reading_order(page):
    asked = ["Prompt", "Negative prompt", "Second prompt", "Its share", "Guidance scale", "Steps", "Seed", "Sampler", "Strength", "Push",
             "Push scale", "Push from", "Down", "Values down", "Across", "Values across", "Our code", "diffusers"]
    for name in asked:
        assert sum(panel(page).get_by_role(role, name=name, exact=True).count() for role in ("textbox", "spinbutton", "combobox")) == 1, name
    assert all(i.get_attribute("alt") for i in panel(page).locator("img").all())
    places = [panel(page).get_by_label(name, exact=True).first.bounding_box() for name in asked[:12]]
    assert [p["y"] for p in places] == sorted(p["y"] for p in places)


def test_type_and_move(page):
    before = finished(page)
    panel(page).get_by_role("textbox", name="Prompt", exact=True).fill("a 3d render of an owl")
    page.keyboard.press("Enter")
    owl = finished(page, "a 3d render of an owl", before)
    handle = panel(page).locator(".noUi-handle").nth(1)  # the guidance scale's
    handle.focus()
    handle.press("ArrowRight")
    moved = finished(page, but=owl)
    assert "guidance_scale=8.0" in settings(page) and "an owl" in settings(page) and moved != owl


def test_stop_and_change_while_it_runs(page):
    before = finished(page)
    number(page, "Steps", 150)
    panel(page).get_by_text("predicted end").first.wait_for()  # the picture forms
    run_cell(page, 1)  # the kernel's other cells are free
    page.get_by_text("42", exact=True).wait_for()
    assert not panel(page).get_by_text("done", exact=True).count()
    button(page, "Stop").click()
    panel(page).get_by_text("stopped", exact=True).wait_for()
    number(page, "Steps", 149)
    panel(page).get_by_text("predicted end").first.wait_for()
    number(page, "Steps", 6)  # starts anew
    number(page, "Seed", 5)
    after = finished(page, but=before)
    assert "num_inference_steps=6" in settings(page) and "seed=5" in settings(page) and after != before


def test_errors_are_shown_in_one_sentence(page):
    before = finished(page)
    panel(page).get_by_role("combobox", name="Push", exact=True).select_option("fails")
    panel(page).get_by_text("Error: this push has no number to give").wait_for()
    panel(page).get_by_role("combobox", name="Push", exact=True).select_option("none")
    finished(page)
    panel(page).get_by_text("Error").wait_for(state="hidden")
    upload(page, "notes.png", b"no picture at all")
    panel(page).get_by_text("Error: 'notes.png' is no picture that can be read").wait_for()
    assert finished(page) == before


def test_upload_keep_and_settings_that_come_back(page):
    before = finished(page)
    upload(page, "turned.jpg", rotated())
    picture = finished(page, but=before)
    size = panel(page).locator("figure img").first.evaluate("i => [i.naturalWidth, i.naturalHeight]")
    assert size == [48, 96] and "Image.open('turned.jpg')" in settings(page) and panel(page).get_by_alt_text("starts from turned.jpg").count()
    button(page, "Keep").click()
    button(page, "Load settings 1").wait_for()
    button(page, "Without picture").click()
    plain = finished(page, but=picture)
    s = Settings(prompt="a cartoon of a castle", guidance_scale=3., num_inference_steps=4, seed=9, sampler="Euler a")
    blank = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    class Named: source = "another"
    upload(page, "kept.png", png(blank, parameters(Named, s, blank)))
    castle = finished(page, "a cartoon of a castle", plain)
    code = settings(page)
    assert all(w in code for w in ("castle", "guidance_scale=3.0", "num_inference_steps=4", "seed=9", "EulerAncestral"))
    button(page, "Load settings 1").click()
    assert finished(page, "a 3d render of an owl", castle) == picture


def test_compare_and_the_player(page):
    panel(page).get_by_role("combobox", name="Down", exact=True).select_option("Seed")
    panel(page).get_by_role("textbox", name="Values across", exact=True).fill("2, 9")
    button(page, "Compare").click()
    panel(page).get_by_alt_text("seed 2 guidance_scale 9.0").wait_for()
    assert panel(page).locator("table img").count() == 4 and panel(page).locator("table th[scope]").count() == 4
    run_cell(page, 2)
    page.get_by_text("one", exact=True).wait_for()
    page.locator(".jp-CodeCell").nth(2).locator(".noUi-handle").press("ArrowRight")
    page.get_by_text("two", exact=True).wait_for()


def test_no_error_in_the_console_and_no_part_beyond_the_edge(page):
    folder = os.environ.get("DEEPDIVE_SCREENSHOTS")
    for width in 1400, 700:
        page.set_viewport_size(dict(width=width, height=2200))
        panel(page).get_by_role("textbox", name="Prompt", exact=True).scroll_into_view_if_needed()
        page.wait_for_timeout(1500)
        if folder: page.screenshot(path=str(Path(folder) / f"panel_{width}.png"))
        area = panel(page).bounding_box()
        for box in (b.bounding_box() for b in panel(page).locator("input:visible, select, textarea, button, figure").all()):
            assert box is None or box["x"] + box["width"] <= area["x"] + area["width"] + 1
    assert page.faults == []


def test_it_works_in_the_classic_notebook(browser, tmp_path):
    pytest.importorskip("notebook")
    with served(tmp_path, "notebook") as address:
        page = shown(browser, f"{address}/notebooks/panel.ipynb")
        page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(state="attached")
        page.faults.clear()  # Notebook's own, while it starts
        for _ in range(30):  # until the kernel listens
            run_cell(page, 0)
            page.wait_for_timeout(2000)
            if page.locator(".jp-InputPrompt").first.inner_text() != "[ ]:": break
        button(page, "Make").wait_for()
        before = finished(page)
        number(page, "Seed", 5)
        after = finished(page, but=before)
        assert "seed=5" in settings(page) and after != before and page.faults == []


def test_the_editing_panel(browser, tmp_path, models):
    "Notebook 17's: an instruction, a box, an empty box, a mask, no picture; results differ, errors are sentences, nothing in the console."
    with served(tmp_path, "jupyterlab", [EDITING]) as address:
        page = shown(browser, f"{address}/lab/tree/panel.ipynb?reset")
        page.get_by_text("| Idle").wait_for()
        run_cell(page, 0)
        button(page, "Follow the instruction").wait_for()
        asked = ["Instruction", "Part: prompt", "Box: left", "Box: top", "Box: right", "Box: bottom",
                 "Steps", "Guidance scale", "Picture's scale", "Seed"]
        places = [panel(page).get_by_label(name, exact=True).first.bounding_box() for name in asked]
        assert [p["y"] for p in places] == sorted(p["y"] for p in places)
        def result(caption):
            image = panel(page).get_by_alt_text(caption, exact=True)
            image.wait_for()
            return image.get_attribute("src")
        number(page, "Steps", 4)
        button(page, "Go on from the result").click()
        panel(page).get_by_text("Error: there is no result yet").wait_for()
        button(page, "Follow the instruction").click()
        followed = result("make the background blue")
        panel(page).get_by_role("textbox", name="Part: prompt").fill("a cartoon of an owl")
        page.keyboard.press("Enter")
        button(page, "Repaint the part").click()
        assert result("a cartoon of an owl") != followed
        canvas = panel(page).locator("canvas").bounding_box()
        seen = panel(page).locator("canvas").locator("xpath=..").locator("img").bounding_box()
        assert all(abs(canvas[k] - seen[k]) < 1 for k in canvas), (canvas, seen)  # what is painted lies where it is seen
        page.mouse.move(canvas["x"] - 40, canvas["y"] + 20)  # a drag that begins outside is no stroke
        page.mouse.down()
        page.mouse.move(canvas["x"] + 60, canvas["y"] + 20, steps=5)
        page.mouse.up()
        page.mouse.move(canvas["x"] + 60, canvas["y"] + 180)
        page.mouse.down()
        page.mouse.move(canvas["x"] + 180, canvas["y"] + 180, steps=5)
        page.mouse.up()
        panel(page).get_by_text("the part that may change is what you painted").wait_for()
        if folder := os.environ.get("DEEPDIVE_SCREENSHOTS"): page.screenshot(path=f"{folder}/editing_painted.png")
        in_box = result("a cartoon of an owl")
        button(page, "Repaint the part").click()
        page.wait_for_function("old => [...document.querySelectorAll('img[alt=\\'a cartoon of an owl\\']')].some(i => i.src != old)", arg=in_box)
        drawn = Image.open(io.BytesIO(base64.b64decode(result("a cartoon of an owl").partition(",")[2])))
        whole, = latents_to_pil(models.vae, pil_to_latents(models.vae, edits(1)[0].image))
        changed = np.abs(np.asarray(drawn.convert("L"), float) - np.asarray(whole.convert("L"), float))
        assert changed[88:104, 32:96].mean() > 2 * changed[:64].mean(), changed.reshape(8, 16, 128).mean((1, 2))  # the stroke, not the box
        button(page, "Back to the box").click()
        panel(page).get_by_text("before; the box is outlined").wait_for()
        number(page, "Box: right", 0)
        panel(page).get_by_text("is empty: right and bottom come after left and top").wait_for()
        for name, content, sentence in (("notes.txt", b"no picture", "is no picture that can be read"),
                                        ("mask.png", png(Image.new("L", (128, 128), 255)), "the mask's bounds are outlined")):
            with page.expect_file_chooser() as chooser: panel(page).get_by_role("button", name="Upload a mask").click()
            chooser.value.set_files(dict(name=name, mimeType="", buffer=content))
            panel(page).get_by_text(sentence).first.wait_for()
        if folder := os.environ.get("DEEPDIVE_SCREENSHOTS"):
            for width in (1400, 700):
                page.set_viewport_size(dict(width=width, height=1500))
                page.screenshot(path=f"{folder}/editing_{width}.png")
        assert not page.faults, page.faults
