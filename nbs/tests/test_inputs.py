"Notebooks 00 to 02: what is refused, by our own words, and what is taken."
import json
import math
import re
import shutil
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from safetensors.torch import load_file, save_file

import deepdive
from deepdive.autoencoder import image_tensor, pil_to_latents, psnr, to_rgb
from deepdive.image_to_image import first_step, fitted, img2img
from deepdive.sampling_loop import (
    agree, check_answer, check_batch, check_finite, check_number, check_prompts, choose_device, data_folder, denoise, encode_prompt,
    initial_latents, latents_to_pil, load_models, mean_difference, model_source, prepared, seeded, show_images, to_pil)

OURS, POCKET = Path(deepdive.__path__[0]).resolve(), data_folder() / "pocket-sd"
RED, NAN, INF = Image.new("RGB", (16, 16), "red"), math.nan, math.inf
X, C = torch.zeros(1, 4, 8, 8), torch.zeros(1, 77, 128)


def refused(call, *words):
    "The call raises an error of a kind that we use, from our own code, with these words in it."
    with pytest.raises((ValueError, TypeError, FileNotFoundError, KeyError)) as e: call()
    last = traceback.extract_tb(e.value.__traceback__)[-1].filename
    assert Path(last).resolve().is_relative_to(OURS), last
    assert [w for w in words if w not in str(e.value)] == []


NUMBERS = [  # what is asked for a number: argument, value, what the message says would do
    *[("num_inference_steps", v, "a whole number") for v in (None, "3", 2.5, 3., True, 0, -1, 1001, NAN, INF, [3], torch.ones(2))],
    *[("guidance_scale", v, "a finite number") for v in (None, "7", NAN, INF, -INF, True, [7.5], np.array([1.]), torch.ones(1), 1j)]]


@pytest.mark.parametrize("name, value, wanted", NUMBERS, ids=str)
@pytest.mark.parametrize("entrance", ["denoise", "img2img"])
def test_loops_refuse_what_is_no_number(models, entrance, name, value, wanted):
    calls = dict(denoise=lambda: denoise(models, X, C, **{name: value}), img2img=lambda: img2img(models, "a", RED, **{name: value}))
    refused(calls[entrance], name, wanted)


@pytest.mark.parametrize("call, words", [
    # 00: prompts
    (lambda m: encode_prompt(m, None), ["prompt must be", "None"]),
    (lambda m: encode_prompt(m, 3), ["prompt must be", "3"]),
    (lambda m: encode_prompt(m, []), ["a list of strings, not []"]),
    (lambda m: encode_prompt(m, ["a", None]), ["['a', None]"]),
    (lambda m: encode_prompt(m, b"a"), ["b'a'"]),
    (lambda m: encode_prompt(m, {"a": 1}), ["{'a': 1}"]),
    (lambda m: check_prompts(2, "negative_prompt"), ["negative_prompt must be", "2"]),
    # 00: noise
    (lambda m: initial_latents(m, 0), ["batch_size", "at least 1, not 0"]),
    (lambda m: initial_latents(m, "2"), ["batch_size", "'2'"]),
    (lambda m: initial_latents(m, 1.5), ["batch_size", "whole", "1.5"]),
    (lambda m: initial_latents(m, None), ["batch_size", "None"]),
    (lambda m: initial_latents(m, seed=None), ["seed", "whole", "None"]),
    (lambda m: initial_latents(m, seed="x"), ["seed", "'x'"]),
    (lambda m: initial_latents(m, seed=1.5), ["seed", "1.5"]),
    (lambda m: initial_latents(m, seed=-1), ["seed", "-1"]),
    (lambda m: initial_latents(m, seed=2**63), ["seed", str(2**63)]),
    (lambda m: initial_latents(m, height=0), ["height", "at least 8, not 0"]),
    (lambda m: initial_latents(m, width=-8), ["width", "-8"]),
    (lambda m: initial_latents(m, height=100), ["multiples of 8, not 100 x 128"]),
    (lambda m: initial_latents(m, height=64.), ["height", "64.0"]),
    (lambda m: initial_latents(m, height="64"), ["height", "'64'"]),
    (lambda m: initial_latents(m, generator=3), ["generator", "3"]),
    (lambda m: seeded(1, np.random.default_rng(0)), ["generator", "PCG64"]),
    # 00: the loop
    (lambda m: denoise(m, X.repeat(2, 1, 1, 1), C), ["2 latents but 1 prompts"]),
    (lambda m: denoise(m, X, C, C.repeat(3, 1, 1)), ["3 negative prompts for 1 prompts"]),
    (lambda m: denoise(m, X, C, None, 5, start_step=5), ["start_step", "[0, 4], not 5"]),
    (lambda m: denoise(m, X, C, None, 5, start_step=-1), ["start_step", "-1"]),
    (lambda m: denoise(m, X, C, None, 5, start_step=1.), ["start_step", "1.0"]),
    (lambda m: denoise(m, X, C, None, 5, start_step="1"), ["start_step", "'1'"]),
    (lambda m: denoise(m, X, C, None, 5, start_step=True), ["start_step", "True"]),
    (lambda m: denoise(m, X, C, None, 1, scheduler="ddim"), ["scheduler", "'ddim'"]),
    (lambda m: denoise(m, X, C, None, 1, scheduler=DDIMScheduler), ["scheduler", "DDIM"]),
    (lambda m: denoise(m, X * NAN, C, None, 1), ["latents after step 1", "NaN", "float32"]),
    (lambda m: denoise(m, X + 1e38, C, None, 1), ["latents after step 1", "lower guidance_scale"]),
    (lambda m: prepared(m, 7, 3), ["scheduler", "7"]),
    (lambda m: check_batch(X, C, None, 0), ["num_inference_steps", "not 0"]),
    (lambda m: check_finite(torch.tensor([INF]), "losses"), ["losses hold NaN or infinity"]),
    # 00: pictures
    (lambda m: latents_to_pil(m.vae, X[0]), ["(batch, 4, h, w), not (4, 8, 8)"]),
    (lambda m: latents_to_pil(m.vae, X[:, :3]), ["not (1, 3, 8, 8)"]),
    (lambda m: latents_to_pil(m.vae, X * NAN), ["latents hold NaN"]),
    (lambda m: to_pil(torch.full((1, 3, 8, 8), NAN)), ["pictures hold NaN"]),
    (lambda m: show_images([RED, RED], ["a"]), ["1 titles for 2 images"]),
    (lambda m: show_images([]), ["images must be", "[]"]),
    (lambda m: show_images(None), ["images must be", "None"]),
    (lambda m: show_images(RED, cols=0), ["cols", "at least 1, not 0"]),
    (lambda m: show_images(RED, size="3"), ["size", "'3'"]),
    (lambda m: show_images(RED, size=0), ["size", "not 0"]),
    (lambda m: mean_difference(RED, None), ["PIL", "None"]),
    (lambda m: mean_difference(RED, RED.resize((8, 8))), ["different size", "(8, 8)"]),
    # 00: which model, which device
    (lambda m: load_models(device="abacus"), ["no device 'abacus'", "cpu"]),
    (lambda m: choose_device("tpu:0"), ["no device 'tpu:0'"]),
    (lambda m: choose_device("cpu", "float16"), ["dtype", "'float16'"]),
    (lambda m: choose_device("cpu", torch.int8), ["dtype", "torch.int8"]),
    # 01
    (lambda m: to_rgb("parrot.png"), ["got str", "PIL.Image.open"]),
    (lambda m: to_rgb(None), ["NoneType"]),
    (lambda m: to_rgb(Image.new("RGB", (0, 4))), ["0 x 4"]),
    (lambda m: image_tensor([]), ["[]", "give a PIL image"]),
    (lambda m: image_tensor([RED, RED.resize((32, 16))]), ["different sizes [(16, 16), (32, 16)]"]),
    (lambda m: pil_to_latents(m.vae, np.zeros((8, 8, 3))), ["ndarray"]),
    (lambda m: pil_to_latents(m.vae, RED, 32), ["generator", "32"]),
    (lambda m: psnr(RED, RED.resize((8, 8))), ["different size", "(8, 8)"]),
    # 02
    (lambda m: first_step(1.5, 10), ["strength", "[0, 1], not 1.5"]),
    (lambda m: first_step(NAN, 10), ["strength", "nan"]),
    (lambda m: first_step("1", 10), ["strength", "'1'"]),
    (lambda m: first_step(True, 10), ["strength", "True"]),
    (lambda m: first_step(.5, 0), ["num_inference_steps", "not 0"]),
    (lambda m: fitted(m, "x.png"), ["got str"]),
    (lambda m: img2img(m, "a", RED, strength=-.1), ["strength", "-0.1"]),
    (lambda m: img2img(m, "a", RED, strength=None), ["strength", "None"]),
    (lambda m: img2img(m, "a", RED, seed=None), ["seed", "None"]),
    (lambda m: img2img(m, "a", None), ["NoneType"]),
    (lambda m: img2img(m, "a", []), ["0 images but 1 prompts"]),
    (lambda m: img2img(m, ["a"] * 3, [RED, RED]), ["2 images but 3 prompts"]),
    (lambda m: img2img(m, None, RED), ["prompt", "None"]),
    (lambda m: img2img(m, "a", RED, negative_prompt=3), ["negative_prompt", "3"]),
    (lambda m: img2img(m, ["a", "b"], RED, negative_prompt=["x"] * 3), ["3 negative prompts for 2 prompts"]),
    (lambda m: img2img(m, "a", RED, scheduler="lms"), ["scheduler", "'lms'"]),
])
def test_refused(models, call, words):
    refused(lambda: call(models), *words)


def test_every_kind_of_number_is_taken(models):
    for three in 3, np.int64(3), np.array(3), torch.tensor(3):
        assert type(check_number("n", three, 1, whole=True)) is int
    for value in 2, 2., np.float32(2), torch.tensor(2.): assert check_number("x", value, 0, 2) == 2
    x, c = initial_latents(models, np.int64(1), torch.tensor(1), height=np.int32(64), width=64), encode_prompt(models, "an owl")
    a = denoise(models, x, c, c, torch.tensor(2), np.float64(3.), start_step=np.int64(1))
    assert torch.equal(a, denoise(models, x, c, c, 2, 3., start_step=1))
    assert torch.equal(encode_prompt(models, check_prompts(None, "negative_prompt")), encode_prompt(models, ""))
    none, empty = (img2img(models, "an owl", RED, 1., np.int64(1), negative_prompt=n)[0] for n in (None, ""))
    assert mean_difference(none, empty) == 0


def test_agree_follows_the_coarser_dtype():
    a = torch.tensor([1., 10.])
    assert agree(a, a + 5e-4) and not agree(a, a + 5e-3) and agree(a.half(), a + 5e-3) and agree(a.bfloat16(), a + .5)
    assert not agree(a, a[:1]) and not agree(a, a * NAN) and agree(a, a + 5e-3, slack=10)


@pytest.mark.parametrize("got, expected, right, said", [
    (3, 3, True, "right"), (np.float32(3), 3, True, "right"), (torch.tensor(3), np.int64(3), True, "right"), (torch.ones(2), [1, 1], True, "right"),
    (RED, RED, True, "right"), (None, 3, False, "nothing was returned"), (None, RED, False, "nothing was returned"),
    (5, 3, False, "got 5, 2 from what was expected"), ("x", 3, False, "'x'"), (torch.ones(2), 1, False, "shape (2,), expected ()"),
    (RED, 3, False, "shape (16, 16, 3)"), (3, RED, False, "got 3"), ([RED], RED, False, "got [<PIL"), (NAN, 3, False, "got nan"),
    (Image.new("RGB", (16, 16)), RED, False, "got a picture, 85 from what was expected"), (RED.resize((8, 8)), RED, False, "different size")],
    ids=lambda v: re.sub(" at 0x[0-9A-F]+", "", str(v)))
def test_check_answer(capsys, got, expected, right, said):
    assert check_answer(got, expected) is right and said in capsys.readouterr().out


@pytest.mark.parametrize("got, said", [
    (-3, "the sign"), (torch.tensor(9.), "squared"), (3, "right"), (4, "got 4, 1 from"), (None, "nothing was returned"),
    ([1, 2], "shape (2,), expected ()")])
def test_check_answer_knows_typical_mistakes(capsys, got, said):
    check_answer(got, 3, .1, {"mind the sign": -3, "it is not squared": 9, "one of each": torch.ones(5)})
    assert said in capsys.readouterr().out


# ---------------------------------------------------------------- which folder
@pytest.fixture()
def elsewhere(tmp_path, monkeypatch):
    "A working folder with a space in its name, and in it a model of links to pocket-sd's files."
    folder = tmp_path / "my models" / "mine"
    shutil.copytree(POCKET, folder, copy_function=lambda a, b: Path(b).symlink_to(a))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path)), monkeypatch.setenv("USERPROFILE", str(tmp_path))
    return folder


@pytest.mark.parametrize("text", ["my models/mine", "my models/mine/", "./my models/mine", "  my models/mine ", "'my models/mine'",
                                  "~/my models/mine", "$HOME/my models/mine", "my models\\mine",
                                  "my models/mine/model_index.json", "my models/../my models/mine"])
def test_ways_to_name_a_folder(elsewhere, monkeypatch, text):
    monkeypatch.setenv("DEEPDIVE_MODEL", text)
    assert model_source() == elsewhere.resolve()


def test_absolute_relative_to_the_root_hub_and_default(elsewhere, monkeypatch):
    assert model_source(elsewhere) == elsewhere.resolve() == model_source(f"{elsewhere}/")
    for text in "pocket-sd", "data/pocket-sd", "data/pocket-sd/", "nbs/../data/pocket-sd": assert model_source(text) == POCKET
    assert model_source("CompVis/stable-diffusion-v1-4") == model_source(" CompVis/stable-diffusion-v1-4/ ") == "CompVis/stable-diffusion-v1-4"
    for text in None, "", " ":
        monkeypatch.setenv("DEEPDIVE_MODEL", text or "")
        assert model_source(text) == POCKET


@pytest.mark.parametrize("text", ["data/none", "/no/such/folder", "~/none", "$NOWHERE/sd", "C:\\models\\sd", "C:/models", "model.ckpt", "../none",
                                  "my models", "my models/mine/unet", "my models/mine/unet/config.json", 5])
def test_no_model_there(elsewhere, monkeypatch, text):
    refused(lambda: load_models(text), "no model in the folder", str(text).split("/")[-1].split("\\")[-1], "model_index.json", "unset DEEPDIVE_MODEL")


def test_data_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(deepdive, "__path__", [str(tmp_path / "site-packages" / "deepdive")])
    refused(data_folder, "DEEPDIVE_DATA", str(tmp_path))
    refused(load_models, "DEEPDIVE_DATA")
    assert not load_models(POCKET, device="cpu").is_pocket  # a folder of one's own needs no data
    monkeypatch.setenv("DEEPDIVE_DATA", f" {POCKET.parent} ")
    assert data_folder() == POCKET.parent and model_source() == POCKET
    monkeypatch.setenv("DEEPDIVE_DATA", str(tmp_path / "none"))
    refused(data_folder, str(tmp_path / "none"))


# ---------------------------------------------------------------- which kind of model
def changed(folder, file, **entries):
    "Write `folder`/`file` anew with `entries`; it was a link."
    config = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).unlink()
    (folder / file).write_text(json.dumps(config | entries), encoding="utf-8")


@pytest.mark.parametrize("file, entries, words", [
    ("unet/config.json", dict(addition_embed_type="text_time", cross_attention_dim=2048), ["two text encoders", "SDXL"]),
    ("scheduler/scheduler_config.json", dict(prediction_type="v_prediction"), ["'v_prediction'", "SD 2"]),
    ("scheduler/scheduler_config.json", dict(prediction_type="sample"), ["'sample'"]),
    ("unet/config.json", dict(in_channels=9), ["9 channels"]),
    ("unet/config.json", dict(in_channels=8), ["8 channels"]),
])
def test_other_kinds_are_refused(elsewhere, file, entries, words):
    changed(elsewhere, file, **entries)
    refused(lambda: load_models(elsewhere, device="cpu"), str(elsewhere), "no Stable Diffusion 1.x", *words)


def test_variant_files_will_do(elsewhere):
    for file in elsewhere.rglob("*.safetensors"): file.rename(file.with_suffix(".fp16.safetensors"))
    assert load_models(elsewhere, device="cpu").source == elsewhere.resolve()


@pytest.mark.parametrize("part, file", [("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")])
@pytest.mark.parametrize("fault", ["missing", "foreign", "no file"])
def test_weights_that_do_not_fit_are_named(elsewhere, part, file, fault):
    path = elsewhere / part / f"{file}.safetensors"
    weights, key = load_file(path), "extra.weight"
    if fault == "missing": key = sorted(weights)[3]; del weights[key]
    if fault == "foreign": weights[key] = torch.zeros(2)
    path.unlink()
    if fault != "no file": save_file(weights, path, metadata={"format": "pt"})
    words = dict(missing=["missing_keys", key.split(".")[-2], part], foreign=["unexpected_keys", key, part]).get(fault, ["not whole", part])
    refused(lambda: load_models(elsewhere, device="cpu"), str(elsewhere), *words)


def test_a_folder_without_a_part_is_named(elsewhere):
    shutil.rmtree(elsewhere / "unet")
    refused(lambda: load_models(elsewhere, device="cpu"), "not whole", "unet")


# ---------------------------------------------------------------- pictures too large, strengths too small
def test_large_pictures_are_made_smaller(models):
    with pytest.warns(UserWarning, match="4032 x 3024 is scaled to 288 x 216, about four times .* own 128 x 128"):
        small = fitted(models, Image.new("RGB", (4032, 3024)))
    assert small.size == (288, 216)
    with pytest.warns(UserWarning): assert fitted(models, Image.new("RGB", (30000, 20))).size[1] == 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in (256, 256), (512, 128), (16, 16): assert fitted(models, Image.new("RGB", size)).size == size
    with pytest.warns(UserWarning, match="is scaled to"): made = img2img(models, "a", Image.new("RGB", (400, 300)), .5, 2)
    assert made[0].size == (288, 216)


def test_a_strength_that_does_nothing_is_told(models):
    with pytest.warns(UserWarning, match=r"strength 0.05 of 11 steps takes no step.* is 0\.091"): assert first_step(.05, 11) == 11
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert first_step(0, 11) == 11 and first_step(.091, 11) == 10
        for n in range(1, 1001): assert first_step(math.ceil(1e4 / n) / 1e4, n) < n
    with pytest.warns(UserWarning, match="takes no step"): img2img(models, "a", RED, .05, 11)
