"The helpers of 00 to 07 on random weights in the very shapes of SD 1.5 (860 M parameters in the UNet), at 8 x 8 latents, a step or two."
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from benchmark import random_sd1
from deepdive.autoencoder import pil_to_latents
from deepdive.denoising import choose_precision
from deepdive.guidance import guided_txt2img
from deepdive.image_to_image import img2img
from deepdive.sampling_loop import denoise, encode_prompt, initial_latents, latents_to_pil
from deepdive.schedulers import euler, noise_predictor, sigma_schedule
from deepdive.text_encoder import text_embeddings_from, token_embeddings_of
from deepdive.textual_inversion import add_token
from deepdive.unet import attention_maps, txt2img


@pytest.fixture(scope="module")
def sd15():
    return random_sd1("cpu", torch.bfloat16 if choose_precision("cpu") == "bf16" else torch.float32)  # emulated bfloat16 is many times slower


def test_sizes_are_sd15s_own(sd15):
    sizes = [sum(p.numel() for p in m.parameters()) for m in (sd15.unet, sd15.vae, sd15.text_encoder)]
    assert [round(s / 1e6) for s in sizes] == [860, 84, 123]
    assert initial_latents(sd15).shape == (1, 4, 64, 64) and not sd15.is_pocket


@pytest.fixture
def small(sd15):
    "The same with a default size of 64 x 64 pixels."
    sd15.unet.register_to_config(sample_size=8)
    yield sd15
    sd15.unet.register_to_config(sample_size=64)


def test_the_loop_in_pieces(small):
    cond, uncond = encode_prompt(small, ["a puppy", ""]).chunk(2)
    assert cond.shape == (1, 77, 768)
    latents = denoise(small, initial_latents(small), cond, uncond, 2)
    assert latents.shape == (1, 4, 8, 8) and latents.isfinite().all()
    assert latents_to_pil(small.vae, latents)[0].size == (64, 64)


def test_image_to_image(small):
    picture = Image.new("RGB", (64, 64), "red")
    assert pil_to_latents(small.vae, picture).shape == (1, 4, 8, 8)
    assert img2img(small, "a puppy", picture, strength=.5, num_inference_steps=2)[0].size == (64, 64)


def test_hand_made_embeddings_and_a_new_token(small):
    rows, ids = token_embeddings_of(small, "a puppy")
    assert torch.allclose(text_embeddings_from(small, rows), encode_prompt(small, "a puppy"), atol=.05)
    word = add_token(small, "<two>", torch.ones(2, 768))
    assert encode_prompt(small, f"a {word}").shape == (1, 77, 768) and small.tokenizer(f"a {word}").input_ids[2:4] == [49408, 49409]


def test_text_to_image_and_its_attention(small):
    with attention_maps(small.unet) as maps:
        assert txt2img(small, "a puppy", "red", num_inference_steps=1, scheduler=DDIMScheduler.from_config(small.scheduler.config))
    assert len(maps) == 16 and {m.shape[-1] for m in maps} == {77}


def test_a_sampler_written_out(small):
    cond, uncond = encode_prompt(small, ["a puppy", ""]).chunk(2)
    timesteps, sigmas = sigma_schedule(small, 2)
    sigmas = sigmas.to(small.dtype)
    *_, last = euler(noise_predictor(small, cond, uncond, 7.5), initial_latents(small) * sigmas[0], timesteps, sigmas)
    assert last.shape == (1, 4, 8, 8) and last.isfinite().all()


@pytest.mark.parametrize("through_unet", [False, True])
def test_guidance_by_a_loss(small, through_unet):
    losses = []
    guided_txt2img(small, "a campfire", lambda images: (images[:, 2] - .9).abs().mean(), loss_scale=1., every=1, through_unet=through_unet,
                   num_inference_steps=2, report=lambda i, loss: losses.append(loss))
    assert len(losses) == 2 and all(0 < loss < 2 for loss in losses)
