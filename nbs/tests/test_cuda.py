"A short check of each notebook's helpers on a CUDA GPU, in its float16: the same pictures as on the CPU, up to rounding. Skipped without a GPU."
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image

from deepdive.autoencoder import pil_to_latents, psnr, to_rgb
from deepdive.image_to_image import img2img
from deepdive.sampling_loop import agree, check_finite, data_folder, denoise, encode_prompt, initial_latents, latents_to_pil, load_models

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")


@pytest.fixture(scope="module")
def gpu(): return load_models(data_folder() / "pocket-sd", device="cuda")


@pytest.fixture(scope="module")
def parrot(): return to_rgb(Image.open(data_folder() / "emoji" / "3d_render" / "parrot.webp")).resize((128, 128))


def test_00_loop(models, gpu):
    assert gpu.dtype == torch.float16 and agree(initial_latents(gpu), initial_latents(models))
    assert agree(encode_prompt(gpu, "an owl"), encode_prompt(models, "an owl"))
    a, b = (latents_to_pil(m.vae, denoise(m, initial_latents(m), encode_prompt(m, "an owl"), encode_prompt(m, ""), 10))[0] for m in (gpu, models))
    assert psnr(a, b) > 25
    with pytest.raises(ValueError, match="NaN or infinity.*float16"): check_finite(torch.ones(1, device="cuda").half() * 7e4)


def test_01_autoencoder(models, gpu, parrot):
    a, b = (pil_to_latents(m.vae, parrot, torch.Generator().manual_seed(1)) for m in (gpu, models))
    assert agree(a, b, slack=3) and psnr(latents_to_pil(gpu.vae, a)[0], latents_to_pil(models.vae, b)[0]) > 35


def test_02_image_to_image(models, gpu, parrot):
    own = EulerDiscreteScheduler.from_config(models.scheduler.config)
    a, b = (img2img(m, "an owl", parrot, .5, 10, scheduler=own)[0] for m in (gpu, models))
    assert psnr(a, b) > 25
