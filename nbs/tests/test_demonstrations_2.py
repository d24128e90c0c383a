"What the sentences of 05 to 07 say about their pictures. The rules, and the tools, are in test_demonstrations.py."
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DPMSolverMultistepScheduler
from test_demonstrations import CAMPFIRE, CASTLE, MOSTLY, OWL, PARROT, TOGETHER, ask, new_list, picture, pixels, studio, ten
from transformers import CLIPVisionModelWithProjection

from deepdive.autoencoder import image_tensor, pil_to_latents
from deepdive.guidance import blue_loss, decode, guided_txt2img, loss_gradient, symmetry
from deepdive.sampling_loop import (
    data_folder, denoise, encode_prompt, initial_latents, mean_difference, predict_noise, prepared, token_ids)
from deepdive.schedulers import euler, lms, noise_predictor, sigma_schedule
from deepdive.unet import attention_maps, saturation

CLAIMS, claim = new_list()
__all__ = ["studio"]  # a fixture, for this file's tests as well
HAT = "Oil painting of an otter in a top hat"


# ---------------------------------------------------------------- 05: the UNet, guidance
@claim("05")
def unscaled_latents_leave_noise_and_scaled_ones_a_mean_of_pictures(s):
    scheduler = prepared(s.models, None, 50)
    latents, told = s.noise(ten(32)) * scheduler.init_noise_sigma, s.embedded("A macaw", 10)
    with torch.no_grad():
        inputs = scheduler.scale_model_input(latents, scheduler.timesteps[0]), latents
        seen = [s.models.unet(x, 999, encoder_hidden_states=told).sample for x in inputs]
    scaled, unscaled = (latents - scheduler.sigmas[0] * noise for noise in seen)
    return [a.std() < 1 and b.std() > 3 for a, b in zip(scaled, unscaled)]


def fires(s, scale): return s.drawn(CAMPFIRE, scale=scale, sampler=s.euler)


@claim("05", MOSTLY)
def a_low_scale_draws_anything(s): return [not fire for fire in s.shows(fires(s, 1.), "campfire")]


@claim("05")
def a_middle_scale_draws_the_thing_named(s): return s.shows(fires(s, 7.5), "campfire")


@claim("05")
def a_high_scale_draws_it_in_harder_colours(s):
    same = s.shows(fires(s, 30.), "campfire")
    return [fire and saturation(high) > saturation(middle) for fire, high, middle in zip(same, fires(s, 30.), fires(s, 7.5))]


@claim("05")
def the_castle_bears_more(s):
    castles = s.drawn(CASTLE, scale=30., sampler=s.euler)
    return [saturation(castle) < saturation(fire) / 2 for castle, fire in zip(castles, fires(s, 30.))]


@claim("05", slow=True)
def bringing_the_spread_of_x0_back_halves_the_burning(s):
    def spread(x): return x.flatten(1).std(1)[:, None, None, None]
    @torch.no_grad()
    def make():
        cond, uncond, scheduler = s.embedded(CAMPFIRE, 10), encode_prompt(s.models, ""), prepared(s.models, s.euler, 30)
        latents = s.noise(ten(32)) * scheduler.init_noise_sigma
        for t, sigma in zip(scheduler.timesteps, scheduler.sigmas):
            guided, own = (latents - sigma * predict_noise(s.models, latents, t, cond, uncond, scale, scheduler) for scale in (30., 1.))
            calmer = guided * (.9 * spread(own) / spread(guided) + .1)
            latents = scheduler.step((latents - calmer) / sigma, t, latents).prev_sample
        return s.decoded(latents)
    return [saturation(gentle) < saturation(burnt) / 2 for gentle, burnt in zip(s.once("rescaled", make), fires(s, 30.))]


@claim("05")
def the_negative_prompt_removes_the_ground_that_it_names(s):
    owls = s.drawn(OWL, own=1)
    grounds = s.judged(owls, 2)
    others = s.drawn(OWL, own=1, negative=tuple(f"a {ground} background" for ground in grounds))
    return [a != b and owl for a, b, owl in zip(grounds, s.judged(others, 2), s.shows(others, "owl"))]


@claim("05")
def no_green_background_in_the_prompt_draws_one(s): return s.stands_on(s.drawn(f"{OWL}, no green background"), "green")


def noises_of_05(s): return torch.cat([initial_latents(s.models, 4, seed=32), s.noise(range(1, 10))])


def parrots(s, scale):
    "Thirteen, the first four with 05's own noise."
    def make():
        told, empty = s.embedded(PARROT, 13), encode_prompt(s.models, "")
        return s.decoded(denoise(s.models, noises_of_05(s), told, empty, 30, scale, scheduler=s.euler))
    return s.once(("parrots", scale), make)


@claim("05", slow=True)
def insisting_costs_variety(s):
    "In how many different things on different grounds four of them show: 05's four, and nine fours further on."
    free, insisted = ([len(set(zip(s.judged(four, 0), s.judged(four, 2)))) for four in (parrots(s, scale)[i:i + 4] for i in range(10))]
                      for scale in (1., 3.))
    return [a > b for a, b in zip(free, insisted)]


@claim("05", MOSTLY, slow=True)
def at_scale_1_not_every_picture_shows_what_was_asked_for(s): return [not all(s.shows(parrots(s, 1.)[i:i + 4], "parrot")) for i in range(10)]


@claim("05", slow=True)
def the_map_of_parrot_lies_on_the_bird(s):
    def make():
        total, tokenizer = torch.zeros(10, 256), s.models.tokenizer
        place = tokenizer(PARROT).input_ids.index(tokenizer("parrot").input_ids[1])
        def read(i, t, latents, noise_pred):
            for shares in maps:
                if shares.shape[-2] == 256: total.add_(shares[10:, :, :, place].mean(1))
            maps.clear()
        with attention_maps(s.models.unet) as maps:
            latents = denoise(s.models, s.noise(ten(32)), s.embedded(PARROT, 10), encode_prompt(s.models, ""), callback=read)
        return s.decoded(latents), total
    images, maps = s.once("maps", make)
    def bird(image):  # what is not as the corner is
        x = image_tensor(image)
        return F.avg_pool2d((x - x[..., :4, :4].mean((2, 3), keepdim=True)).abs().mean(1), 8).flatten()
    return [np.corrcoef(bird(i), m)[0, 1] > .4 for i, m in zip(images, maps)]


# ---------------------------------------------------------------- 06: schedulers
TURN = torch.linspace(1.2, 9., 300)
LINE = torch.stack([TURN.cos(), TURN.sin()], 1) * TURN[:, None] / 4


def toy_noise(x, sigma, t=None): return (x - (-torch.cdist(x, LINE).square() / (2 * sigma**2)).softmax(-1) @ LINE) / sigma


def toy_ends(n):
    "Where forty points of ten noises end after n of Euler's steps: (10, 40, 2), 06's own first."
    levels = torch.logspace(np.log10(2.5), -2, n) if n > 1 else torch.tensor([2.5])
    def end(seed): return [*euler(toy_noise, 2.5 * torch.randn(40, 2, generator=torch.Generator().manual_seed(seed)), range(n),
                                  torch.cat([levels, torch.zeros(1)]))][-1]
    return [end(seed) for seed in ten(1)]


def off(x): return torch.cdist(x, LINE).min(1).values.mean()


def pieces(x):
    near, i = torch.cdist(x, LINE).min(1)
    return len(set((i[near < .05] // 30).tolist()))


@claim("06", TOGETHER)
def arrows_point_to_the_middle_in_much_noise_and_to_the_line_in_little(studio):
    axis = torch.linspace(-3, 3, 15)
    grid = torch.cartesian_prod(axis, axis)
    far, near = (grid - sigma * toy_noise(grid, sigma) for sigma in (3., .2))
    assert (far - LINE.mean(0)).norm(dim=1).max() < .6 and off(near) < .05 < off(far)


@claim("06")
def thirty_steps_lead_onto_the_line(s): return [off(x) < .02 for x in toy_ends(30)]


@claim("06")
def one_step_leads_near_the_average(s): return [off(x) > .2 and (x - LINE.mean(0)).norm(dim=1).mean() < LINE.std() / 2 for x in toy_ends(1)]


@claim("06")
def two_steps_reach_the_line_but_not_all_of_it(s): return [off(x) < .05 and pieces(x) < 8 <= pieces(y) for x, y in zip(toy_ends(2), toy_ends(8))]


def hats(s, n=50):
    "06's Euler loop for ten noises: [(latents, expected end)] after each step."
    def make():
        noise_at, ends = noise_predictor(s.models, s.embedded(HAT, 10), encode_prompt(s.models, ""), 8.), []
        timesteps, sigmas = sigma_schedule(s.models, n)
        def noise_and_end(x, sigma, t):
            noise = noise_at(x, sigma, t)
            ends.append(x - sigma * noise)
            return noise
        return list(zip(euler(noise_and_end, s.noise(ten(32)) * sigmas[0], timesteps, sigmas), ends))
    return s.once(("hats", n), make)


def hat_pictures(s, step, which): return s.once(("hats", step, which), lambda: s.decoded(hats(s)[step - 1][which]))


@claim("06")
def of_otter_and_top_hat_it_takes_the_hat(s): return s.shows(hat_pictures(s, 50, 0), "top hat")


@claim("06")
def the_expected_end_shows_it_long_before_the_latents_do(s):
    seen, here = (s.shows(hat_pictures(s, 20, which), "top hat") for which in (1, 0))
    return [a and not b for a, b in zip(seen, here)]


@claim("06")
def the_expected_end_comes_nearer_to_the_end(s):
    rows = [[mean_difference(a, b) for a, b in zip(hat_pictures(s, step, 1), hat_pictures(s, 50, 0))] for step in (1, 10, 30)]
    return [one > ten > thirty for one, ten, thirty in zip(*rows)]


@claim("06")
def the_first_expected_end_is_a_blur(s):
    def sharp(image):
        grey = pixels(image).mean(-1)
        return np.abs(np.diff(grey, 2, 0)[:, 1:-1] + np.diff(grey, 2, 1)[1:-1]).mean()
    return [sharp(first) < sharp(last) for first, last in zip(hat_pictures(s, 1, 1), hat_pictures(s, 50, 0))]


@claim("06")
def eight_steps_come_nearer_to_fifty_than_one_or_three(s):
    def far(n): return [(a - b).square().mean() for a, b in zip(hats(s, n)[-1][0], hats(s)[-1][0])]
    return [eight < min(one, three) for one, three, eight in zip(far(1), far(3), far(8))]


@claim("06")
def unscaled_the_unet_names_less_of_the_noise(s):
    table, noise = s.models.scheduler.alphas_cumprod, s.noise(ten(32))
    known, told = pil_to_latents(s.models.vae, picture("parrot")), s.embedded("a 3d render of a parrot", 10)
    def error(seen, t):
        with torch.no_grad(): return (s.models.unet(seen, t, encoder_hidden_states=told).sample - noise).square().mean((1, 2, 3))
    def pair(t):
        sigma = ((1 - table[t]) / table[t])**.5
        x = known + sigma * noise
        return error(x / (sigma**2 + 1)**.5, t) < error(x, t)
    return torch.stack([pair(t) for t in (900, 700, 500, 300)]).all(0).tolist()


def colourful(image): return np.ptp(pixels(image), -1).mean()  # how far the pixels are from grey


def ablated(s, init=True, scale=True):
    def make():
        own = initial_latents(s.models, 6, seed=32)[3:4]  # 06 draws six prompts at once, the owl is the fourth
        noise_at, (timesteps, sigmas) = noise_predictor(s.models, s.embedded(OWL, 10), encode_prompt(s.models, ""), 8.), sigma_schedule(s.models, 30)
        x = torch.cat([own, s.noise(range(1, 10))]) * (sigmas[0] if init else 1)
        for t, sigma, next_sigma in zip(timesteps, sigmas, sigmas[1:]):
            x = x + noise_at(x if scale else x * (sigma**2 + 1)**.5, sigma, t) * (next_sigma - sigma)
        return s.decoded(x)
    return s.once(("ablated", init, scale), make)


@claim("06", slow=True)
def without_init_noise_sigma_almost_all_grounds_are_green(s): return s.stands_on(ablated(s, init=False), "green")


@claim("06", slow=True)
def without_scale_model_input_colours_go(s): return [colourful(b) < colourful(a) for a, b in zip(ablated(s), ablated(s, scale=False))]


def castles(s, sampler): return s.drawn(CASTLE, steps=30, scale=20., sampler=sampler)


def burnt(s, sampler): return [saturation(i) for i in castles(s, sampler)]


@claim("06", TOGETHER)
def at_scale_20_lms_often_falls_to_blots(s):
    blots = [share > .05 and not named for share, named in zip(burnt(s, None), s.shows(castles(s, None), "castle"))]
    assert sum(blots) >= 5, blots


@claim("06")
def euler_burns_less(s): return [a < b for a, b in zip(burnt(s, s.euler), burnt(s, None))]


@claim("06", TOGETHER, slow=True)
def on_average_dpm_and_lms_with_two_answers_burn_less(studio):
    def two_answers():
        noise_at = noise_predictor(studio.models, studio.embedded(CASTLE, 10), encode_prompt(studio.models, ""), 20.)
        timesteps, sigmas = sigma_schedule(studio.models, 30)
        return studio.decoded([*lms(noise_at, studio.noise(ten(32)) * sigmas[0], timesteps, sigmas, 2)][-1])
    dpm = DPMSolverMultistepScheduler.from_config(studio.models.scheduler.config)
    most, *less = (np.mean(x) for x in (burnt(studio, None), burnt(studio, dpm), [saturation(i) for i in studio.once("order 2", two_answers)]))
    assert max(less) < .75 * most, (most, less)


# ---------------------------------------------------------------- 07: guidance by a loss
def pushed(s, prompt, loss, loss_scale, own=32, steps=50, **settings):
    "Ten pictures, as `guided_txt2img` makes them one by one: a mean over ten pictures, times ten, pushes each as if it were alone."
    def make():
        noise = s.noise(ten(own))
        with patch("deepdive.guidance.initial_latents", lambda *_: noise):
            return guided_txt2img(s.models, [prompt] * 10, lambda images: 10 * loss(images), loss_scale, num_inference_steps=steps, **settings)
    return s.once(("pushed", prompt, loss, loss_scale, steps, *settings.items()), make)


def unpushed(s, prompt, steps=50): return s.drawn(prompt, steps=steps, scale=8., sampler=s.euler)
def scored(images, loss): return [loss(image_tensor(i) / 2 + .5).item() for i in images]


def test_ten_pushed_at_once_are_the_notebooks_own_calls(studio):
    alone, = guided_txt2img(studio.models, CAMPFIRE, blue_loss, 40., num_inference_steps=5, seed=1)
    assert mean_difference(alone, pushed(studio, CAMPFIRE, blue_loss, 40., steps=5)[1]) < 1


@claim("07")
def a_longer_push_lowers_the_loss_further(s):
    noise_at, (timesteps, sigmas) = noise_predictor(s.models, s.embedded(CAMPFIRE, 10), encode_prompt(s.models, ""), 8.), sigma_schedule(s.models, 50)
    x = [*euler(noise_at, s.noise(ten(32)) * sigmas[0], timesteps[:3], sigmas[:4])][-1]
    gradient = loss_gradient(s.models, x, sigmas[3], timesteps[3], noise_at, lambda images: 10 * blue_loss(images))[1]
    def after(scale):
        p = x - scale * sigmas[3]**2 * gradient
        with torch.no_grad(): images = decode(s.models.vae, p - sigmas[3] * noise_at(p, sigmas[3], timesteps[3]))
        return (images[:, 2] - .9).abs().mean((1, 2)).tolist()
    return [sorted(losses, reverse=True) == [*losses] for losses in zip(*map(after, (0, 40, 160)))]


def blue(s): return pushed(s, CAMPFIRE, blue_loss, 40.)


@claim("07")
def the_blue_loss_lowers_itself(s): return [b < a for a, b in zip(scored(unpushed(s, CAMPFIRE), blue_loss), scored(blue(s), blue_loss))]


@claim("07")
def and_raises_blue(s): return [pixels(b)[..., 2].mean() > pixels(a)[..., 2].mean() + 20 for a, b in zip(unpushed(s, CAMPFIRE), blue(s))]


@claim("07")
def it_goes_into_the_ground_which_turns_white_or_blue(s): return [ground in ("white", "blue") for ground in s.judged(blue(s), 2)]


ON_GREY = f"{CAMPFIRE} on a grey background"
def symmetric(s): return pushed(s, ON_GREY, symmetry, 100., every=2, start=.1)


@claim("07", slow=True)
def symmetry_gets_what_it_asks_for(s): return [b < a for a, b in zip(scored(unpushed(s, ON_GREY), symmetry), scored(symmetric(s), symmetry))]


@claim("07", slow=True)
def the_symmetric_fire_is_still_a_fire(s): return s.shows(symmetric(s), "campfire")


def strawberry_loss(s):
    def make():
        eye = CLIPVisionModelWithProjection.from_pretrained(data_folder() / "pocket-sd" / "image_encoder").requires_grad_(False)
        with torch.no_grad(): caption = s.models.text_encoder(token_ids(s.models, "a 3d render of a strawberry")).pooler_output
        def unlike(images): return 1 - F.cosine_similarity(eye(F.adaptive_avg_pool2d(2 * images - 1, 64)).image_embeds, caption).mean()
        return unlike
    return s.once("strawberry", make)


def towards_a_strawberry(s):
    unlike = strawberry_loss(s)
    return pushed(s, "a 3d render of a lion", unlike, 20., steps=30, every=2), unlike


@claim("07", slow=True)
def to_the_encoder_it_is_nearly_as_good_as_a_real_strawberry(s):
    images, unlike = towards_a_strawberry(s)
    real, = scored([picture("strawberry")], unlike)
    return [loss < real + .2 for loss in scored(images, unlike)]


@claim("07", slow=True)
def to_the_eye_it_is_none(s): return [not fruit for fruit in s.shows(towards_a_strawberry(s)[0], "strawberry")]


@pytest.mark.parametrize("check, share", CLAIMS)
def test_claim(studio, check, share): ask(studio, check, share)
