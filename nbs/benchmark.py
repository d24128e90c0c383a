"""How long our loop takes, as a ratio to diffusers' pipeline: both are timed in turn in one run, and their medians compared.

    python nbs/benchmark.py [repeats]"""
import statistics
import sys
import time

import torch
from diffusers import StableDiffusionPipeline

from deepdive.sampling_loop import denoise, encode_prompt, initial_latents, latents_to_pil, load_models

repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 7
models, prompt = load_models(), "a watercolor painting of an otter"
pipe = StableDiffusionPipeline.from_pretrained(models.source, safety_checker=None, dtype=models.dtype).to(models.device)
pipe.set_progress_bar_config(disable=True)
pipe.scheduler = models.scheduler


def pipeline(): return pipe(prompt, num_inference_steps=30, guidance_scale=7.5, generator=torch.manual_seed(32)).images[0]


def loop():
    uncond_embeddings, text_embeddings = encode_prompt(models, ["", prompt]).chunk(2)
    latents = denoise(models, initial_latents(models), text_embeddings, uncond_embeddings, 30, 7.5)
    return latents_to_pil(models.vae, latents)[0]


def seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


pipeline(), loop()
times = [(seconds(pipeline), seconds(loop)) for _ in range(repeats)]
theirs, ours = (statistics.median(t) for t in zip(*times))
print(f"pipeline {theirs:.2f} s, loop {ours:.2f} s a picture of 30 steps; loop / pipeline = {ours / theirs:.2f} (medians of {repeats})")
