"Notebooks 03 to 07 on a CUDA GPU in float16: their helpers, a few steps each. Skipped where there is none."
import pytest
import torch
import torch.nn.functional as F

from deepdive.guidance import guided_txt2img, loss_gradient
from deepdive.sampling_loop import agree, data_folder, encode_prompt, initial_latents, load_models, mean_difference
from deepdive.schedulers import (
    ddim, ddim_timesteps, dpmpp_2m, dpmpp_timesteps, euler, euler_ancestral, heun, lms, noise_predictor, sigma_schedule)
from deepdive.text_encoder import picture_from, text_embeddings_from, token_embeddings_of
from deepdive.textual_inversion import add_token, learned_style
from deepdive.unet import attention_maps, txt2img

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
PROMPT = "a 3d render of an owl"


@pytest.fixture(scope="module")
def gpu(): return load_models(data_folder() / "pocket-sd", device="cuda")


def blue(images): return (images[:, 2] - .9).abs().mean()


def test_text(gpu, models):
    assert gpu.dtype == torch.float16 and agree(encode_prompt(gpu, PROMPT), encode_prompt(models, PROMPT))
    rows, _ = token_embeddings_of(gpu, PROMPT)
    assert agree(text_embeddings_from(gpu, rows), encode_prompt(gpu, PROMPT))
    assert agree(text_embeddings_from(gpu, rows.float().cpu()), encode_prompt(gpu, PROMPT))


def test_pictures_are_the_cpus_up_to_rounding(gpu, models):
    for cpu, cuda in ((txt2img(m, PROMPT, num_inference_steps=4)[0] for m in (models, gpu)),
                      (picture_from(m, encode_prompt(m, PROMPT), num_inference_steps=4) for m in (models, gpu))):
        assert mean_difference(cpu, cuda) < 4


def test_a_learned_token(gpu):
    word = add_token(gpu, "<gpu>", learned_style(gpu))
    assert add_token(gpu, "<gpu>", learned_style(gpu)) == word
    assert encode_prompt(gpu, f"an owl in the style of {word}").isfinite().all()


def test_attention(gpu):
    with attention_maps(gpu.unet) as maps: txt2img(gpu, PROMPT, num_inference_steps=1)
    assert maps and all(m.device.type == "cpu" and agree(m.sum(-1), torch.ones(m.shape[:-1]).half()) for m in maps)


def test_six_samplers(gpu, models):
    for m in gpu, models:
        noise_at = noise_predictor(m, *encode_prompt(m, [PROMPT, ""]).chunk(2))
        (timesteps, sigmas), table = (v.to(m.device) for v in sigma_schedule(m, 4)), m.scheduler.alphas_cumprod.to(m.device)
        noise = initial_latents(m)
        first = noise * sigmas[0]
        ends = [list(path)[-1] for path in (
            euler(noise_at, first, timesteps, sigmas), heun(noise_at, first, timesteps, sigmas), lms(noise_at, first, timesteps, sigmas),
            euler_ancestral(noise_at, first, timesteps, sigmas, torch.Generator().manual_seed(0)),
            ddim(noise_at, noise, ddim_timesteps(m, 4), table), dpmpp_2m(noise_at, noise, dpmpp_timesteps(m, 4), table))]
        if m is gpu: on_gpu = ends
    assert all(agree(a, b, slack=10) for a, b in zip(on_gpu, ends))


@pytest.mark.parametrize("through_unet", [False, True])
def test_gradients_point_where_the_cpus_do(gpu, models, through_unet):
    found = []
    for m in gpu, models:
        noise_at = noise_predictor(m, *encode_prompt(m, [PROMPT, ""]).chunk(2), 8.)
        x, sigma = initial_latents(m).float() * 2, torch.tensor(2., device=m.device)
        found.append(loss_gradient(m, x, sigma, torch.tensor(500., device=m.device), noise_at, blue, through_unet)[1].cpu().flatten())
    assert F.cosine_similarity(*found, 0) > .99


def test_the_lectures_scale(gpu):
    losses = []
    guided_txt2img(gpu, "a campfire", blue, loss_scale=200., num_inference_steps=10, report=lambda i, loss: losses.append(loss))
    assert losses[-1] < losses[0]
