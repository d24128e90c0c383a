"Notebooks 03 to 07: what is refused, by an error of our own that names the value."
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import deepdive
from deepdive.guidance import guided_txt2img
from deepdive.sampling_loop import initial_latents
from deepdive.schedulers import (
    ddim, ddim_timesteps, dpmpp_2m, dpmpp_timesteps, euler, euler_ancestral, heun, lms, noise_predictor, sigma_schedule)
from deepdive.text_encoder import picture_from, text_embeddings_from, token_embeddings_of
from deepdive.textual_inversion import add_token, load_embedding, save_embedding
from deepdive.unet import attention_maps, saturation, txt2img

NAN, INF, OURS = float("nan"), float("inf"), Path(deepdive.__path__[0])
TABLE = torch.linspace(.999, .005, 1000)


def ready(value=0., batch=1, places=77, width=128): return torch.full((batch, places, width), value)
def blue(images): return images[:, 2].mean()
def no_noise(x, sigma, t): return x * 0


def guided(m, prompt="an owl", loss_fn=blue, **options): return guided_txt2img(m, prompt, loss_fn, **{"num_inference_steps": 1, **options})
def sampled(sampler, timesteps, table, *more): return list(sampler(no_noise, torch.zeros(2), timesteps, table, *more))


CASES = [  # (what is called with the models, the error, what it says)
    # 03
    (lambda m: text_embeddings_from(m, ready(width=768)), ValueError, "input_embeddings must have the shape (batch, 77, 128), not (1, 77, 768)"),
    (lambda m: text_embeddings_from(m, ready()[0]), ValueError, "not (77, 128)"),
    (lambda m: text_embeddings_from(m, ready(batch=0)), ValueError, "not (0, 77, 128)"),
    (lambda m: text_embeddings_from(m, ready(NAN)), ValueError, "input_embeddings hold NaN or infinity"),
    (lambda m: text_embeddings_from(m, "a puppy"), TypeError, "input_embeddings must be a tensor of floating-point numbers, not 'a puppy'"),
    (lambda m: text_embeddings_from(m, None), TypeError, "numbers, not None"),
    (lambda m: text_embeddings_from(m, ready().long()), TypeError, "must be a tensor of floating-point numbers"),
    (lambda m: token_embeddings_of(m, None), TypeError, "prompt must be a string or a list of strings, not None"),
    (lambda m: token_embeddings_of(m, []), ValueError, "not []"),
    (lambda m: picture_from(m, "a puppy"), TypeError, "text_embeddings must be a tensor of floating-point numbers, not 'a puppy'"),
    (lambda m: picture_from(m, ready(places=5)), ValueError, "not (1, 5, 128)"),
    (lambda m: picture_from(m, ready(INF)), ValueError, "text_embeddings hold NaN or infinity"),
    (lambda m: picture_from(m, ready(batch=2)), ValueError, "1 latents but 2 prompts"),
    (lambda m: picture_from(m, ready(), negative_prompt=["a", "b"]), ValueError, "2 negative prompts for 1 prompts"),
    (lambda m: picture_from(m, ready(), negative_prompt=3), TypeError, "negative_prompt must be a string or a list of strings, not 3"),
    (lambda m: picture_from(m, ready(), seed="x"), TypeError, "seed must be a whole number in"),
    (lambda m: picture_from(m, ready(), seed=1.5), TypeError, "not 1.5"),
    (lambda m: picture_from(m, ready(), num_inference_steps=0), ValueError, "num_inference_steps must be a whole number in [1, 1000], not 0"),
    (lambda m: picture_from(m, ready(), num_inference_steps=None), TypeError, "not None"),
    (lambda m: picture_from(m, ready(), guidance_scale=NAN), ValueError, "guidance_scale must be a finite number, not nan"),
    # 04
    (lambda m: add_token(m, "<t>", "vector"), TypeError, "the embedding must be a tensor of floating-point numbers, not 'vector'"),
    (lambda m: add_token(m, "<t>", torch.arange(128)), TypeError, "must be a tensor of floating-point numbers"),
    (lambda m: add_token(m, "<t>", torch.ones(768)), ValueError, "(768,) does not fit this model, whose tokens are 128 wide"),
    (lambda m: add_token(m, "<t>", torch.ones(1, 2, 128)), ValueError, "must have the shape (width,) or (n, width), not (1, 2, 128)"),
    (lambda m: add_token(m, "<t>", torch.ones(0, 128)), ValueError, "not (0, 128)"),
    (lambda m: add_token(m, "<t>", torch.tensor(1.)), ValueError, "not ()"),
    (lambda m: add_token(m, "<t>", torch.full((128,), NAN)), ValueError, "the numbers of the embedding hold NaN"),
    (lambda m: add_token(m, "<t>", torch.eye(2, 128) * torch.tensor([[1.], [0.]])), ValueError, "only zeros in row 1"),
    (lambda m: add_token(m, "two words", torch.ones(128)), ValueError, "one word without spaces, not 'two words'"),
    (lambda m: add_token(m, None, torch.ones(128)), ValueError, "not None"),
    (lambda m: add_token(m, "puppy", torch.ones(128)), ValueError, "'puppy' is taken"),
    (lambda m: load_embedding(None), TypeError, "path must be a file's path, not None"),
    (lambda m: load_embedding(OURS), FileNotFoundError, "no embedding file"),
    (lambda m: load_embedding("~/none.bin"), FileNotFoundError, "none.bin"),
    (lambda m: save_embedding("x.pt", "<t>", torch.ones(128)), ValueError, "not as '.pt'"),
    (lambda m: save_embedding("x.bin", "", torch.ones(128)), ValueError, "not ''"),
    (lambda m: save_embedding("x.bin", "<t>", torch.zeros(128)), ValueError, "only zeros in row 0"),
    # 05
    (lambda m: txt2img(m, ["a", "b", "c"], ["x", "y"]), ValueError, "2 negative prompts for 3 prompts"),
    (lambda m: txt2img(m, []), ValueError, "prompt must be a string or a list of strings, not []"),
    (lambda m: txt2img(m, 7), TypeError, "not 7"),
    (lambda m: txt2img(m, ["a", None]), TypeError, "not ['a', None]"),
    (lambda m: txt2img(m, "a", {"not": "this"}), TypeError, "negative_prompt must be"),
    (lambda m: txt2img(m, "a", num_inference_steps=-3), ValueError, "not -3"),
    (lambda m: txt2img(m, "a", num_inference_steps="30"), TypeError, "not '30'"),
    (lambda m: txt2img(m, "a", num_inference_steps=2.), TypeError, "not 2.0"),
    (lambda m: txt2img(m, "a", num_inference_steps=True), TypeError, "not True"),
    (lambda m: txt2img(m, "a", guidance_scale=None), TypeError, "guidance_scale must be a finite number, not None"),
    (lambda m: txt2img(m, "a", guidance_scale=INF), ValueError, "not inf"),
    (lambda m: txt2img(m, "a", seed=None), TypeError, "not None"),
    (lambda m: txt2img(m, "a", seed=-1), ValueError, "not -1"),
    (lambda m: txt2img(m, "a", scheduler="euler"), TypeError, "not 'euler'"),
    (lambda m: attention_maps(m).__enter__(), TypeError, "unet must be a UNet of diffusers, such as models.unet, not Models"),
    (lambda m: saturation("owl.png"), TypeError, "expected a PIL image, got str"),
    # 06
    *[(lambda m, f=f, n=n: f(m, n), error, f"num_inference_steps must be a whole number in [1, {last}], not {n!r}")
      for f, last in ((sigma_schedule, 1000), (ddim_timesteps, 999), (dpmpp_timesteps, 999))
      for n, error in ((0, ValueError), (-1, ValueError), (1001, ValueError), (2.5, TypeError), ("3", TypeError), (None, TypeError))],
    (lambda m: ddim_timesteps(m, 1000), ValueError, "in [1, 999], not 1000"),
    (lambda m: dpmpp_timesteps(m, 1000), ValueError, "in [1, 999], not 1000"),
    *[(lambda m, s=s: sampled(s, torch.tensor([500., 1.]), TABLE), TypeError, "each timestep must be a whole number, not 500.0")
      for s in (ddim, dpmpp_2m)],
    *[(lambda m, s=s: sampled(s, torch.tensor([1000, 1]), TABLE), ValueError, "timesteps must lie in 0 ... 999") for s in (ddim, dpmpp_2m)],
    *[(lambda m, s=s: sampled(s, [3, -1], TABLE), ValueError, "timesteps must lie in 0 ... 999") for s in (ddim, dpmpp_2m)],
    *[(lambda m, s=s: sampled(s, [], TABLE), ValueError, "timesteps must lie in 0 ... 999") for s in (ddim, dpmpp_2m)],
    *[(lambda m, s=s: sampled(s, [9, 5, 1], torch.tensor([3., 1., 0.])), ValueError, "3 sigmas for 3 timesteps") for s in (euler, heun, lms)],
    (lambda m: sampled(euler_ancestral, [1], torch.ones(1), torch.Generator()), ValueError, "1 sigmas for 1 timesteps"),
    (lambda m: sampled(euler, [], torch.zeros(1)), ValueError, "1 sigmas for 0 timesteps"),
    (lambda m: sampled(lms, [1], torch.tensor([1., 0.]), 0), ValueError, "order must be a whole number of at least 1, not 0"),
    (lambda m: sampled(lms, [1], torch.tensor([1., 0.]), 1.5), TypeError, "not 1.5"),
    (lambda m: noise_predictor(m, ready(), ready(), NAN), ValueError, "guidance_scale must be a finite number, not nan"),
    (lambda m: noise_predictor(m, ready(), ready(), "8"), TypeError, "not '8'"),
    (lambda m: noise_predictor(m, ready())(initial_latents(m) * NAN, 1., 500), ValueError, "hold NaN or infinity"),
    # 07
    (lambda m: guided(m, ["a", "b"], negative_prompt=["x", "y", "z"]), ValueError, "3 negative prompts for 2 prompts: give one, or one for each"),
    (lambda m: guided(m, None), TypeError, "prompt must be a string or a list of strings, not None"),
    (lambda m: guided(m, num_inference_steps=0), ValueError, "not 0"),
    (lambda m: guided(m, num_inference_steps=2.5), TypeError, "not 2.5"),
    (lambda m: guided(m, guidance_scale=NAN), ValueError, "guidance_scale must be a finite number, not nan"),
    (lambda m: guided(m, loss_scale=INF), ValueError, "loss_scale must be a finite number, not inf"),
    (lambda m: guided(m, loss_scale="40"), TypeError, "loss_scale must be a finite number, not '40'"),
    (lambda m: guided(m, every=0), ValueError, "every must be a whole number of at least 1, not 0"),
    (lambda m: guided(m, every=2.5), TypeError, "every must be a whole number of at least 1, not 2.5"),
    (lambda m: guided(m, start=-.1), ValueError, "start must be a finite number in [0, 1], not -0.1"),
    (lambda m: guided(m, start=None), TypeError, "not None"),
    (lambda m: guided(m, seed="x"), TypeError, "not 'x'"),
    (lambda m: guided(m, loss_fn="blue"), TypeError, "loss_fn must be a function, not 'blue'"),
    (lambda m: guided(m, loss_fn=lambda i: i), ValueError, "loss_fn must return a single number, not a tensor of shape (1, 3, 128, 128)"),
    (lambda m: guided(m, loss_fn=lambda i: 1.), TypeError, "loss_fn must return a tensor, not 1.0"),
    (lambda m: guided(m, loss_fn=lambda i: i.detach().mean()), ValueError, "from the pictures, with torch and without detach"),
    (lambda m: guided(m, loss_fn=lambda i: i.mean() / 0), ValueError, "the results of loss_fn hold NaN or infinity"),
]


@pytest.mark.parametrize("call, error, message", CASES)
def test_refused_by_an_error_of_ours(models, tmp_path, monkeypatch, call, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=re.escape(message)) as caught: call(models)
    assert Path(str(caught.traceback[-1].path)).is_relative_to(OURS), "raised by another library"
    assert not list(tmp_path.iterdir())


def test_there_are_enough_cases(): assert len(CASES) > 80


def test_a_long_scale_is_an_error_and_no_black_picture(models):
    "What float16 does at scale 400, float32 does at 1e30."
    with pytest.raises(ValueError, match="NaN or infinity.*lower guidance_scale or loss_scale"):
        guided(models, loss_scale=1e38, num_inference_steps=2, every=1)


def test_pictures_of_one_colour_are_no_fault(models): assert saturation(Image.new("L", (4, 4), 128)) == 0
