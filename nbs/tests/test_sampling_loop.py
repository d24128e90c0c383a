"Notebook 00: what cannot be asserted inside it."
import shutil
import warnings

import pytest
import torch
from diffusers import DDIMScheduler, LMSDiscreteScheduler, StableDiffusionPipeline

from deepdive.sampling_loop import (
    agree, choose_device, data_folder, denoise, encode_prompt, initial_latents, latents_to_pil, load_models, mean_difference, predict_noise)

POCKET = data_folder() / "pocket-sd"


def test_plain_pipeline_and_the_lectures_numbers():
    pipe = StableDiffusionPipeline.from_pretrained(POCKET, safety_checker=None)
    scheduler = LMSDiscreteScheduler.from_config(pipe.scheduler.config)
    assert abs(scheduler.init_noise_sigma - 14.6146) < 1e-4
    scheduler.set_timesteps(15)
    assert abs(scheduler.timesteps[10] - 285.43) < .005 and abs(scheduler.sigmas[10] - .7913) < 5e-5
    assert scheduler.timesteps[0] == 999 and DDIMScheduler.from_config(pipe.scheduler.config).config.clip_sample is False
    image = pipe("a parrot", num_inference_steps=2, generator=torch.manual_seed(0)).images[0]
    assert image.size == (128, 128)


def test_tokenizer_has_the_lectures_ids(models):
    ids = models.tokenizer(["A picture of a puppy", "skunk cat"], padding="max_length", max_length=77).input_ids
    assert ids[0][:8] == [49406, 320, 1674, 539, 320, 6829, 49407, 49407] and ids[1][1:3] == [42194, 2368]


def test_pocket_sd_is_small():
    assert sum(f.stat().st_size for f in POCKET.rglob("*") if f.is_file()) < 45 * 2**20


def test_batch_gives_the_same_pictures_as_one_by_one(models):
    prompts, noise = ["a parrot", "a cartoon of a castle"], torch.cat([initial_latents(models, seed=s) for s in (1, 2)])
    uncond = encode_prompt(models, "")
    together = latents_to_pil(models.vae, denoise(models, noise, encode_prompt(models, prompts), uncond, 3))
    for i in range(2):
        alone = latents_to_pil(models.vae, denoise(models, noise[i:i + 1], encode_prompt(models, prompts[i]), uncond, 3))
        assert mean_difference(together[i], alone[0]) < .1


def test_guidance_formula(models):
    latents, cond, uncond = initial_latents(models), encode_prompt(models, "a parrot"), encode_prompt(models, "")
    scheduler = LMSDiscreteScheduler.from_config(models.scheduler.config)
    scheduler.set_timesteps(5)
    def predict(scale, c=cond, u=uncond):
        with torch.no_grad(): return predict_noise(models, latents, scheduler.timesteps[2], c, u, scale, scheduler)
    e0, e1, e3 = predict(0.), predict(1.), predict(3.)
    assert agree(predict(1., uncond), e0) and agree(e3, e0 + 3 * (e1 - e0)) and not agree(e1, e0, slack=100)


def test_start_step_goes_on_where_the_loop_was(models):
    seen, cond, scheduler = {}, encode_prompt(models, "a parrot"), DDIMScheduler.from_config(models.scheduler.config)
    whole = denoise(models, initial_latents(models), cond, None, 6, scheduler=scheduler, callback=lambda i, t, x, e: seen.update({i: x}))
    assert sorted(seen) == list(range(6))
    assert torch.allclose(whole, denoise(models, seen[2], cond, None, 6, start_step=3, scheduler=scheduler), atol=1e-5)


def test_scheduler_is_left_as_it_was(models):
    before = dict(models.scheduler.__dict__)
    denoise(models, initial_latents(models), encode_prompt(models, "a parrot"), None, 2)
    assert models.scheduler.__dict__.keys() == before.keys() and models.scheduler.num_inference_steps == before["num_inference_steps"]


def test_long_prompt_warns_and_says_what_is_cut(models):
    with pytest.warns(UserWarning, match=r"prompt of 92 tokens: only 77 fit.*'skunk swan owl"):
        long = encode_prompt(models, "a " * 75 + "skunk swan" + " owl" * 13)
    assert long.shape == (1, 77, models.text_encoder.config.hidden_size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_prompt(models, "a " * 75)


def test_hub_model_while_offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="could not fetch 'CompVis/stable-diffusion-v1-4'.*DEEPDIVE_MODEL"):
        load_models("CompVis/stable-diffusion-v1-4")


def test_environment_variable_names_the_model(monkeypatch, tmp_path):
    shutil.copytree(POCKET, tmp_path / "mine")
    monkeypatch.setenv("DEEPDIVE_MODEL", str(tmp_path / "mine"))
    assert load_models(device="cpu").source == (tmp_path / "mine").resolve()


def test_device_and_dtype():
    assert choose_device("cpu") == (torch.device("cpu"), torch.float32)
    assert choose_device("cpu", torch.bfloat16)[1] == torch.bfloat16


def test_float32_is_not_made_coarser_on_a_gpu(monkeypatch):
    "cuDNN takes ten bits for float32 convolutions unless told otherwise."
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    load_models(data_folder() / "pocket-sd", device="cpu", dtype=torch.bfloat16)
    assert torch.backends.cudnn.allow_tf32
    load_models(data_folder() / "pocket-sd", device="cpu", dtype=torch.float32)
    assert not torch.backends.cudnn.allow_tf32
