"Notebooks 09 to 11: the training loop, its checkpoints, the losses and the judge."
import json
import random
import re
import shutil

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import StableDiffusionPipeline
from torch import nn

from deepdive.autoencoder_training import FinishingLoss, pocket_vae, train_vae
from deepdive.contrastive import learning_rate, train_text
from deepdive.latent_diffusion import (
    BACKGROUNDS, SCHEDULE, TRAINED_STYLES, DiffusionLoss, Pictures, SettlingLoss, batch_psnr, border_colour, cache_latents, combinations,
    data_folder, draw_weights, encode_prompt, evaluate, fit, generate, load_checkpoint, mean_difference, pocket_unet, round_trip,
    save_checkpoint, save_fp16, scores, train_judge, train_unet, training_alphas, training_record, write_scheduler)


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(2))

    def forward(self, x): return (x @ self.a - x.sum(1)).square().mean()


def line_batch(seed): return (torch.randn(8, 2, generator=torch.Generator().manual_seed(seed)),)


def test_fit_learns_and_goes_on_from_its_checkpoint(tmp_path):
    whole, broken = Line(), Line()
    settings = dict(lr=.05, warmup=5, ema_decay=.9, report_every=100)
    losses = fit(whole, line_batch, 60, **settings)
    assert losses[-1] < .1 * losses[0] and torch.allclose(whole.a, torch.ones(2), atol=.2)
    file = tmp_path / "checkpoint.pt"
    class Stop(Exception): pass
    def stop_at_30(seed, calls=[]):
        calls.append(seed)
        if len(calls) == 31: raise Stop
        return line_batch(seed)
    with pytest.raises(Stop): fit(broken, stop_at_30, 60, checkpoint=file, save_every=10, **settings)
    assert len(load_checkpoint(file)["losses"]) == 30
    again = Line()
    assert fit(again, line_batch, 60, checkpoint=file, **settings) == losses
    assert torch.equal(again.a, whole.a)


def test_checkpoints_hold_no_code(tmp_path):
    torch.save(dict(module=Line()), tmp_path / "bad.pt")
    with pytest.raises(Exception, match="weights_only|Weights only"): load_checkpoint(tmp_path / "bad.pt")
    assert load_checkpoint(tmp_path / "none.pt") is None
    save_checkpoint(tmp_path / "sub" / "good.pt", losses=[1.])
    assert load_checkpoint(tmp_path / "sub" / "good.pt") == dict(losses=[1.])


def test_learning_rate_warms_up_and_decays():
    rates = [learning_rate(i, 100, 1., warmup=10) for i in range(100)]
    assert rates[0] < .11 and max(rates) == max(rates[8:13]) and rates[-1] < .03


def test_shipped_vae_brings_pictures_back(models):
    pixels, _ = Pictures(splits=("train",)).batch(32, seed=31)
    assert batch_psnr(pixels, round_trip(models.vae, pixels)).mean() > 25
    latents = models.vae.encode(pixels).latent_dist.sample() * models.vae.config.scaling_factor
    assert .9 < latents.std() < 1.1


def test_finishing_trains_decoder_and_discriminator_and_leaves_the_encoder_alone():
    torch.manual_seed(0)
    loss, pixels = FinishingLoss(pocket_vae()), Pictures(subjects=["parrot"]).batch(4, 1)[0]
    loss(pixels).backward()
    with_gradient = {name.split(".")[1] for name, p in loss.vae.named_parameters(prefix="vae") if p.grad is not None and p.grad.abs().sum() > 0}
    assert with_gradient == {"decoder", "post_quant_conv"}
    assert all(p.grad is not None for p in loss.discriminator.parameters())
    assert loss.discriminator(pixels).shape == (4, 1, 16, 16)


def test_finishing_pushes_the_decoder_by_the_share_of_the_plain_errors_pull():
    torch.manual_seed(0)
    vae, pixels = pocket_vae(), Pictures(subjects=["parrot"]).batch(2, 1)[0]
    def pull(share):
        loss = FinishingLoss(vae, share)
        loss.discriminator.load_state_dict(state)
        torch.manual_seed(1)
        return torch.autograd.grad(loss(pixels), vae.decoder.conv_out.weight)[0]
    state = FinishingLoss(vae).discriminator.state_dict()
    plain = pull(0.)
    assert (pull(.5) - plain).norm().item() == pytest.approx(.5 * plain.norm().item(), rel=.05)


def test_fp16_on_disk_float32_when_loaded(tmp_path, models):
    save_fp16(models.text_encoder, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"
    again = type(models.text_encoder).from_pretrained(tmp_path)
    assert again.dtype == torch.float32 and models.text_encoder.dtype == torch.float32


def test_scheduler_file_has_no_spacing(tmp_path):
    write_scheduler(tmp_path)
    config = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    assert "timestep_spacing" not in config and config["beta_end"] == SCHEDULE["beta_end"] == .012


def test_diffusion_loss_weights(models):
    class Zero(nn.Module):
        def forward(self, x, t, encoder_hidden_states): return type("Out", (), dict(sample=torch.zeros_like(x)))
    abar = torch.linspace(.99, .01, 1000)
    loss = DiffusionLoss(Zero(), abar)
    error, t = loss(torch.zeros(64, 4, 8, 8), None, 0, per_sample=True)
    assert (error - 1).abs().max() < .5
    snr = abar[t] / (1 - abar[t])
    assert torch.allclose(loss(torch.zeros(64, 4, 8, 8), None, 0), (error * snr.clamp(.05, 5) / snr).mean())
    assert snr.min() < .05 and snr.max() > 5


def test_unet_text_and_timestep_matter(models):
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    a, b = encode_prompt(models, ["a parrot on a red background", "a castle on a blue background"]).chunk(2)
    with torch.no_grad(): ya, yb, yt = (models.unet(x, t, encoder_hidden_states=c).sample for t, c in ((700, a), (700, b), (20, a)))
    assert (ya - yb).abs().mean() > .01 and (ya - yt).abs().mean() > .01
    assert sum(p.numel() for p in pocket_unet().parameters()) == sum(p.numel() for p in models.unet.parameters())


def test_cache_says_what_it_holds(models):
    pictures = Pictures(splits=("train",), styles=("3d render", "cartoon"))
    cache = cache_latents(models.vae, pictures, 8, seed=1, batch_size=4)
    assert cache["latents"].shape == (8, 4, 16, 16) and cache["shown"].shape == (8, 3)
    drawn = pictures.batch(4, 1_000_003)[1]
    assert [pictures.subjects[s] for s in cache["shown"][:4, 0]] == [d.subject for d in drawn]


def test_styles_come_alike_and_the_lectures_subjects_twice_as_often():
    pictures = Pictures(subjects=["apple", "otter"], styles=("3d render", "oil painting"))
    shown = torch.tensor([[1, 0, 3], [0, 0, 3], [0, 0, 5], [0, 1, 3]])  # otter and two apples in one style, an apple in the other
    assert torch.allclose(draw_weights(dict(shown=shown), pictures), torch.tensor([2 / 3, 1 / 3, 1 / 3, 1.]))


def test_prompts_to_test_are_of_the_kind_asked_for():
    pictures = Pictures(splits=("train",), styles=TRAINED_STYLES[:5])
    seen, held = combinations(pictures, 50, False), combinations(pictures, 50, True)
    assert not {a[:3] for a in seen} & pictures.held_out and {a[:3] for a in held} <= pictures.held_out
    assert all(s in p and st in p and b in p for s, st, b, p in seen + held)


def test_judge_learns_from_real_pictures_and_scores_count():
    pictures = Pictures(subjects=["parrot", "castle", "apple"], styles=("flat illustration", "pencil sketch"))
    judge, losses = train_judge(pictures, 40, batch_size=24, lr=3e-3, warmup=5, report_every=100)
    asked = [(s, st, b) for s in pictures.subjects for st in pictures.styles for b in ("red", "white", "blue")]
    images = [pictures.draw(random.Random(i), *a).image for i, a in enumerate(asked)]
    right, wrong = scores(judge, pictures, asked, images), scores(judge, pictures, asked, images[::-1])
    assert right["background"] == 1 and right["style"] > .9 and right["subject"] > wrong["subject"]
    assert right["all_three"] <= right["subject_and_style"] <= right["subject"]


def test_border_colour_of_all_ten():
    pictures = Pictures(subjects=["swan"])
    assert [border_colour(pictures.draw(random.Random(1), "swan", "cartoon", b).image) for b in BACKGROUNDS] == list(BACKGROUNDS)


def test_generate_gives_each_picture_its_own_seed(models):
    one, two = generate(models, ["a parrot"] * 2, steps=2, seed=5)
    assert mean_difference(generate(models, ["a parrot"], steps=2, seed=5, negative=["blue"])[0], one) > .5
    assert mean_difference(generate(models, ["a parrot"], steps=2, seed=6)[0], two) < .5 < mean_difference(one, two)


def test_every_stages_command_goes_on_from_weights_and_leaves_a_whole_model(tmp_path):
    model, work = tmp_path / "model", tmp_path / "work"
    shutil.copytree(data_folder() / "pocket-sd", model)
    before = {name: training_record(name) for name in ("text", "vae", "unet")}
    for name in "evaluation", "behaviour": (model / "training" / f"{name}.json").unlink()
    AcceleratorState._reset_state(True)  # one process has one precision; the commands have bf16, the tests before had none
    train_text(steps=2, batch_size=8, work=work / "text", out=model)
    train_vae(steps=2, finish=1, batch_size=4, work=work / "vae", out=model, start=model / "vae")
    train_unet(steps=2, settle=1, batch_size=4, n_latents=8, work=work / "unet", out=model, start=model / "unet")
    evaluate(out=model, n=3, judge_steps=2, work=work / "judge")
    after = {name: training_record(name, model) for name in (*before, "evaluation", "behaviour")}
    for name in "vae", "unet":
        new = after[name]["runs"][len(before[name]["runs"]):]
        assert after[name]["runs"][:-len(new)] == before[name]["runs"] and [run["steps"] for run in new] == [2, 1]
    assert len(after["text"]["runs"]) == 1 and 0 <= after["text"]["accuracy"] <= 1
    assert [set(run["psnr"]) for run in after["vae"]["runs"][-2:]] == [{"2"}, {"1"}]
    assert after["evaluation"]["seen"]["real"]["n"] == 3
    assert after["behaviour"]["n"] == 1 and after["behaviour"]["negative"] in (0, 1)
    assert all(share in (0, 1) for shares in after["behaviour"]["img2img"].values() for share in shares)
    pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a parrot", num_inference_steps=1).images[0].size == (128, 128)
    assert pipe.vae.config.scaling_factor == pytest.approx(after["vae"]["scaling_factor"])
    AcceleratorState._reset_state(True)


def test_records_of_the_long_runs_are_there():
    for name, keys in dict(text=set(), vae={"psnr"}, unet={"n_latents"}).items():
        runs = training_record(name)["runs"]
        for before, run in zip([None, *runs], runs):
            assert {"losses", "steps", "batch_size"} | keys <= set(run)
            tenth = len(run["losses"]) // 10
            if run.get("run") == "vae_finished":  # its loss is raised again by a discriminator that learns
                psnr = list(run["psnr"].values())
                assert psnr[-1] > psnr[0] + .2
                # between the two finishing runs the oil paintings were drawn anew: no comparison
                assert before["run"] == "vae_finished" or psnr[-1] > max(before["psnr"].values())
            else: assert sum(run["losses"][-tenth:]) < .9 * sum(run["losses"][:tenth])
    result = training_record("evaluation")
    assert set(result) == {"seen", "held_out"} and all(set(rows) == {"real", "round_trip", "generated"} for rows in result.values())
    assert set(training_record("behaviour")["guidance"]) == {"0", "1", "3", "5", "7.5", "12"}


def test_readme_and_cards_say_what_was_measured(models):
    model = data_folder() / "pocket-sd"
    readme, card = ((folder / "README.md").read_text(encoding="utf-8") for folder in (data_folder().parent, model))
    subjects = len((model / "subjects.txt").read_text(encoding="utf-8").split("\n")) - 1
    assert f"knows {subjects} subjects" in readme and f"the {subjects} of [subjects.txt]" in card
    for rows in training_record("evaluation").values():
        shares = [rows["generated"][key] for key in ("subject", "style", "background")]
        assert re.search(".*?".join(rf"\b{100 * share:g} %" for share in shares), readme, flags=re.S)
        for row in rows.values(): assert "| 200 | " + " | ".join(f"{share:.1%}" for share in list(row.values())[1:]) in card
    pixels, _ = Pictures().batch(64, seed=999_999)
    psnr = batch_psnr(pixels, round_trip(models.vae, pixels)).mean().item()
    recorded = list(training_record("vae")["runs"][-1]["psnr"].values())[-1]
    assert abs(psnr - recorded) < .05 and f"PSNR {recorded:.2f} dB" in card


def test_a_settled_copy_is_to_answer_as_its_teacher_would_at_less_guidance(models):
    text, uncond = encode_prompt(models, ["a parrot", "a castle", "an apple", "a swan"]), encode_prompt(models, "")
    x, t = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([900, 300, 600, 10])
    loss = SettlingLoss(pocket_unet(), training_alphas(), models.unet, uncond, .4, wrong=.5)
    with torch.no_grad(): a, b = (models.unet(x, t, encoder_hidden_states=e).sample for e in (text, uncond.expand_as(text)))
    expected = b + .4 * (a - b)
    expected[1] = b[1]  # the first half has another picture's text, and at t = 300 one can see it
    assert torch.allclose(loss.target(None, x, t, text), expected, atol=1e-5)
    assert len(list(loss.parameters())) == len(list(models.unet.parameters()))  # the teacher's are not among them
    seen = []
    loss.unet.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True)
    with torch.no_grad(): loss(x, text, 0)
    assert torch.equal(seen[0], text[[1, 0, 2, 3]])
