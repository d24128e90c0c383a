"Notebook 16: what keeps the picture keeps it; what is compiled says what it is not for; a LoRA for few calls, learned, saved, loaded by diffusers."
import copy
import importlib.util
import json
import time
from dataclasses import replace

import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel

import benchmark
from deepdive import speed
from deepdive.finetuning import save_taught
from deepdive.pictures import POCKET_STYLES, Pictures
from deepdive.sampling_loop import data_folder, encode_prompt, initial_latents, mean_difference
from deepdive.speed import (
    BACKENDS, OWN, SPACED, AlignedSteps, ConsistencyLoss, OtherUNet, distill, distilled, fast, few_steps, flops_of, keep_answers, kept_paths,
    matmul_speed, paired, paths, solver, student)
from deepdive.unet import attention_maps, txt2img

PROMPT = "a cartoon of a panda on a yellow background"


def drawn(models, prompt=PROMPT, n=3, **how): return txt2img(models, prompt, num_inference_steps=n, **how)[0]
def kept(models): return replace(models, unet=keep_answers(copy.deepcopy(models.unet)))


def pipeline(models, unet=None, vae=None):
    pipe = StableDiffusionPipeline(vae or models.vae, models.text_encoder, models.tokenizer, unet or models.unet, models.scheduler, None, None,
                                   requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def by_pipeline(pipe, n=3): return pipe(PROMPT, num_inference_steps=n, generator=torch.Generator().manual_seed(32)).images[0]


@pytest.fixture(scope="module")
def plain(models): return drawn(models)


def test_paired_counts_in_rounds_and_the_first_does_not_count(monkeypatch):
    called, now = [], [0.]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    def taking(name, *seconds):
        def f():
            called.append(name)
            now[0] += seconds[called.count(name) - 1]
        return f
    rows = paired(taking("plain", 9, 4, 8, 4), dict(quick=taking("quick", 9, 1, 1, 2)), 3)
    assert called == ["plain", "quick"] * 4
    assert rows == dict(quick=dict(seconds=1, ratio=4, low=3, high=6))
    with pytest.raises(ValueError, match="repeats must be a whole number of at least 2"): paired(time.time, {}, 1)


def test_operations_are_counted_as_in_a_product():
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    assert flops_of(lambda: a @ b) == 2 * 3 * 4 * 5 and matmul_speed(torch.device("cpu"), torch.float32) > 1e8


def test_the_plain_models_draw_what_the_pipeline_draws(models, plain): assert mean_difference(plain, by_pipeline(pipeline(models))) < 1


def test_kept_answers_draw_the_same_and_compute_less(models, plain):
    mine = kept(models)
    assert mean_difference(drawn(mine), plain) < .1
    assert flops_of(lambda: drawn(mine)) < flops_of(lambda: drawn(models))
    assert mean_difference(by_pipeline(pipeline(models, mine.unet)), plain) < 1


def test_kept_answers_are_those_of_the_text_at_hand(models):
    mine = kept(models)
    for prompts in (["an owl"], ["a fox"], ["an owl", "a fox"], ["an owl"]):
        for a, b in zip(*(txt2img(m, prompts, num_inference_steps=2) for m in (mine, models))): assert mean_difference(a, b) < .1
    assert mean_difference(drawn(replace(mine, unet=copy.deepcopy(mine.unet)), "a cat"), drawn(models, "a cat")) < .1


def test_kept_answers_leave_gradients_and_attention_maps_as_they_are(models):
    x, text = initial_latents(models), encode_prompt(models, "an owl")
    gradients = []
    for unet in models.unet, kept(models).unet:
        for _ in range(2):  # kept from a first call, there would be no gradient in the second
            states = text.clone().requires_grad_()
            unet(x, 500, encoder_hidden_states=states).sample.square().mean().backward()
            gradients.append(states.grad)
    assert all(torch.allclose(g, gradients[0], atol=1e-6) for g in gradients)
    with attention_maps(kept(models).unet) as maps: pass
    assert maps == []


def test_another_unet_takes_only_what_it_answers(models, plain):
    mine = replace(models, unet=OtherUNet(models.unet, lambda x, t, states: models.unet(x, t, encoder_hidden_states=states).sample))
    assert mean_difference(drawn(mine), plain) == 0 and mean_difference(by_pipeline(pipeline(models, mine.unet)), plain) < 1
    with pytest.raises(TypeError, match="not timestep_cond"): mine.unet(None, 0, None, timestep_cond=torch.zeros(1))


def test_fast_leaves_the_given_models_alone_and_says_what_it_did(models, plain, capsys):
    quick = fast(models, "torch")
    assert "keeps what it made of text and time" in capsys.readouterr().out and quick.unet is not models.unet
    assert mean_difference(drawn(quick), plain) < .1 and mean_difference(drawn(models), plain) == 0


def test_fast_takes_what_is_installed(models, monkeypatch):
    asked = []
    monkeypatch.setattr(speed, "compiled_models", lambda models, backend, *more: asked.append((backend, *more)) or models)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "openvino")
    assert fast(models, batch_size=3, height=64, width=32, guided=False) is models and asked == [("openvino", 3, 64, 32, False)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert fast(models) is not models and len(asked) == 1
    with pytest.raises(ModuleNotFoundError, match=r'onnxruntime is not installed: pip install -e "nbs\[speed\]"'): fast(models, "onnxruntime")
    with pytest.raises(ValueError, match="backend must be torch, openvino or onnxruntime, not 'tensorrt'"): fast(models, "tensorrt")
    with pytest.raises(ValueError, match="computes in float32 on the CPU, not torch.float16"): fast(replace(models, dtype=torch.float16), "openvino")


@pytest.fixture
def traced(monkeypatch):
    "A backend that is always there: TorchScript."
    def call(module, inputs): return torch.jit.trace(module, tuple(inputs), check_trace=False)
    monkeypatch.setitem(BACKENDS, "openvino", call)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: object())


def says_what_it_is_for(models, quick):
    "A compiled network's replies to another number of pictures, another size, a gradient."
    with pytest.raises(ValueError, match=r"UNet was compiled for latents of \(2, 4, \d+, \d+\), not \(4, 4,"): drawn(quick, ["an owl"] * 2)
    with pytest.raises(ValueError, match=r"compiled for latents of \(2, .*tell fast"): drawn(quick, guidance_scale=1)
    with pytest.raises(ValueError, match="decoder was compiled for latents"): quick.vae.decode(torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match="gives no gradient"): quick.vae.decode(initial_latents(models).requires_grad_())


def test_compiled_models_draw_the_same_and_say_what_they_are_for(models, plain, traced):
    quick = fast(models, "openvino")
    assert mean_difference(drawn(quick), plain) < .1 and mean_difference(by_pipeline(pipeline(models, quick.unet, quick.vae)), plain) < 1
    says_what_it_is_for(models, quick)
    assert mean_difference(drawn(models), plain) == 0 and quick.vae.encoder is models.vae.encoder


def test_compiled_for_two_of_another_size_without_guidance(slim, traced):
    quick = fast(slim, "openvino", batch_size=2, height=48, width=32, guided=False)
    noise, states = initial_latents(slim, 2, height=48, width=32), encode_prompt(slim, ["an owl"] * 2)
    with torch.no_grad():
        assert torch.allclose(quick.unet(noise, 7, states).sample, slim.unet(noise, 7, states).sample, atol=1e-4)
        assert torch.allclose(quick.vae.decode(noise).sample, slim.vae.decode(noise).sample, atol=1e-4)


@pytest.mark.parametrize("backend", list(BACKENDS))
def test_backends(slim, backend):
    pytest.importorskip(backend)
    quick = fast(slim, backend)
    assert mean_difference(drawn(quick), drawn(slim)) < .1
    says_what_it_is_for(slim, quick)


def test_every_solver_draws(slim):
    names = [*OWN, *(f"{name}, {how}" for name in ("Euler", "DPM++ 2M") for how in SPACED)]
    assert len({drawn(slim, n=4, scheduler=solver(slim, name)).tobytes() for name in names}) >= len(names) - 2  # some spacings are one another's
    scheduler = solver(slim, "DPM++ 2M, aligned")
    assert isinstance(scheduler, AlignedSteps) and drawn(slim, n=10, scheduler=scheduler).size == (32, 32)
    scheduler.set_timesteps(10)
    assert scheduler.timesteps.tolist() == [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
    with pytest.raises(ValueError, match="for the aligned timesteps.* not 9"): scheduler.set_timesteps(9)


@pytest.fixture(scope="module")
def pictures(): return Pictures(splits=("train",), styles=POCKET_STYLES)


@pytest.fixture(scope="module")
def few(slim, pictures): return paths(slim, pictures, 4, batch_size=2)


def test_paths_begin_in_noise_and_each_has_its_own(slim, few, pictures):
    assert few["points"].shape == (4, 5, 4, 4, 4) and few["times"] == [999, 759, 499, 259, 0] and few["states"].shape == (4, 77, 16)
    assert torch.equal(few["points"][:2, 0], initial_latents(slim, 2, seed=0).half())
    assert few["points"].flatten(1).unique(dim=0).shape[0] == 4
    again = paths(slim, pictures, 4, batch_size=2)
    assert all(torch.equal(few[k], again[k]) for k in ("points", "states"))


def test_the_loss_is_nought_where_the_named_ends_are_right():
    alphas, end = torch.linspace(.99, .01, 1000), torch.randn(2, 4, 4, 4)
    noise = torch.randn(2, 4, 4, 4)
    times = [999, 500, 0]
    points = torch.stack([alphas[t]**.5 * end + (1 - alphas[t])**.5 * noise for t in times[:2]] + [end], 1)
    def answer(x, t, states): return noise
    class Config: config, dtype, device = None, torch.float32, torch.device("cpu")
    loss = ConsistencyLoss(OtherUNet(Config, answer), alphas, times)
    assert loss(points, None, 0) < 1e-5
    points[:, -1] += 1
    assert loss(points, None, 0) == pytest.approx(1, abs=.05)


def test_only_the_adapter_learns_and_the_file_fits_diffusers(slim, few, tmp_path):
    torch.manual_seed(0)
    mine = student(slim, rank=2)
    before = {k: v.clone() for k, v in slim.unet.state_dict().items()}
    losses = distilled(mine, few, 12, batch_size=4, lr=3e-2, warmup=1, report_every=0)
    assert sum(losses[-3:]) < sum(losses[:3]) and all(torch.equal(v, before[k]) for k, v in slim.unet.state_dict().items())
    save_taught(mine, None, "lora", tmp_path, "few")
    ours = few_steps(slim, tmp_path / "few.safetensors")
    assert isinstance(ours.scheduler, LCMScheduler) and all(torch.equal(v, before[k]) for k, v in slim.unet.state_dict().items())
    pipe = pipeline(copy.copy(slim), copy.deepcopy(slim.unet))
    pipe.load_lora_weights(tmp_path, weight_name="few.safetensors")
    pipe.scheduler = LCMScheduler.from_config(slim.scheduler.config)
    for n in (1, 2, 4):
        generator = torch.Generator().manual_seed(32)
        theirs = pipe(PROMPT, num_inference_steps=n, guidance_scale=1, generator=generator).images[0]
        assert mean_difference(theirs, drawn(ours, n=n, guidance_scale=1)) < 1


def test_an_adapter_of_another_width_or_none(slim, tmp_path):
    with pytest.raises(ValueError, match="few_steps.safetensors does not fit: it was made for a model of another width"): few_steps(slim)
    with pytest.raises(FileNotFoundError, match="deepdive-distill writes one"): few_steps(slim, tmp_path / "none.safetensors")


def test_the_shipped_adapter_is_small_and_changes_the_picture(models):
    file = data_folder() / "embeddings" / "few_steps.safetensors"
    assert file.stat().st_size < 2e6
    assert mean_difference(drawn(few_steps(models), n=4, guidance_scale=1), drawn(models, n=4, guidance_scale=1)) > 5


def test_kept_paths_are_drawn_anew_for_other_weights(slim, tmp_path, monkeypatch):
    calls, whole = [], speed.paths
    monkeypatch.setattr(speed, "paths", lambda *args: calls.append(1) or whole(*args))
    monkeypatch.setattr(speed, "choose_precision", lambda: "no")
    first = kept_paths(tmp_path / "p.pt", slim, 2)
    assert torch.equal(kept_paths(tmp_path / "p.pt", slim, 2)["points"], first["points"]) and len(calls) == 1
    other = replace(slim, unet=copy.deepcopy(slim.unet))
    with torch.no_grad(): other.unet.conv_in.weight.add_(1)
    kept_paths(tmp_path / "p.pt", other, 2), kept_paths(tmp_path / "p.pt", other, 3)
    assert len(calls) == 3


def test_the_command_writes_adapter_and_record(slim, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "load_models", lambda *args, **kw: slim)
    distill(steps=2, n=2, batch_size=2, rank=2, work=str(tmp_path / "work"), out=str(tmp_path / "out"))
    found = json.loads((tmp_path / "out" / "training" / "few_steps.json").read_text())
    assert found["steps"] == 2 and len(found["losses"]) == 2
    assert drawn(few_steps(slim, tmp_path / "out" / "few_steps.safetensors"), n=2, guidance_scale=1).size == (32, 32)
    with pytest.raises(ValueError, match="rank must be a whole number of at least 1"): distill(rank=0, out=str(tmp_path))


def test_the_blocks_of_sd_1(models):
    "SD 1.x's blocks, in thinner layers: answers are kept, and an adapter for pocket-sd does not fit."
    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=8, block_out_channels=(16, 32, 32, 32), norm_num_groups=8, cross_attention_dim=128,
                                attention_head_dim=8).eval().requires_grad_(False)
    x, states = torch.randn(2, 4, 8, 8), encode_prompt(models, ["an owl", ""])
    there = unet(x, 500, encoder_hidden_states=states).sample
    mine = keep_answers(copy.deepcopy(unet))
    for _ in range(2): assert torch.equal(mine(x, 500, encoder_hidden_states=states).sample, there)
    with pytest.raises(ValueError, match="does not fit"): few_steps(replace(models, unet=unet))


def test_benchmark_measures_pairs_and_writes_json(slim, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "load_models", lambda *args, **kw: replace(slim, source=tmp_path / "slim", unet=copy.deepcopy(slim.unet)))
    monkeypatch.setattr(benchmark, "matmul_speed", lambda *args: 1e9)
    rows = "loop,two,inference,answers,q,8,DPM"
    benchmark.main(["--only", rows, "--steps", "2", "--repeats", "2", "--size", "64", "--out", str(tmp_path / "mine.json")])
    found, said = json.loads((tmp_path / "mine.json").read_text()), capsys.readouterr().out
    assert found["model"] == "slim" and found["size"] == 64 and len(found["rows"]) == 7 and "loop / pipeline = " in said
    assert {"seconds", "ratio", "low", "high", "difference", "setup"} == found["rows"]["loop"].keys()
    assert all(found["rows"][k]["difference"] < 1 for k in ("loop", "two calls", "inference mode", "answers kept", "q, k, v in one product"))
    with pytest.raises(SystemExit, match="no row begins with 'rocket'; there are: loop, two calls"): benchmark.main(["--only", "rocket"])
    with pytest.raises(ValueError, match="multiples of 8"): benchmark.main(["--size", "65"])
