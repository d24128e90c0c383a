"Notebooks 03 to 07: what cannot be asserted inside them."
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler,
    LMSDiscreteScheduler, StableDiffusionPipeline)
from PIL import Image

from deepdive.guidance import guided_txt2img, loss_gradient
from deepdive.sampling_loop import encode_prompt, initial_latents, mean_difference
from deepdive.schedulers import ddim, ddim_timesteps, dpmpp_2m, dpmpp_timesteps, euler, heun, lms, noise_predictor, sigma_schedule
from deepdive.text_encoder import picture_from, text_embeddings_from, token_embeddings_of
from deepdive.unet import attention_maps, saturation, txt2img

RED = Image.new("RGB", (16, 16), "red")


# ---------------------------------------------------------------- 03: text
def test_hand_made_embeddings_match_words(models):
    embeddings, ids = token_embeddings_of(models, ["a puppy", "a cat on a red background"])
    assert torch.equal(text_embeddings_from(models, embeddings), encode_prompt(models, ["a puppy", "a cat on a red background"]))
    assert ids[0, :4].tolist() == [49406, 320, 6829, 49407]
    assert torch.equal(encode_prompt(models, "a puppy"), encode_prompt(models, "a puppy"))  # the hook is gone again


def test_picture_from_equals_txt2img(models):
    by_hand = picture_from(models, encode_prompt(models, "an owl"), seed=3, num_inference_steps=4, negative_prompt="red")
    assert mean_difference(by_hand, txt2img(models, "an owl", "red", 4, seed=3)[0]) == 0


def test_no_negative_prompt_is_the_empty_one(models):
    plain = txt2img(models, "an owl", num_inference_steps=2)[0]
    assert mean_difference(plain, txt2img(models, "an owl", None, np.int64(2), torch.tensor(7.5), np.int32(32))[0]) == 0
    assert mean_difference(*(guided_txt2img(models, "an owl", lambda i: i.mean(), negative_prompt=n, num_inference_steps=2)[0]
                             for n in ("", None))) == 0


# ---------------------------------------------------------------- 05: UNet
@pytest.mark.parametrize("cls", [LMSDiscreteScheduler, DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, DPMSolverMultistepScheduler,
                                 EulerAncestralDiscreteScheduler])
def test_txt2img_equals_the_pipeline(models, cls):
    pipe = StableDiffusionPipeline(vae=models.vae, text_encoder=models.text_encoder, tokenizer=models.tokenizer, unet=models.unet,
                                   scheduler=cls.from_config(models.scheduler.config), safety_checker=None, feature_extractor=None,
                                   requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    prompts = ["an owl", "a cartoon of a castle"]
    theirs = pipe(prompts, negative_prompt=["red", "red"], num_inference_steps=5, generator=torch.Generator().manual_seed(32)).images
    ours = txt2img(models, prompts, "red", 5, scheduler=cls.from_config(models.scheduler.config))
    assert max(mean_difference(a, b) for a, b in zip(theirs, ours)) < 1


def test_attention_processors_are_put_back(models):
    before = models.unet.attn_processors
    with pytest.raises(RuntimeError, match="stop"):
        with attention_maps(models.unet) as maps:
            txt2img(models, "an owl", num_inference_steps=1)
            raise RuntimeError("stop")
    assert models.unet.attn_processors == before
    assert maps and all(torch.allclose(m.sum(-1), torch.ones(()), atol=1e-4) and m.shape[-1] == 77 for m in maps)


# ---------------------------------------------------------------- 06: samplers on a problem whose answer is known
def gaussian_noise_at(x, sigma, t): return x * sigma / (1 + sigma**2)  # data ~ N(0, 1): the perfect prediction


@pytest.mark.parametrize("sampler, tolerance", [(euler, .03), (heun, .002), (lms, .01)])
def test_samplers_solve_the_gaussian(models, sampler, tolerance):
    "For data ~ N(0, 1) the path is known: x ends at x0 / sqrt(1 + sigma0^2)."
    timesteps, sigmas = sigma_schedule(models, 100)
    x = torch.tensor([3., -2.], dtype=torch.float64) * sigmas[0]
    *_, end = sampler(gaussian_noise_at, x, timesteps, sigmas.double())
    assert torch.allclose(end, x / (1 + sigmas[0].double()**2)**.5, rtol=tolerance)


@pytest.mark.parametrize("sampler, spacing", [(ddim, ddim_timesteps), (dpmpp_2m, dpmpp_timesteps)])
def test_variance_keeping_samplers_keep_the_gaussian(models, sampler, spacing):
    x = torch.tensor([1.5, -.7], dtype=torch.float64)
    *_, end = sampler(gaussian_noise_at, x, spacing(models, 50), models.scheduler.alphas_cumprod.double())
    assert torch.allclose(end, x, rtol=.06)


@pytest.mark.parametrize("n", [1, 2, 501, 999])
def test_spacings_stay_on_the_table(models, n):
    for spacing in ddim_timesteps, dpmpp_timesteps:
        timesteps = spacing(models, n).tolist()
        assert len(timesteps) == n and 0 < min(timesteps) and max(timesteps) <= 999 and sorted(set(timesteps), reverse=True) == timesteps


def test_many_steps_end_well(models):
    x = torch.tensor([1.5, -.7], dtype=torch.float64)
    for sampler, spacing in ((ddim, ddim_timesteps), (dpmpp_2m, dpmpp_timesteps)):
        *_, end = sampler(gaussian_noise_at, x, spacing(models, 999), models.scheduler.alphas_cumprod.double())
        assert torch.allclose(end, x, rtol=.06)


def test_the_predictor_takes_latents_of_another_dtype(models):
    noise_at, x = noise_predictor(models, encode_prompt(models, "an owl")), initial_latents(models).double()
    noise = noise_at(x * 2, torch.tensor(2.), 500.)
    assert noise.dtype == torch.float64 and torch.allclose(noise.float(), noise_at(x.float() * 2, torch.tensor(2.), 500.), atol=1e-3)


# ---------------------------------------------------------------- 07: losses
def test_loss_gradient_is_the_gradient(models):
    "Against finite differences, both ways."
    noise_at, x, sigma, t = noise_predictor(models, encode_prompt(models, "an owl")), initial_latents(models) * 2, torch.tensor(2.), 500.
    def loss_fn(images): return images.square().mean()
    for through in (False, True):
        loss, gradient = loss_gradient(models, x, sigma, t, noise_at, loss_fn, through)
        fixed = noise_at(x, sigma, t)
        def at(y): return loss_gradient(models, y, sigma, t, noise_at if through else lambda *_: fixed, loss_fn)[0]
        direction = gradient / gradient.norm()
        slope = (at(x + .05 * direction) - at(x - .05 * direction)) / .1
        assert abs(slope / gradient.norm().item() - 1) < .05


def test_loss_scale_zero_is_eulers_loop(models):
    guided = guided_txt2img(models, "an owl", lambda i: i.mean(), loss_scale=0., num_inference_steps=5, guidance_scale=7.5)[0]
    plain = txt2img(models, "an owl", num_inference_steps=5, scheduler=EulerDiscreteScheduler.from_config(models.scheduler.config))[0]
    assert mean_difference(guided, plain) < .5


def test_pushes_come_every_few_steps_from_the_start_on(models):
    pushed = []
    guided_txt2img(models, "an owl", lambda i: i.mean(), every=2, start=.5, num_inference_steps=8, report=lambda i, loss: pushed.append(i))
    assert pushed == [4, 6]


def test_saturation_counts_limits():
    half = Image.fromarray(np.concatenate([np.zeros((4, 4, 3)), np.full((4, 4, 3), 128)]).astype(np.uint8))
    assert saturation(half) == .5 and saturation(RED) == 1
