"""How long one picture takes in many ways. Each is timed in turn with diffusers' pipeline in one run; what counts is the ratio of the two.

    python nbs/benchmark.py                           # DEEPDIVE_MODEL or pocket-sd, on a GPU if there is one
    python nbs/benchmark.py --model sd1 --out my.json # random weights in SD 1.x's size
    python nbs/benchmark.py --only loop,openvino      # rows whose names begin so
    python nbs/benchmark.py --judge                   # pocket-sd: what few calls do to pictures, by the judge

A row's `difference` is that of its picture from the pipeline's, in steps of 1/255. With `--model sd1` there is no picture worth looking at."""
import argparse
import copy
import importlib.util
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextConfig, CLIPTextModel

from deepdive.denoising import record
from deepdive.evaluation import combinations, distance, scores
from deepdive.pictures import POCKET_STYLES, Pictures, load_judge
from deepdive.sampling_loop import (
    Models, check_number, choose_device, data_folder, encode_prompt, initial_latents, latents_to_pil, load_models, mean_difference)
from deepdive.speed import BACKENDS, OWN, SPACED, OtherUNet, compiled_models, fast, few_steps, flops_of, keep_answers, matmul_speed, paired, solver
from deepdive.unet import txt2img

PROMPT, EIGHT = "a watercolor painting of an otter", "8 pictures at a time"


def random_sd1(device=None, dtype=None):
    "Models in SD 1.x's size with random weights, and a tokenizer and scheduler of their own; device and dtype as `choose_device` has them."
    pocket, (device, own) = load_models(data_folder() / "pocket-sd", device="cpu"), choose_device(device)
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
                            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
        text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                                            projection_dim=768))
    torch.manual_seed(0)
    for part in unet, vae, text:
        part.to_empty(device=device).to(dtype or own).eval().requires_grad_(False)
        for name, p in part.named_parameters():
            if p.ndim > 1: p.normal_(std=.02)
            else: p.fill_(float("norm" in name and "weight" in name))
        for name, b in part.named_buffers():
            if name.endswith("position_ids"): b.copy_(torch.arange(77))
    return Models(pocket.tokenizer, text, vae, unet, pocket.scheduler, device, dtype or own, "random weights in SD 1.x's size", pocket.prompts)


def pipeline_of(models, **parts):
    "diffusers' pipeline around the models' parts, or others."
    parts = dict(text_encoder=models.text_encoder, unet=models.unet, vae=models.vae) | parts
    pipe = StableDiffusionPipeline(**parts, tokenizer=models.tokenizer, scheduler=models.scheduler, safety_checker=None,
                                   feature_extractor=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def changed(models, change):
    "Models with a copy of the UNet, changed."
    unet = copy.deepcopy(models.unet)
    return replace(models, unet=change(unet) or unet)


def in_two_calls(models):
    def answer(x, t, states):
        return torch.cat([models.unet(a, t, encoder_hidden_states=b).sample for a, b in zip(x.chunk(2), states.chunk(2))])
    return replace(models, unet=OtherUNet(models.unet, answer))


def in_bfloat16(models):
    unet = copy.deepcopy(models.unet).bfloat16()
    def answer(x, t, states): return unet(x.bfloat16(), t, encoder_hidden_states=states.bfloat16()).sample.to(x.dtype)
    return replace(models, unet=OtherUNet(models.unet, answer))


def compiled_by_torch(models, channels_last=False, **settings):
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # `setup` is to be that of a first time
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()
    unet = copy.deepcopy(models.unet)
    if channels_last: unet.to(memory_format=torch.channels_last)
    run = torch.compile(unet, **settings)
    def answer(x, t, states): return run(x, t, encoder_hidden_states=states).sample.clone()  # a CUDA graph uses its output again
    return replace(models, unet=OtherUNet(models.unet, answer))


def recipe(models, steps):
    "diffusers' own for a GPU: channels last, q, k and v in one product, UNet and decoder compiled."
    unet, vae = (copy.deepcopy(part).to(memory_format=torch.channels_last) for part in (models.unet, models.vae))
    unet.fuse_qkv_projections(), vae.fuse_qkv_projections()
    unet.forward = torch.compile(unet.forward, mode="max-autotune", fullgraph=True)
    vae.decode = torch.compile(vae.decode, mode="max-autotune", fullgraph=True)
    return by_pipeline(pipeline_of(models, unet=unet, vae=vae), models, steps)


def by_pipeline(pipe, models, steps):
    return lambda: pipe(PROMPT, num_inference_steps=steps, guidance_scale=7.5, latents=initial_latents(models)).images[0]


def drawing(models, steps, n=1, **how): return lambda: txt2img(models, [PROMPT] * n, num_inference_steps=steps, **how)[0]


def inferred(models, steps):
    @torch.inference_mode()
    def run(): return drawing(models, steps)()
    return run


def rows_of(models, steps):
    "{name: a function that makes the function to time}; the making is timed as `setup`."
    def with_models(make): return lambda: drawing(make(models), steps)
    rows = {
        "loop": lambda: drawing(models, steps), "two calls": with_models(in_two_calls), "inference mode": lambda: inferred(models, steps),
        "channels last": with_models(lambda m: changed(m, lambda u: u.to(memory_format=torch.channels_last))),
        "attention written out": with_models(lambda m: changed(m, lambda u: u.set_attn_processor(AttnProcessor()))),
        "q, k, v in one product": with_models(lambda m: changed(m, lambda u: u.fuse_qkv_projections())),
        "answers kept": with_models(lambda m: changed(m, keep_answers)), "bfloat16": with_models(in_bfloat16),
        EIGHT: lambda: drawing(models, steps, 8), "compile": with_models(compiled_by_torch),
        "compile, channels last": with_models(lambda m: compiled_by_torch(m, True))}
    if models.device.type == "cuda":
        rows["compile, CUDA graphs"] = with_models(lambda m: compiled_by_torch(m, True, mode="reduce-overhead"))
        rows["diffusers' recipe"] = lambda: recipe(models, steps)
    if models.device.type == "cpu" and models.dtype == torch.float32:
        for backend in filter(importlib.util.find_spec, BACKENDS):
            rows[backend] = with_models(lambda m, backend=backend: compiled_models(m, backend))
    rows["DPM++ 2M, 10 steps"] = lambda: drawing(models, 10, scheduler=solver(models, "DPM++ 2M"))
    if getattr(models, "is_pocket", False):
        rows["LoRA, 4 steps"] = lambda: drawing(few_steps(models), 4, guidance_scale=1)
        rows["fast, LoRA, 4 steps"] = lambda: drawing(fast(few_steps(models), guided=False), 4, guidance_scale=1)
    return rows


def measure(models, steps, repeats, only=None, save=lambda rows: None):
    "Time every row, print it, and `save` all so far; returns the rows, and the pipeline's median time."
    pipeline, done = by_pipeline(pipeline_of(models), models, steps), {}
    there, times = pipeline(), []
    names = [name for name in only.split(",") if name] if only else [""]
    rows = {k: make for k, make in rows_of(models, steps).items() if k.startswith(tuple(names))}
    if not rows: raise SystemExit(f"no row begins with {only!r}; there are: {', '.join(rows_of(models, steps))}")
    print(f"{'':24}{'s':>8}{'pipeline / this':>17}{'quartiles':>14}{'difference':>12}{'setup, s':>10}")
    for name, make in rows.items():
        start = time.perf_counter()
        f = make()
        picture = f()  # what is compiled on the first call counts as setup
        setup = time.perf_counter() - start
        row = paired(pipeline, {name: f}, repeats)[name]
        times.append(row["seconds"] * row["ratio"])
        if name == EIGHT: row = {k: v / 8 if k == "seconds" else v * 8 for k, v in row.items()}
        done[name] = row | dict(difference=mean_difference(picture, there), setup=max(0., setup - row["seconds"]))
        row = done[name] = {k: round(v, 4) for k, v in done[name].items()}
        print(f"{name:24}{row['seconds']:8.3f}{row['ratio']:17.2f}{row['low']:8.2f}-{row['high']:5.2f}{row['difference']:12.2f}"
              f"{row['setup']:10.1f}", flush=True)
        save(done)
    return done, sorted(times)[len(times) // 2]


def limit(models):
    "(operations of one call with guidance, operations a second in products of matrices)."
    sample, states = torch.cat([initial_latents(models)] * 2), encode_prompt(models, ["", PROMPT])
    return flops_of(lambda: models.unet(sample, 500, encoder_hidden_states=states)), matmul_speed(models.device, models.dtype)


def machine(device):
    if device.type == "cuda": return torch.cuda.get_device_name(device)
    if device.type != "cpu": return device.type
    return f"CPU, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def drawn(models, prompts, seed=0, batch_size=20, **how):
    "One picture for each prompt; the batch that begins at i is drawn from seed + i."
    return [image for i in range(0, len(prompts), batch_size) for image in txt2img(models, prompts[i:i + batch_size], seed=seed + i, **how)]


def judged(n, steps, reference, save):
    """`save` rows {solver, steps, calls, n, difference, subject, style, background, variety} as they come; where the LoRA is, of 4 n pictures.

    difference: of the first four pictures from those of `reference` steps of Euler from the same noise, in steps of 1/255;
    variety: the mean distance between four pictures of one prompt, a share of the range."""
    models, judge, rows = load_models(data_folder() / "pocket-sd"), load_judge(), []
    judge.to(models.device)
    asked = combinations(Pictures(splits=("train",), styles=POCKET_STYLES), 4 * n, False, seed=31)
    prompts = [a[3] for a in asked]
    goal = drawn(fast(models, batch_size=4), prompts[:4], num_inference_steps=reference, scheduler=solver(models, "Euler"))
    batch = max(b for b in range(1, 25) if n % b == 0)
    quick, few = fast(models, batch_size=batch), fast(few_steps(models), batch_size=batch, guided=False)
    own, spaced = list(OWN), [f"{name}, {how}" for name in ("Euler", "DPM++ 2M") for how in SPACED]
    todo = [(name, k) for name in own for k in steps] + [(name, k) for name in spaced for k in steps if k <= 10] + [("DPM++ 2M, aligned", 10)]
    for name, k in [("LoRA", 4), ("LoRA", 2), ("LoRA", 1), *todo]:
        which, how = (few, dict(guidance_scale=1)) if name == "LoRA" else (quick, dict(scheduler=solver(models, name)))
        how |= dict(num_inference_steps=k, batch_size=batch)
        beside = name == "LoRA" or name == "DPM++ 2M" and k in (min(steps), max(s for s in steps if s <= 30))
        some = asked if beside else asked[:n]
        images, row = drawn(which, [a[3] for a in some], **how), dict(solver=name, steps=k, calls=2 * k - 1 if name == "Heun" else k, n=len(some))
        row["difference"] = float(np.mean([mean_difference(*pair) for pair in zip(images, goal)]))
        row |= {key: float(v) for key, v in scores(judge, some, images).items() if key in ("subject", "style", "background", "all_three")}
        if beside:
            again = drawn(which, prompts[:n] * 4, seed=10_000, **how)
            row["variety"] = float(np.mean([distance(again[i::n]) for i in range(n)]))
        rows.append({key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()})
        print(rows[-1], flush=True), save(rows=rows, n=n, reference=reference)


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder, a hub id, or sd1 for random weights in SD 1.x's size (default: DEEPDIVE_MODEL or pocket-sd)")
    parser.add_argument("--device", help="cpu, cuda or mps (default: the quickest there is)")
    parser.add_argument("--size", type=int, help="height and width of the picture (default: the model's own)")
    parser.add_argument("--steps", type=int, default=30, help="steps of a picture (30)")
    parser.add_argument("--repeats", type=int, default=7, help="pairs to take the median of (7)")
    parser.add_argument("--only", help="rows that begin with one of these, between commas")
    parser.add_argument("--out", help="file to write the figures to, as JSON; with --judge a folder")
    parser.add_argument("--judge", action="store_true", help="judge pictures of few calls instead; writes training/few_calls.json of data/embeddings")
    parser.add_argument("--n", type=int, default=20, help="with --judge: pictures a row, at least 4; four times as many for the LoRA (20)")
    parser.add_argument("--grid", default="4,6,8,10,15,20,30,50", help="with --judge: numbers of steps, between commas")
    parser.add_argument("--reference", type=int, default=1000, help="with --judge: steps of Euler to compare with (1000)")
    args = parser.parse_args(args)
    if args.judge:
        check_number("n", args.n, 4)
        out = Path(args.out or data_folder() / "embeddings")
        return judged(args.n, [int(k) for k in args.grid.split(",")], args.reference, lambda **found: record("few_calls", out, **found))
    models = random_sd1(args.device) if args.model == "sd1" else load_models(args.model, device=args.device)
    if args.size:
        latents = initial_latents(models, height=args.size, width=args.size)  # says what size cannot be
        models.unet.register_to_config(sample_size=latents.shape[-1])
    latents_to_pil(models.vae, initial_latents(models))
    flops, speed = limit(models)
    print(f"{machine(models.device)}, torch {torch.__version__}, {models.dtype}: one call {flops / 1e9:.1f} GFLOP, "
          f"products of matrices {speed / 1e9:.0f} GFLOP/s: {args.steps} steps take {args.steps * flops / speed:.3f} s at least")
    def save(rows):
        if not args.out: return
        name = "sd1" if args.model == "sd1" else getattr(models.source, "name", models.source)
        found = dict(machine=machine(models.device), torch=torch.__version__, model=str(name), dtype=str(models.dtype),
                     size=8 * models.unet.config.sample_size, steps=args.steps, repeats=args.repeats, flops=flops, matmul=round(speed), rows=rows)
        Path(args.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    rows, pipeline = measure(models, args.steps, args.repeats, args.only, save)
    if "loop" in rows:
        print(f"pipeline {pipeline:.2f} s, loop {rows['loop']['seconds']:.2f} s a picture of {args.steps} steps; "
              f"loop / pipeline = {1 / rows['loop']['ratio']:.2f} (medians of {args.repeats})")


if __name__ == "__main__": main()
