"Notebooks 01 to 07: what cannot be asserted inside them."

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler,
    LMSDiscreteScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline)
from PIL import Image

from deepdive.guidance import guided_txt2img, loss_gradient
from deepdive.schedulers import ddim, ddim_timesteps, dpmpp_2m, dpmpp_timesteps, euler, heun, lms, noise_predictor, sigma_schedule
from deepdive.unet import (
    attention_maps, data_folder, encode_prompt, first_step, image_tensor, img2img, initial_latents, latents_to_pil, mean_difference, pil_to_latents,
    psnr, saturation, text_embeddings_from, to_rgb, token_embeddings_of, txt2img)

PARROT = data_folder() / "emoji" / "3d_render" / "parrot.webp"


@pytest.fixture(scope="module")
def parrot(): return to_rgb(Image.open(PARROT))


# ---------------------------------------------------------------- 01: images of any mode and size
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
def test_every_mode_becomes_rgb(mode):
    assert to_rgb(Image.new(mode, (10, 6))).mode == "RGB" and to_rgb(Image.new(mode, (10, 6))).size == (10, 6)


def test_transparency_lies_on_white_and_exif_is_obeyed(tmp_path):
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert to_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4))
    palette.info["transparency"] = 0
    assert to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)
    image, exif = Image.new("RGB", (20, 10), "red"), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert to_rgb(Image.open(tmp_path / "turned.jpg")).size == (10, 20)
    deep = Image.fromarray(np.full((4, 4), 65535 // 2, np.uint16))
    assert abs(to_rgb(deep).getpixel((0, 0))[0] - 127) <= 1


@pytest.mark.parametrize("size, expected", [((128, 128), (128, 128)), ((130, 61), (128, 64)), ((3, 200), (8, 200)), ((21, 29), (24, 32))])
def test_sides_go_to_the_nearest_multiple_of_eight(size, expected):
    assert tuple(image_tensor(Image.new("RGB", size)).shape[:1:-1]) == expected


def test_pil_to_latents_takes_lists_and_samples(models, parrot):
    mean, both = pil_to_latents(models.vae, parrot), pil_to_latents(models.vae, [parrot, parrot.rotate(90)])
    assert mean.shape == (1, 4, 16, 16) and torch.allclose(both[:1], mean, atol=1e-4)
    a, b = (pil_to_latents(models.vae, parrot, torch.Generator().manual_seed(s)) for s in (1, 2))
    assert not torch.equal(a, b) and torch.equal(a, pil_to_latents(models.vae, parrot, torch.Generator().manual_seed(1)))
    assert psnr(parrot, latents_to_pil(models.vae, mean)[0]) > 18 and psnr(parrot, parrot) > 90


# ---------------------------------------------------------------- 02: image to image
@pytest.mark.parametrize("cls", [LMSDiscreteScheduler, DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, DPMSolverMultistepScheduler,
                                 EulerAncestralDiscreteScheduler])
@pytest.mark.parametrize("strength", [.35, 1.])
def test_img2img_equals_the_pipeline(models, parrot, cls, strength):
    pipe = StableDiffusionImg2ImgPipeline(vae=models.vae, text_encoder=models.text_encoder, tokenizer=models.tokenizer, unet=models.unet,
                                          scheduler=cls.from_config(models.scheduler.config), safety_checker=None, feature_extractor=None,
                                          requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe("an owl", parrot, strength=strength, num_inference_steps=6, generator=torch.Generator().manual_seed(32)).images[0]
    ours = img2img(models, "an owl", parrot, strength, 6, scheduler=cls.from_config(models.scheduler.config))[0]
    assert mean_difference(theirs, ours) < 1


def test_strength_counts_steps_as_diffusers_does(models, parrot):
    assert [first_step(s, 50) for s in (0, .5, .8, 1)] == [50, 25, 10, 0] and first_step(.3, 3) == 3
    trip = latents_to_pil(models.vae, pil_to_latents(models.vae, parrot, torch.Generator().manual_seed(32)))[0]
    assert mean_difference(img2img(models, "an owl", parrot, strength=0)[0], trip) == 0
    two = img2img(models, ["an owl", "a panda"], parrot, .9, 4)
    assert len(two) == 2 and mean_difference(*two) > 1


# ---------------------------------------------------------------- 03: text
def test_hand_made_embeddings_match_words(models):
    embeddings, ids = token_embeddings_of(models, ["a puppy", "a cat on a red background"])
    assert torch.equal(text_embeddings_from(models, embeddings), encode_prompt(models, ["a puppy", "a cat on a red background"]))
    assert ids[0, :4].tolist() == [49406, 320, 6829, 49407]
    assert torch.equal(encode_prompt(models, "a puppy"), encode_prompt(models, "a puppy"))  # the hook is gone again


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


# ---------------------------------------------------------------- bad input
RED = Image.new("RGB", (16, 16), "red")


@pytest.mark.parametrize("call, error, message", [
    (lambda m: to_rgb("parrot.png"), TypeError, "expected a PIL image, got str: open it with PIL.Image.open"),
    (lambda m: image_tensor([]), ValueError, "no images: give a PIL image"),
    (lambda m: image_tensor([RED, RED.resize((32, 16))]), ValueError, r"different sizes \[\(16, 16\), \(32, 16\)\]"),
    (lambda m: pil_to_latents(m.vae, np.zeros((8, 8, 3))), TypeError, "expected a PIL image, got ndarray"),
    (lambda m: img2img(m, ["a", "b"], RED, negative_prompt=["x", "y", "z"]), ValueError,
     "3 negative prompts for 2 prompts: give one, or one for each"),
    (lambda m: img2img(m, "a", RED, strength=1.5), ValueError, r"strength must lie in \[0, 1\], not 1.5"),
    (lambda m: img2img(m, "a", RED, strength=-.1), ValueError, r"strength must lie in \[0, 1\], not -0.1"),
    (lambda m: first_step(.5, 0), ValueError, "num_inference_steps must be at least 1, not 0"),
    (lambda m: img2img(m, ["a"] * 3, [RED, RED]), ValueError, "2 images but 3 prompts"),
    (lambda m: text_embeddings_from(m, torch.zeros(1, 77, 768)), ValueError, r"\(batch, 77, 128\), not \(1, 77, 768\); an embedding made"),
    (lambda m: text_embeddings_from(m, torch.zeros(77, 128)), ValueError, r"not \(77, 128\)"),
    (lambda m: txt2img(m, ["a", "b", "c"], ["x", "y"]), ValueError, "2 negative prompts for 3 prompts"),
    (lambda m: txt2img(m, "a", num_inference_steps=-3), ValueError, "at least 1, not -3"),
    (lambda m: guided_txt2img(m, "a", lambda i: i.mean(), every=0), ValueError, "every must be at least 1, not 0"),
    (lambda m: guided_txt2img(m, "a", lambda i: i.mean(), start=-.1), ValueError, r"start must lie in \[0, 1\], not -0.1"),
    (lambda m: guided_txt2img(m, "a", lambda i: i), ValueError, r"single number, not a tensor of shape \(1, 3, 128, 128\)"),
])
def test_bad_input(models, call, error, message):
    with pytest.raises(error, match=message): call(models)


def test_saturation_counts_limits():
    half = Image.fromarray(np.concatenate([np.zeros((4, 4, 3)), np.full((4, 4, 3), 128)]).astype(np.uint8))
    assert saturation(half) == .5 and saturation(RED) == 1
