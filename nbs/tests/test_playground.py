"""Notebook 08: settings, their text and their code; the panel without a browser, on a slim model with random weights."""
import ast
import copy
import inspect
import io
import threading
import time
import warnings
from dataclasses import replace

import ipywidgets
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image

import deepdive.playground as module
from deepdive.playground import Stopped, leaf_through, playground
from deepdive.playground_parts import (
    SAMPLERS, WORDS, Settings, as_pil, axes_from, call_for, code_for, compare, figure, forming, make, opened, parameters, pipeline_code, png,
    settings_from, steps_taken, table, values_of, variants, views)
from deepdive.sampling_loop import Models, encode_prompt, mean_difference
from deepdive.textual_inversion import load_embedding
from deepdive.unet import txt2img

FEW = dict(num_inference_steps=4)


@pytest.fixture(scope="module")
def models(models):
    "As everywhere, but free to learn words."
    return replace(models, tokenizer=copy.deepcopy(models.tokenizer), text_encoder=copy.deepcopy(models.text_encoder))


@pytest.fixture(scope="module")
def slim(models):
    "pocket-sd's text encoder with a small random UNet and autoencoder: a picture in a moment."
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1, latent_channels=4,
                        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
    width = models.text_encoder.config.hidden_size
    unet = UNet2DConditionModel(sample_size=8, block_out_channels=(16, 16), layers_per_block=1, cross_attention_dim=width,
                                attention_head_dim=8, norm_num_groups=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    parts = [m.eval().requires_grad_(False) for m in (vae, unet)]
    return Models(models.tokenizer, models.text_encoder, *parts, models.scheduler, models.device, models.dtype, "slim", ["an otter"])


def photo(size=(70, 50), name="photo.png"):
    image = Image.effect_noise(size, 90).convert("RGB")
    image.filename = name
    return image


KINDS = {
    "plain": Settings("an owl", **FEW), "negative": Settings("an owl", "blue, 'red'\n\"green\"", sampler="Euler a", seed=7, guidance_scale=3., **FEW),
    "no guidance": Settings("an owl", guidance_scale=1., sampler="Heun", **FEW),
    "mixed": Settings("an owl", second_prompt="a 3d render of a cat", share=.3, sampler="LMS", **FEW),
    "learned": Settings("an owl in the style of <wash>", sampler="Euler", **FEW),
    "picture": Settings("an owl", image=photo(), strength=.7, sampler="DDIM", **FEW),
    "large mixed picture": Settings("an owl", second_prompt="a cat", image=photo((400, 300)), strength=.5, **FEW),
    "blue": Settings("an owl", push="blue", push_start=.3, **FEW), "symmetry": Settings("an owl", second_prompt="a cat", push="symmetry", **FEW)}


@pytest.mark.parametrize("kind", KINDS)
def test_both_codes_make_the_panels_picture(models, kind, tmp_path, monkeypatch):
    s = KINDS[kind]
    monkeypatch.chdir(tmp_path)
    if s.image: s.image.save("photo.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a large picture is scaled, and says so
        picture = make(models, s)
        for code in code_for(models, s), pipeline_code(models, s):
            ast.parse(code)
            exec(code.replace("load_models()", "load_models(device='cpu')").replace("*choose_device()", "'cpu'"), made := {})
            if "image" in made: assert mean_difference(made["image"], picture) < 1
            else: assert s.push != "none" and code.startswith("#")


@pytest.mark.parametrize("kind", KINDS)
def test_settings_travel_in_the_png(slim, kind):
    s = KINDS[kind]
    image, text = opened("a.png", png(photo(), parameters(slim, s, photo())))
    values, remarks = settings_from(text)
    assert remarks == [] and {k: v for k, v in values.items() if k != "sampler" and getattr(s, k) != v} == {}
    assert values["sampler"] == ("Euler" if s.push != "none" else s.sampler)
    assert {"num_inference_steps", "guidance_scale", "seed"} <= values.keys() and ("strength" in values) == (s.image is not None and s.push == "none")


def test_settings_of_another_tool_are_read():
    values, remarks = settings_from("a castle,\nat night\nNegative prompt: rain: heavy,\nfog\nSteps: 28, Sampler: DPM++ 2M Karras, CFG scale: 6.5, "
                                    'Seed: 4294967295, Size: 512x768, Lora hashes: "x: 1, y: 2", Version: v1.9')
    assert values == dict(prompt="a castle,\nat night", negative_prompt="rain: heavy,\nfog", second_prompt="", push="none", num_inference_steps=28,
                          sampler="DPM++ 2M", guidance_scale=6.5, seed=4294967295)
    assert len(remarks) == 1 and "DPM++ 2M Karras" in remarks[0]
    assert settings_from("only a prompt")[0]["prompt"] == "only a prompt"
    values, remarks = settings_from("x\nSteps: many, CFG scale: 7, Seed: 1")
    assert "num_inference_steps" not in values and "'many'" in remarks[0]


@pytest.mark.parametrize("prompt", ["наука и жизнь, 猫", "Steps: 3, Seed: 4, CFG scale: 5", 'say "no", \\ and: yes', ""])
def test_any_prompt_comes_back(slim, prompt):
    s = Settings(prompt, second_prompt="b, c: \"d\"", **FEW)
    values, remarks = settings_from(opened("a.png", png(photo(), parameters(slim, s, photo())))[1])
    assert (values["prompt"], values["second_prompt"], remarks) == (prompt, s.second_prompt, [])


def test_what_is_no_picture_is_refused():
    for content in b"", b"text", png(photo())[:60]:
        with pytest.raises(ValueError, match="'x.png' is no picture"): opened("x.png", content)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_last_predicted_end_is_the_picture(models, sampler):
    s, steps = Settings("an owl", sampler=sampler, num_inference_steps=8), []
    picture = make(models, s, lambda *step: steps.append(step))
    n, flat = steps_taken(models, s)
    assert len(steps) == n and steps[-1][0] == n - 1
    seen, end = views(models, steps[-2][2], steps[-1][1], steps[-1][3], flat)
    assert mean_difference(end, picture) < (8 if sampler in ("Euler a", "LMS") else 3)
    first = views(models, steps[0][2], steps[1][1], steps[1][3], flat)
    assert mean_difference(first[0], picture) > mean_difference(seen, picture)


def test_ready_text_embeddings_take_a_prompts_place(slim):
    embeddings = encode_prompt(slim, "an owl")
    assert torch.equal(encode_prompt(slim, embeddings), embeddings)
    pair = [txt2img(slim, p, n, 2)[0] for p, n in (("an owl", "a cat"), (embeddings, encode_prompt(slim, "a cat")))]
    assert mean_difference(*pair) == 0


def test_compare_and_its_axes(slim):
    s = Settings("an owl", num_inference_steps=1)
    pictures = compare(slim, s, seed=[1, 2], guidance_scale=[1., 9.])
    assert mean_difference(pictures[2], make(slim, replace(s, seed=2, guidance_scale=1.))) == 0
    assert [(v.seed, v.guidance_scale) for v in variants(s, seed=[1, 2], guidance_scale=[1., 9.])] == [(1, 1.), (1, 9.), (2, 1.), (2, 9.)]
    assert values_of("prompt", "a, b | c") == ["a, b", "c"] and values_of("seed", " 1,2") == [1, 2]
    assert values_of("sampler", "LMS, Euler a") == ["LMS", "Euler a"]
    html = table(pictures, ("scale", [1, 9]), ("seed", ["<b>", 2]))
    assert html.count("<img") == 4 and html.count("scope=") == 4 and "<b>" not in html and "&lt;b&gt;" in html


@pytest.mark.parametrize("call, words", [
    (lambda s: values_of("seed", "1.5"), "'1.5' is no list of numbers"),
    (lambda s: axes_from([("seed", "1"), ("seed", "2")], s), "two different settings"),
    (lambda s: axes_from([("seed", "1,2,3,4,5,6,7"), ("strength", ".1,.2,.3,.4,.5,.6")], s), "42 pictures"),
    (lambda s: axes_from([], s), "compare over"), (lambda s: variants(s, colour=[1]), "compare over"),
    (lambda s: variants(s, seed=[]), "compare over")])
def test_what_makes_no_grid_is_refused(call, words):
    with pytest.raises(ValueError, match=words): call(Settings())


@pytest.mark.parametrize("s, words", [
    (Settings(sampler="PLMS"), "no 'PLMS', only LMS"), (Settings(push="red"), "no 'red', only blue, symmetry"), (Settings(prompt=3), "'int'|prompt")])
def test_wrong_settings_are_refused_before_the_first_step(slim, s, words):
    with pytest.raises((ValueError, TypeError), match=words): call_for(slim, s)


def test_words_are_taught_when_used(slim):
    s = Settings("an owl <mine>", **FEW)
    call_for(slim, s, words={"<mine>": WORDS["<wash>"]})
    row = slim.text_encoder.get_input_embeddings().weight[slim.tokenizer.convert_tokens_to_ids("<mine>")]
    assert torch.equal(row, load_embedding(WORDS["<wash>"])[0])
    assert "load_embedding('/a/b.bin')" in code_for(slim, s, words={"<mine>": "/a/b.bin"})


def test_pictures_are_read_out():
    shown = figure(photo(), '<script> & "quoted"')
    assert "<script>" not in shown and 'alt="&lt;script&gt; &amp; &quot;quoted&quot;"' in shown
    assert as_pil(np.full((2, 3), .5)).getpixel((0, 0)) == 128 and as_pil(np.zeros((2, 3, 3), np.uint8)).size == (3, 2)


# The panel, without a browser.

def wait(panel, until, seconds=60):
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, (panel.progress.description, panel.message.value)
        time.sleep(.01)


def idle(panel): return not panel.busy


@pytest.fixture
def panel(slim): return playground(slim, prompt="an owl", **FEW).build()


def slow(panel, seconds=.02):
    "Let each step take a while."
    seen = type(panel).seen
    panel.seen = lambda *step: (time.sleep(seconds), seen(panel, *step))


def test_the_panel_makes_what_its_controls_say(slim, panel):
    panel.begin()
    wait(panel, lambda: idle(panel) and panel.image)
    assert mean_difference(panel.image, make(slim, Settings("an owl", **FEW))) == 0 and panel.progress.description == "done"
    panel.controls["seed"].value = 8  # a change alone is enough
    wait(panel, lambda: idle(panel) and panel.made.seed == 8)
    assert mean_difference(panel.image, make(slim, Settings("an owl", seed=8, **FEW))) == 0
    assert "seed=8" in panel.ours.value and "manual_seed(8)" in panel.theirs.value
    assert settings_from(Image.open(io.BytesIO(panel.data)).info["parameters"])[0]["seed"] == 8
    panel.controls["sampler"].value = "LMS"
    wait(panel, lambda: idle(panel) and panel.made.sampler == "LMS")
    assert panel.message.value == ""  # what libraries warn their developers of is no reader's business


def test_a_slider_and_its_box_move_together(panel):
    box = panel.controls["guidance_scale"]
    box.slider.value = 12.
    assert box.value == 12 and panel.settings().guidance_scale == 12
    box.value = 3.
    assert box.slider.value == 3 and panel.controls["strength"].slider.disabled
    panel.stop()


def test_stop_and_a_change_end_a_run_within_a_step(slim, panel):
    slow(panel)
    panel.load(dict(num_inference_steps=150))
    wait(panel, lambda: panel.progress.value > 3)
    panel.stop()
    wait(panel, lambda: idle(panel))
    assert panel.progress.description == "stopped" and panel.progress.value < 150 and panel.image is None
    panel.begin()
    wait(panel, lambda: panel.busy and panel.progress.value > 3)
    for seed in range(5): panel.controls["seed"].value = seed
    panel.load(dict(num_inference_steps=2))
    wait(panel, lambda: idle(panel) and panel.image)
    assert (panel.made.seed, panel.made.num_inference_steps) == (4, 2)
    assert len([t for t in threading.enumerate() if getattr(t, "_target", None) == panel.work]) == 0


def test_views_come_at_most_ten_times_a_second_and_take_a_fifth_of_the_time(slim, panel, monkeypatch):
    drawn, clock = [], [0.]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    def slow_views(*_):
        drawn.append(clock[0])
        clock[0] += cost
        return [photo((8, 8))] * 2
    monkeypatch.setattr(module, "views", slow_views)
    for cost, step, gap in (0., .03, .1), (2., .5, 10.):  # a fast model; one whose decoder takes two seconds
        drawn.clear()
        panel.before, panel.which, panel.flat, panel.halt, panel.drawn, panel.cost = None, "", True, False, -100., 0.
        for i in range(150):
            clock[0] += step
            panel.seen(i, 0, torch.zeros(1), None)
        assert len(drawn) > 3 and min(np.diff(drawn)) >= gap - 1e-9
    panel.halt = True
    with pytest.raises(Stopped): panel.seen(0, 0, None, None)


def test_errors_are_one_sentence_in_the_panel(slim):
    def broken(images): raise ValueError("nothing <to> give")
    panel = playground(slim, dict(broken=broken, many=lambda images: images.mean((1, 2, 3)).repeat(2)), prompt="an owl", push="broken", **FEW).build()
    for push, words in ("broken", "Error: nothing &lt;to&gt; give"), ("many", "Error: loss_fn must return a single number"):
        panel.controls["push"].value = push
        panel.begin()
        wait(panel, lambda: idle(panel) and words in panel.message.value)
    panel.controls["push"].value = "none"
    wait(panel, lambda: idle(panel) and panel.image)
    assert panel.message.value == ""
    panel.controls["prompt"].value = "owl " * 100
    wait(panel, lambda: idle(panel))
    assert "Note: prompt of 102 tokens" in panel.message.value


def test_uploads(slim, panel):
    def give(name, content): panel.received(dict(new=[dict(name=name, content=content)]))
    give("x.txt", b"words")
    assert "&#x27;x.txt&#x27; is no picture" in panel.message.value
    file, exif = io.BytesIO(), Image.Exif()
    exif[274] = 6
    photo((48, 24)).save(file, "jpeg", exif=exif)
    give("turned.jpg", file.getvalue())
    wait(panel, lambda: idle(panel) and panel.image)
    assert panel.image.size == (24, 48) and "Image.open('turned.jpg')" in panel.ours.value and "turned.jpg" in panel.thumbnail.value
    assert not panel.controls["strength"].disabled
    s = Settings("a cat", "dogs", guidance_scale=9., num_inference_steps=2, seed=3, sampler="DDIM")
    give("kept.png", png(photo(), parameters(slim, s, photo())))
    wait(panel, lambda: idle(panel) and panel.made.prompt == "a cat")
    assert replace(panel.made, image=None) == s
    give("other.png", png(photo(), "x\nSteps: 999, CFG scale: 2, Seed: 1"))
    assert "beyond this panel" in panel.message.value and panel.controls["num_inference_steps"].value == 2
    wait(panel, lambda: idle(panel))


def test_keep_and_load_again(slim, panel):
    panel.keep()
    assert "no picture to keep" in panel.message.value
    panel.begin()
    wait(panel, lambda: idle(panel) and panel.image)
    panel.keep()
    first = panel.image
    panel.load(dict(seed=77, prompt="a cat", push="blue"))
    wait(panel, lambda: idle(panel) and panel.made.seed == 77)
    assert panel.controls["sampler"].disabled and not panel.controls["push_scale"].disabled
    panel.strip.children[0].children[1].click()
    wait(panel, lambda: idle(panel) and panel.made.seed == 32)
    assert mean_difference(panel.image, first) == 0 and panel.made == panel.kept[0][1]


def test_the_grid(slim, panel):
    down, across = panel.axes
    down[0].value, down[1].value, across[1].value = "Sampler", "DDIM, Euler", "2, 5, 9"
    panel.draw_grid()
    wait(panel, lambda: idle(panel) and panel.grid.value.count("<img") == 6)
    assert 'alt="sampler Euler guidance_scale 9.0"' in panel.grid.value
    across[1].value = "two"
    panel.draw_grid()
    assert "is no list of numbers" in panel.message.value


def test_unknown_settings_are_refused(slim):
    with pytest.raises(TypeError, match="colour.*prompt, negative_prompt"): playground(slim, colour="red")
    with pytest.raises(ValueError, match="seed: -1 is beyond"): playground(slim, seed=-1).build()
    with pytest.raises(ValueError, match="sampler: 'PLMS' is not one of LMS"): playground(slim, sampler="PLMS").build()


def test_without_a_front_end_a_still_is_shown_and_no_widget(slim, monkeypatch):
    shown = []
    monkeypatch.setattr(module, "show_images", lambda images, titles, **_: shown.append((images, titles)))
    monkeypatch.setattr(module, "display", lambda *_: shown.append("widget"))
    for kind in "HTML", "Button", "FloatSlider", "VBox": monkeypatch.setattr(ipywidgets, kind, None)
    panel = playground(slim, prompt="an owl", **FEW)
    panel._ipython_display_()
    assert len(shown[0][0]) == 4 and shown[0][1][-1] == "the picture" and mean_difference(shown[0][0][-1], panel.image) == 0
    leaf_through([photo()] * 9, range(9))
    assert shown[1][1] == ["0", "2", "3", "5", "6", "8"] and len(shown) == 2
    monkeypatch.undo()
    monkeypatch.setattr(module, "display", lambda *_: shown.append("widget"))
    monkeypatch.setattr(module, "front_end", lambda: True)
    leaf_through([photo(), np.zeros((4, 4))])
    assert shown[2] == "widget"
    for images, titles in ([], None), ([photo()], ["a", "b"]):
        with pytest.raises(ValueError, match="titles for"): leaf_through(images, titles)


def test_a_front_end_is_one_that_answers(monkeypatch):
    assert not module.front_end()
    for answers in True, False:
        shell = type("Shell", (), dict(kernel=type("Kernel", (), dict(_allow_stdin=answers))))
        monkeypatch.setattr(module, "get_ipython", lambda: shell)
        assert module.front_end() is answers


def test_forming_gives_the_ends_by_their_steps(slim):
    s = Settings("an owl", image=photo((64, 64)), strength=.5, num_inference_steps=8)
    picture, ends = forming(slim, s, 3)
    assert list(ends) == [6, 7, 8] and mean_difference(picture, make(slim, s)) == 0
    assert forming(slim, Settings("an owl", num_inference_steps=1))[1] == {}


def test_every_control_has_a_label(panel):
    def inside(w): return [w, *(x for c in getattr(w, "children", ()) for x in inside(c))]
    plain = ipywidgets.Box, ipywidgets.HTML, ipywidgets.FloatSlider, ipywidgets.IntSlider
    assert all(w.description for w in inside(panel.box) if not isinstance(w, plain))
    assert [w for w in inside(panel.box) if isinstance(w, plain[2:]) and w.readout] == []  # a slider stands beside its labelled box


def test_the_panel_is_built_of_fifty_lines():
    methods = [getattr(module.Playground, name) for name in ("begin", "submit", "stop", "work", "run", "seen")]
    lines = [line for m in methods for line in inspect.getsource(m).splitlines() if line.strip() and not line.strip().startswith('"')]
    assert len(lines) <= 52
