"Notebooks 00 and 02 against diffusers' pipelines: schedulers, spacings of their steps, strengths."
import diffusers
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image

from deepdive.autoencoder import to_rgb
from deepdive.image_to_image import img2img
from deepdive.sampling_loop import data_folder, denoise, encode_prompt, latents_to_pil, mean_difference, seeded

PLAIN = ["DDIM", "DDPM", "DEISMultistep", "DPMSolverMultistep", "DPMSolverSinglestep", "EulerAncestralDiscrete", "EulerDiscrete", "HeunDiscrete",
         "KDPM2AncestralDiscrete", "KDPM2Discrete", "LCM", "LMSDiscrete", "PNDM", "TCD", "UniPCMultistep"]
KARRAS = ["DEISMultistep", "DPMSolverMultistep", "DPMSolverSinglestep", "EulerDiscrete", "HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete",
          "LMSDiscrete", "UniPCMultistep"]
OTHERS = [("DPMSolverMultistep", "use_beta_sigmas"), ("DPMSolverMultistep", "use_exponential_sigmas"), ("EulerDiscrete", "use_beta_sigmas"),
          ("UniPCMultistep", "use_exponential_sigmas")]
CASES = [(name, None) for name in PLAIN] + [(name, "use_karras_sigmas") for name in KARRAS] + OTHERS


@pytest.fixture(scope="module")
def parrot(): return to_rgb(Image.open(data_folder() / "emoji" / "3d_render" / "parrot.webp")).resize((64, 64))


def scheduler(models, name, option):
    if option == "use_beta_sigmas": pytest.importorskip("scipy")
    return getattr(diffusers, f"{name}Scheduler").from_config(models.scheduler.config, **({option: True} if option else {}))


def pipeline(models, cls, own):
    pipe = cls(vae=models.vae, text_encoder=models.text_encoder, tokenizer=models.tokenizer, unet=models.unet, scheduler=own,
               safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name, option", CASES)
def test_text_to_image(models, name, option):
    own, generator = scheduler(models, name, option), seeded(3)
    theirs = pipeline(models, StableDiffusionPipeline, own)("an owl", height=64, width=64, num_inference_steps=5, generator=seeded(3)).images[0]
    noise = torch.randn((1, 4, 8, 8), generator=generator)
    ours = denoise(models, noise, encode_prompt(models, "an owl"), encode_prompt(models, ""), 5, 7.5, scheduler=own, generator=generator)
    assert mean_difference(theirs, latents_to_pil(models.vae, ours)[0]) < 1


@pytest.mark.parametrize("name, option", CASES)
def test_image_to_image_at_four_strengths(models, parrot, name, option):
    own = scheduler(models, name, option)
    pipe = pipeline(models, StableDiffusionImg2ImgPipeline, own)
    for strength, steps in (1., 5), (.7, 5), (.45, 5), (.06, 50):
        theirs = pipe("an owl", parrot, strength=strength, num_inference_steps=steps, generator=seeded(3)).images[0]
        ours = img2img(models, "an owl", parrot, strength, steps, seed=3, scheduler=own)[0]
        assert mean_difference(theirs, ours) < 1, strength
