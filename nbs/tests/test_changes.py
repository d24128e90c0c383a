"What *Change this, expect that* says, done: the notebook's own cells, and the change. (Those of 00 to 07 are in test_demonstrations.)"
import json
import random
import re

import numpy as np
import pytest
import torch
from deepdive import autoencoder_training, contrastive
from deepdive.autoencoder_training import VAELoss, pocket_vae, round_trip, vae_training
from deepdive.contrastive import load_encoders, pocket_tokenizer, similarity_table
from deepdive.pictures import LECTURE, Pictures
from execute import NBS


def names_of(stem, *pieces, change=(), **known):
    "What those code cells of a notebook leave behind that hold one of `pieces`, each once there; (old, new) of `change` is changed in them."
    cells = ["".join(c["source"]) for c in json.loads((NBS / f"{stem}.ipynb").read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    assert [sum(piece in cell for cell in cells) for piece in pieces] == [1] * len(pieces), pieces
    code = "\n".join(cell for cell in cells if any(piece in cell for piece in pieces))
    for old, new in change:
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    exec(code, known)
    return known


# 09
DIGITS = "import copy, json", "import tempfile", "digits = load_digits()", "def mix(", "train_x, train_y, test_x", "classifier = SVC()"
DENOISER = *DIGITS, "class Denoiser(", "def parts(", "def draw_noise(", "def draw(net"


def test_09_gradients_that_are_not_cleared_pile_up():
    five = *DIGITS, "def scorer(", "def digits_for(", "losses = scorer()", "pictures, right = digits_for("
    plain = np.array(names_of("09_denoising", *five)["losses"])
    change = [("optimizer.step(), optimizer.zero_grad()", "optimizer.step()")]
    piled = np.array(names_of("09_denoising", *five, change=change)["losses"])
    assert plain[-20:].mean() < .01 and piled[-20:].mean() > .05
    assert np.diff(piled).std() > 3 * np.diff(plain).std() and piled[30:].max() > 2 * piled[20:30].mean()


def test_09_twenty_five_steps_draw_mean_digits_that_are_named_right():
    nb = names_of("09_denoising", *DENOISER)
    wanted, net = torch.arange(200) % 10, nb["learn"]("image", steps=25)
    means = torch.stack([nb["train_x"][nb["train_y"] == k].mean(0) for k in range(10)])
    for steps in 1, 3, 10, 50:
        drawn = nb["draw"](net, "image", wanted, steps)
        assert (nb["classifier"].predict(drawn) == wanted.numpy()).mean() > .95
    assert (drawn - means[wanted]).norm(dim=1).mean() < 1.3 < torch.pdist(nb["test_x"]).mean() / 2  # a mean digit, but for little


def test_09_an_exact_denoiser_of_a_hundred_digits_draws_them():
    def done(change): return names_of("09_denoising", *DENOISER, "levels = (", "def exact(", "def draw_exact(", change=change)
    all_of_them = done([])
    few = done([("image * train_x)**2", "image * train_x[:100])**2"), ("softmax(1) @ train_x", "softmax(1) @ train_x[:100]")])
    x, train_x = few["test_x"], few["train_x"]
    assert all(a > b for a, b in zip(few["image_errors"](few["exact"], x), all_of_them["image_errors"](all_of_them["exact"], x)))
    drawn = few["draw_exact"](200)
    assert torch.cdist(drawn, train_x[:100]).amin(1).max() < .01
    assert len(torch.cdist(drawn, train_x).argmin(1).unique()) < len(torch.cdist(all_of_them["draw_exact"](200), train_x).argmin(1).unique())


# 10
def test_10_anywhere_nearly_every_owl_is_a_new_one():
    pictures, rng = Pictures(anywhere=True), random.Random(3)
    for style in "cartoon", "watercolor painting":
        assert len({pictures.compose(rng, "owl", style, "yellow", 64).tobytes() for _ in range(400)}) > 390


# 11
def test_11_a_duck_finds_the_teacher():
    text_encoder, image_encoder = load_encoders()
    pictures, tokenizer = Pictures(), pocket_tokenizer()
    asked = ("swan", "blue"), ("teddy bear", "green"), ("teacher", "white")
    for seed in 4, 0, 1:  # the notebook's own is 4
        images = [pictures.draw(random.Random(seed), s, "3d render", b).image for s, b in asked]
        table = similarity_table(text_encoder, image_encoder, tokenizer, ["a graceful duck", "a cute teddy", "a teacher"], images)
        assert table.argmax(1).tolist() == [2, 1, 2]


@pytest.fixture(scope="module")
def text_half():
    "Does the cells of notebook 11 that train a text half anew; `change` as in `names_of`."
    def done(change=()):
        text_encoder, image_encoder = load_encoders()
        known = dict(text_encoder=text_encoder, image_encoder=image_encoder, tokenizer=pocket_tokenizer(), pictures=Pictures(),
                     few=Pictures(subjects=LECTURE, styles=("3d render", "cartoon")))
        pieces = "import copy", "def an(", "class TextHalf(", "def some_pairs(", "def meaning(", "def play("
        return names_of("11_contrastive", *pieces, change=change, **{**vars(contrastive), **known})
    return done


def test_11_batches_of_eight_find_more_than_of_four_and_less_than_of_sixteen(text_half):
    play = text_half()["play"]
    found = [play(n, 64)[0] for n in (4, 8, 16)]
    assert found[0] < found[1] < found[2], found


def test_11_with_captions_of_other_pictures_little_is_learned(text_half):
    right = text_half()["play"](64, 64)[:2]
    nb = text_half([("[few_captions[i] for i in rows]", "[few_captions[i + 1] for i in rows]")])
    wrong = nb["play"](64, 64)[:2]
    assert wrong[1] > 3 and right[1] < 1.5  # the losses; guessing costs 4.16
    assert wrong[0] < .06 and right[0] > .5  # the shares that are found


# 12
def small_run(seed=0, **settings):
    torch.manual_seed(seed)
    few = Pictures(subjects=["parrot", "panda", "pizza", "swan", "castle", "apple"], styles=("flat illustration",))
    vae = pocket_vae()
    losses = vae_training(vae, [(few, 6)], 40, size=64, warmup=10, report_every=None, **settings)
    return vae, few.batch(24, seed=1, size=64)[0], losses


def test_12_a_heavy_price_for_the_width_leaves_one_picture():
    vae, pixels, _ = small_run(lr=4e-3, optimizer="muon", loss=lambda net: VAELoss(net, kl_weight=10))
    back = round_trip(vae, pixels)
    with torch.no_grad(): latents = vae.encode(pixels).latent_dist.mean
    assert latents.std(0).mean() < .1 and (back - back.mean(0)).square().mean().sqrt() < .06 < .5 < (pixels - pixels.mean(0)).square().mean().sqrt()


def test_12_averages_that_count_ten_times_are_bought_from_the_other_terms():
    pieces = "import copy", "class DigitAutoencoder(", "learn_from, aside =", "TERMS = {", "class WithoutTerm(", "def term_by_term("
    change = [("for name, term in TERMS.items() if name not in without]",
               "for name, term in TERMS.items() if name not in without for _ in range(10 if name == 'averages' else 1)]")]
    rows = []
    for changed in (), change:
        nb = names_of("12_autoencoder_training", *pieces, change=changed, **vars(autoencoder_training))
        way = nb["WithoutTerm"]()
        nb["fit"](way, nb["digit_batch"], 300, lr=2e-3, report_every=None)
        rows.append(nb["term_by_term"](way.cpu()))
    ratio = {name: rows[1][name] / rows[0][name] for name in rows[0]}
    assert .1 < ratio.pop("averages") < .22 and min(ratio.values()) > 1.2, ratio


def test_12_adamw_ends_higher_at_muons_rate():
    "Muon's loss is read off the notebook as it was executed."
    cells = json.loads((NBS / "12_autoencoder_training.ipynb").read_text(encoding="utf-8"))["cells"]
    cell, = (c for c in cells if "losses = vae_training(vae, [(few, 6)], 40, size=64, lr=4e-3, warmup=10" in "".join(c["source"]))
    said = "".join("".join(o.get("text", "")) for o in cell["outputs"])
    muon = float(re.search(r"step +40 of 40 +loss ([\d.]+)", said)[1])
    adamw = np.mean(small_run(lr=4e-3, optimizer="adamw")[2][-20:])
    assert adamw > muon + .05, (adamw, muon)
