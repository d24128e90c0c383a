"What *Change this, expect that* of 13 to 17 says, as far as it can be asked in seconds. (The third of 08 is in test_playground.)"
import ast
import json
import random
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from deepdive.autoencoder import pil_to_latents, psnr
from deepdive.denoising import fit
from deepdive.editing import edit, inpaint, invert, load_editor
from deepdive.editing_parts import edits
from deepdive.evaluation import SHOWCASE, at_limit, combinations, judged_images, scores, with_article
from deepdive.finetuning import batches, copied, example_folder, learners, lesson, own_pictures
from deepdive.image_to_image import img2img
from deepdive.latent_diffusion import (DiffusionLoss, cache_latents, generate, pocket_unet, training_alphas, training_models,
                                       unet_training)
from deepdive.pictures import POCKET_STYLES, Pictures, judge_images, load_judge, train_judge
from deepdive.sampling_loop import data_folder, encode_prompt, latents_to_pil, mean_difference, seeded
from deepdive.schedulers import euler, noise_predictor, sigma_schedule
from deepdive.speed import OtherUNet, few_steps, solver
from deepdive.unet import txt2img
from execute import NBS
from PIL import Image
from scipy.ndimage import label


@cache
def judge(): return load_judge()
def named(images): return [subject for subject, *_ in judge_images(judge(), images)]


def notebook_function(notebook, name, **names):
    "A function that a notebook defines and does not export."
    cells = json.loads((NBS / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    trees = [ast.parse("".join(c["source"])) for c in cells if c["cell_type"] == "code" and f"def {name}(" in "".join(c["source"])]
    exec(compile(ast.Module([node for node in trees[0].body if getattr(node, "name", "") == name], []), notebook, "exec"), names)
    return names[name]


@pytest.fixture(scope="module")
def trained():
    "13's small run with a narrower UNet on fewer pictures: its losses at first and at last."
    trial = training_models(data_folder() / "pocket-sd")
    few = Pictures(subjects=["parrot", "panda", "pizza", "swan", "castle", "apple"], styles=("3d render",))
    cache, known = cache_latents(trial.vae, few, 64), {}
    def run(drop=.1, snr_cap=5.):
        if (drop, snr_cap) not in known:
            torch.manual_seed(0)
            unet = pocket_unet((32, 64, 96))
            loss = DiffusionLoss(unet, training_alphas(), snr_cap=snr_cap)
            losses = unet_training(replace(trial, unet=unet), cache, few, 50, batch_size=6, drop=drop, warmup=10, report_every=0, loss=loss)
            known[drop, snr_cap] = np.mean(losses[:10]), np.mean(losses[-20:])
        return known[drop, snr_cap]
    return run


def test_13_1_fifty_steps_without_captions_learn_as_much(trained):
    begun, plain = trained()
    assert plain < .5 * begun and abs(trained(drop=1.)[1] / plain - 1) < .04


def test_13_2_without_the_cap_the_loss_ends_about_a_quarter_higher(trained): assert 1.1 < trained(snr_cap=1e9)[1] / trained()[1] < 1.4


def test_13_3_scale_1_draws_other_things_and_2_mostly_the_right_ones(models):
    asked = ["a parrot", "a panda", "a pizza", "a swan", "a castle"]
    right = [np.mean([n == a[2:] for seed in (0, 100) for n, a in zip(named(generate(models, asked, 20, scale, seed)), asked)])
             for scale in (1., 2.)]
    assert right[0] <= .4 < .6 <= right[1]


def test_14_1_five_steps_have_subjects_and_grounds_and_the_otter_burns(models):
    five, thirty = (generate(models, SHOWCASE[:6], steps, seed=32) for steps in (5, 30))
    said = judge_images(judge(), five)
    assert [s for s, *_ in said[1:]] == ["campfire", "parrot", "castle", "robot", "puppy"]
    assert [ground for *_, ground in said[2:5]] == ["blue", "pink", "yellow"]
    assert at_limit(five[:1]) > .01 > 10 * at_limit(thirty[:1])


def test_14_2_without_guidance_the_castle_comes_later(models):
    lion = Pictures(splits=("train",), styles=POCKET_STYLES).draw(random.Random(1), "lion", "3d render", "orange").image
    said = {scale: named([img2img(models, "a cartoon of a castle on a pink background", lion, s, 30, scale, scheduler=solver(models, "Euler"))[0]
                          for s in (.6, .8)]) for scale in (1., 7.5)}
    assert said[1.][0] != "castle" and said[1.][1] == "castle" and said[7.5] == ["castle", "castle"]


def test_14_3_a_judge_of_sixty_steps_misnames_real_composites(models):
    pictures = Pictures(splits=("train",), styles=POCKET_STYLES)
    asked, (young, _) = combinations(pictures, 100, False), train_judge(pictures, 60, batch_size=24, report_every=0)
    real = judged_images("real", models, pictures, asked)
    assert scores(young, asked, real)["subject"] < .3 < .95 < scores(judge(), asked, real)["subject"]


def test_15_1_at_a_rate_of_3e_2_plain_ducks_become_dodos_and_styles_go(models, tmp_path):
    taught, images = copied(models), own_pictures(example_folder("dodo", tmp_path / "dodo")).values()
    dodos = lesson(models, images, ["a picture of a sks duck"] * 6)
    torch.manual_seed(0)
    fit(learners(taught, "lora"), batches(taught, dodos), 16, lr=3e-2, warmup=5, weight_decay=0, report_every=0)
    asked = [f"{with_article(style)} of a duck" for style in POCKET_STYLES]
    said = judge_images(judge(), generate(taught, asked, steps=15, seed=20))
    assert [s for s, *_ in said].count("dodo") >= 3 and "duck" not in [s for s, *_ in said]
    assert sum(style == asked for (_, style, _), asked in zip(said, POCKET_STYLES)) <= 3


def pieces(image, least=300):
    "How many pieces of `least` pixels or more the drawing has, and how uneven its inside is."
    a = np.asarray(image, dtype=float)
    drawn = np.abs(a - np.median(a[:3].reshape(-1, 3), 0)).sum(-1) > 60
    marked, n = label(drawn)
    return sum((marked == k + 1).sum() >= least for k in range(n)), np.abs(np.diff(a, axis=0)).mean(-1)[drawn[1:] & drawn[:-1]].mean()


def test_15_2_a_dodo_lora_at_1_5_is_no_better_and_comes_apart(models):
    finished, found = copied(models), {}
    finished.unet.load_lora_adapter(data_folder() / "embeddings", weight_name="dodo_lora.safetensors", prefix="unet", adapter_name="default")
    for scale in (1., 1.5):
        finished.unet.set_adapters("default", scale)
        images = generate(finished, ["a 3d render of a sks duck on a green background"] * 8, steps=20, seed=8)
        found[scale] = named(images).count("dodo"), *np.mean([pieces(i) for i in images], 0)
    (dodos, parts, uneven), (more_dodos, more_parts, more_uneven) = found.values()
    assert more_dodos <= dodos and more_parts > parts + .2 and more_uneven > 1.2 * uneven


def four_and(models, steps, scale, n=24):
    asked = combinations(Pictures(splits=("train",), styles=POCKET_STYLES), n, False, seed=100)
    images = txt2img(models, [a[3] for a in asked], num_inference_steps=steps, guidance_scale=scale)
    return scores(judge(), asked, images)["subject"], at_limit(images)


@pytest.fixture(scope="module")
def in_four(models):
    few = few_steps(models)
    return few, four_and(few, 4, 1)


def test_16_1_eight_steps_of_the_lora_are_about_as_good_as_four(in_four):
    few, (right, _) = in_four
    few.scheduler.set_timesteps(8)
    eight = few.scheduler.timesteps.tolist()
    few.scheduler.set_timesteps(4)
    assert set(few.scheduler.timesteps.tolist()) < set(eight) and abs(four_and(few, 8, 1)[0] - right) < .13 and right > .8


def test_16_2_guided_twice_it_burns_and_most_subjects_go(in_four):
    few, (right, limit) = in_four
    burnt = four_and(few, 4, 7.5)
    assert burnt[0] < .5 < .8 < right and burnt[1] > .1 > .03 > limit


def test_16_3_one_whole_call_leaves_blotches_and_three_most_subjects(models):
    skipping = notebook_function("16_speed", "skipping", torch=torch, OtherUNet=OtherUNet)
    asked = combinations(Pictures(splits=("train",), styles=POCKET_STYLES), 12, False, seed=100)
    ten, thirty = (scores(judge(), asked, txt2img(replace(models, unet=skipping(models.unet, 10)), [a[3] for a in asked], num_inference_steps=n))
                   for n in (10, 30))
    assert ten["subject"] < .5 < .65 <= thirty["subject"] and ten["background"] >= .5


def test_17_1_where_all_may_change_inpainting_is_text_to_image(models):
    prompt, white, case = "a cartoon of an owl", Image.new("L", (128, 128), 255), edits(2)
    one, other = inpaint(models, prompt, case[0].image, white, 10, seed=3), inpaint(models, prompt, case[1].image, white, 10, seed=3)
    assert np.array_equal(one[0], other[0]) and named(one) == ["owl"]
    generator = seeded(3)
    pil_to_latents(models.vae, [case[0].image], generator)  # draws from it, too
    noise_at = noise_predictor(models, encode_prompt(models, prompt), encode_prompt(models, ""), 7.5)
    timesteps, sigmas = sigma_schedule(models, 10)
    with torch.no_grad(): *_, x = euler(noise_at, torch.randn(1, 4, 16, 16, generator=generator) * sigmas[0], timesteps, sigmas)
    assert mean_difference(one[0], latents_to_pil(models.vae, x)[0]) < .5


def test_17_2_inverted_with_the_empty_prompt_it_ends_a_little_further_off(models):
    cases = edits(2)
    images, before = [c.image for c in cases], [c.before for c in cases]
    noise_at, found = noise_predictor(models, encode_prompt(models, before), encode_prompt(models, ""), 1.), []
    for prompts in before, [""] * 2:
        x = invert(models, prompts, images, 20)
        with torch.no_grad(): *_, x = euler(noise_at, x, *sigma_schedule(models, 20))
        found.append(np.mean([psnr(a, b) for a, b in zip(latents_to_pil(models.vae, x), images)]))
    own, empty = found
    assert own - 4 < empty < own - 1


def test_17_3_without_a_push_from_the_picture_grounds_go_and_something_stays(models):
    cases, editor = [c for c in edits(18) if c.kind != "ground"][:10], load_editor(models)
    images, told = [c.image for c in cases], [c.instruction for c in cases]
    grounds = [ground for *_, ground in judge_images(judge(), images)]
    made = {scale: edit(editor, told, images, image_guidance_scale=scale) for scale in (1., 0.)}
    kept = {scale: sum(a == ground for (*_, a), ground in zip(judge_images(judge(), made[scale]), grounds)) for scale in made}
    assert kept[1.] >= 9 and kept[0.] <= 6
    own, others = (np.mean([psnr(a, b) for a, b in zip(made[0.], some)]) for some in (images, images[1:] + images[:1]))
    assert own > others + 1
