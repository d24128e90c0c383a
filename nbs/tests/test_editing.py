"Editing: what 17 cannot assert inside the notebook. Models are tiny and random, except where pocket-sd is asked for."
import base64
import io
import json
import random
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from deepdive import editing, editing_parts as parts_module
from deepdive.editing import (EditingLoss, benchmark, edit, editing_batches, free_places, inpaint, invert, load_editor,
                              prompt_to_prompt, relevant, seeing, teach_edits, train_edits, ways)
from deepdive.editing_parts import (KINDS, Edit, EditingPanel, drawn_pairs, edits, lent_words, measured, own_pairs, pair_latents,
                                    parts_pair, pasted)
from deepdive.denoising import load_checkpoint
from deepdive.pictures import POCKET_STYLES, Pictures, load_judge
from deepdive.sampling_loop import encode_prompt, mean_difference
from deepdive.schedulers import euler, noise_predictor, sigma_schedule
from deepdive.speed import solver
from diffusers import (StableDiffusionInpaintPipeline, StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel)
from PIL import Image
from safetensors.torch import load_file, save_file

PARTS = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
KEEP = dict(batch_size=2, rank=2, report_every=0)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(3)]


def piped(kind, models, unet=None, **more):
    pipe = kind(vae=models.vae, text_encoder=models.text_encoder, tokenizer=models.tokenizer, unet=unet or models.unet,
                scheduler=solver(models, "Euler"), **PARTS, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def white(box, size=(32, 32), mode="L"):
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask.convert(mode)


def test_cases_are_fixed_and_their_masks_say_what_may_change():
    cases = edits(12)
    assert [c.kind for c in cases] == [*KINDS, *KINDS] and edits(12)[7].instruction == cases[7].instruction
    assert all(np.array_equal(a.image, b.image) for a, b in zip(cases, edits(12))) and edits(2, seed=1)[0].instruction != cases[0].instruction
    for c in cases:
        a, b, mask = (np.asarray(i) for i in (c.image, c.target, c.mask))
        assert (a != b).any() and not (a != b).any(2)[mask == 0].any() and set(np.unique(mask)) == {0, 255}
        assert (c.before == c.after) == (c.kind in KINDS[3:])
    assert {c.instruction.split()[0] for c in cases} == {"make", "turn", "replace", "mirror", "move"}


def test_cases_and_lessons_are_disjoint():
    pictures, rng = Pictures(splits=("train",), styles=POCKET_STYLES), random.Random(0)
    for i in range(120):
        kind = KINDS[i % 6]
        a, b, *_ = parts_pair(pictures, rng, kind, False)
        assert not {a[:3], b[:3]} & pictures.held_out and a != b
        a, b, *_ = parts_pair(pictures, rng, kind, True)
        assert a[:3] in pictures.held_out
        assert all(0 <= p.x <= 128 - p.width and 0 <= p.y <= 128 - p.width for p in (a, b))


def test_the_words_back_lead_back():
    pairs, told = drawn_pairs(Pictures(splits=("train",), styles=POCKET_STYLES), 60, seed=2)
    back = dict(larger="smaller", left="right", right="left", up="down", down="up", it="it")
    for (a, b), (there, here) in zip(pairs, told):
        assert a.size == b.size == (128, 128) and there.split()[:2] == here.split()[:2]
        if (end := there.split()[-1]) in back and there.split()[0] != "replace": assert here.split()[-1] == back[end]


def test_measures_of_perfect_and_of_idle_answers():
    cases, judge = edits(6), load_judge()
    best, idle = measured(judge, cases, [c.target for c in cases]), measured(judge, cases, [c.image for c in cases])
    assert min(best["target"]) > 100 and min(best["outside"]) > 100 and all(best["right"][3:])
    assert min(idle["outside"]) > 100 and max(idle["target"]) < 60 and not any(idle["right"][3:])
    with pytest.raises(ValueError): measured(judge, cases, [])


def test_free_places():
    picture = Image.new("RGB", (32, 32))
    assert free_places(picture, white((9, 9, 10, 10)), (4, 4)).nonzero().tolist() == [[0, 0, 1, 1]]  # one pixel frees its square
    for grey, n in ((127, 0), (128, 16)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert free_places(picture, Image.new("L", (32, 32), grey), (4, 4)).sum() == n
        assert bool(said) == (n == 0)
    for mode in ("1", "L", "P", "RGB", "RGBA", "I;16"):
        mask = Image.new("I;16", (32, 32), 65535) if mode == "I;16" else white((0, 0, 16, 32), mode=mode)
        assert free_places(picture, mask, (4, 4)).sum() == (16 if mode == "I;16" else 8), mode
    with pytest.raises(ValueError, match="the mask is 16 x 32, but the picture 32 x 32"): free_places(picture, white((0, 0, 9, 9), (16, 32)), (4, 4))


@pytest.mark.parametrize("which", ["slim", "pocket"])
def test_inpainting_is_the_pipelines(which, slim, models, images):
    some, size = (slim, 32) if which == "slim" else (models, 128)
    picture, mask = images[0].resize((size, size)), white((0, 0, size // 2, size), (size, size))
    theirs = piped(StableDiffusionInpaintPipeline, some)("a fox", picture, mask, height=size, width=size, num_inference_steps=6,
                                                         guidance_scale=7.5, generator=torch.Generator().manual_seed(3)).images[0]
    ours, = inpaint(some, "a fox", picture, mask, 6, seed=3)
    assert mean_difference(ours, theirs) < 1
    assert mean_difference(inpaint(some, "a fox", picture, mask, 6, seed=4)[0], theirs) > 1


def test_inpainting_keeps_what_is_known(slim, images):
    mask = white((0, 0, 16, 32))
    for repeats in (1, 3):
        made = inpaint(slim, ["a fox", "an owl"], images[:2], [mask, white((0, 0, 8, 8))], 3, repeats=repeats)
        assert len(made) == 2 and made[0].size == (32, 32)
    one = inpaint(slim, ["a fox"] * 2, images[0], mask, 3)
    assert mean_difference(one[0], inpaint(slim, "a fox", images[0], [mask], 3)[0]) >= 0 and len(one) == 2
    with pytest.warns(UserWarning, match="black everywhere"): a, = inpaint(slim, "a fox", images[0], white((0, 0, 0, 0)), 3)
    with pytest.warns(UserWarning): b, = inpaint(slim, "an owl", images[0], white((0, 0, 0, 0)), 2)
    assert mean_difference(a, b) < .01  # the round trip, whatever the prompt
    full = white((0, 0, 32, 32))
    assert mean_difference(*(inpaint(slim, "a fox", i, full, 3)[0] for i in images[:2])) < .01  # text to image
    for wrong in (dict(image=images), dict(mask=[mask] * 2), dict(repeats=0), dict(mask=white((0, 0, 8, 8), (64, 64)))):
        with pytest.raises(ValueError): inpaint(slim, "a fox", **dict(image=images[0], mask=mask) | wrong)


def test_an_inversion_comes_back_and_comes_nearer_with_rounds(models):
    case = edits(1)[0]
    def apart(rounds):
        x = invert(models, case.before, case.image, 8, 2., rounds)
        noise_at = noise_predictor(models, encode_prompt(models, case.before), encode_prompt(models, ""), 2.)
        *_, x = euler(noise_at, x, *sigma_schedule(models, 8))
        return (x - editing.pil_to_latents(models.vae, [case.image])).square().mean().item()
    assert apart(4) < apart(1)
    with pytest.raises(ValueError, match="rounds"): invert(models, "a fox", case.image, 8, rounds=0)
    with pytest.raises(ValueError, match="2 pictures for 1 prompts"): invert(models, "a fox", [case.image] * 2, 8)


def test_the_new_channels_begin_as_zeros(slim, models):
    for some in (slim, models):
        unet, state = seeing(some.unet), encode_prompt(some, "a fox")
        assert unet.config.in_channels == 8 and some.unet.config.in_channels == 4
        assert unet.conv_in.weight[:, 4:].abs().max() == 0 and torch.equal(unet.conv_in.weight[:, :4], some.unet.conv_in.weight)
        noisy = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            plain = some.unet(noisy, 500, encoder_hidden_states=state).sample
            for picture in noisy, 100 * noisy.flip(-1):
                assert torch.allclose(unet(torch.cat([noisy, picture], 1), 500, encoder_hidden_states=state).sample, plain, atol=1e-5)


def test_lessons_go_both_ways_and_drop_text_and_picture(slim, images):
    latents = pair_latents(slim.vae, [images[:2], images[1:]])
    assert latents.shape == (2, 2, 4, 4, 4) and torch.allclose(latents[0, 1], latents[1, 0], atol=1e-3)
    targets, states, seen, seed = editing_batches(slim, latents, [("mirror it", "back")] * 2, 400, drop=.1)(5)
    factor, empty = slim.vae.config.scaling_factor, encode_prompt(slim, "")[0]
    assert seed == 5 and targets.shape == seen.shape == (400, 4, 4, 4) and states.shape == (400, 77, 16)
    untold, unseen = (states == empty).all((1, 2)), (seen == 0).all((1, 2, 3))
    assert all(20 < n < 62 for n in ((untold & unseen).sum(), (untold & ~unseen).sum(), (~untold & unseen).sum()))
    for words, end in (("mirror it", 1), ("back", 0)):
        mine = (states == encode_prompt(slim, words)[0]).all((1, 2))
        assert {min(range(2), key=lambda row: (latents[row, end].float() * factor - t).abs().sum()) for t in targets[mine]} == {0, 1}
    one_way = editing_batches(slim, latents, [("frob it",)] * 2, 50)(1)[0]
    assert all(any(torch.allclose(t, latents[row, 1].float() * factor) for row in (0, 1)) for t in one_way)


def test_what_is_learned_is_saved_and_the_pipeline_agrees(slim, images, tmp_path):
    latents, told = pair_latents(slim.vae, [images[:2], images[1:]]), [("mirror it", "back")] * 2
    before, file = {k: v.clone() for k, v in slim.unet.state_dict().items()}, tmp_path / "edits.safetensors"
    editor, losses = teach_edits(slim, latents, told, 4, lr=1e-2, file=file, **KEEP)
    assert len(losses) == 4 and all(torch.equal(v, slim.unet.state_dict()[k]) for k, v in before.items())
    assert editor.unet.conv_in.weight[:, 4:].abs().max() > 0
    loaded = load_editor(slim, file)
    assert not any("lora" in k for k in loaded.unet.state_dict())
    assert all(torch.allclose(v, editor.unet.state_dict()[k], atol=2e-3) for k, v in loaded.unet.state_dict().items())
    ours, = edit(loaded, "mirror it", images[0], 4, 3., 1.5, seed=5)
    pipe = piped(StableDiffusionInstructPix2PixPipeline, slim, seeing(slim.unet))
    pipe.load_lora_weights(tmp_path, weight_name=file.name)
    theirs = pipe("mirror it", images[0], num_inference_steps=4, guidance_scale=3., image_guidance_scale=1.5,
                  generator=torch.Generator().manual_seed(5)).images[0]
    assert mean_difference(ours, theirs) < 1 and mean_difference(edit(loaded, "mirror it", images[0], 4, 3., 1.5, seed=6)[0], theirs) > 1
    teach_edits(slim, latents, told, 0, file=tmp_path / "same.safetensors", start=file, **KEEP)  # the same LoRA is trained further
    same, first = load_file(tmp_path / "same.safetensors"), load_file(file)
    assert same.keys() == first.keys() and all(torch.equal(v, first[k]) for k, v in same.items())
    save_file({k.replace("conv_in", "conv"): v for k, v in first.items()}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="other layers"): teach_edits(slim, latents, told, 0, start=tmp_path / "other.safetensors", **KEEP)
    again, _ = teach_edits(loaded, latents, told, 1, **KEEP)  # an own action goes on from here
    assert again.unet.config.in_channels == 8
    with pytest.raises(FileNotFoundError, match="deepdive-train-edits"): load_editor(slim, tmp_path / "none.safetensors")


def test_the_shipped_editor_is_small_and_loads(models):
    file = editing.data_folder() / "embeddings" / "edits.safetensors"
    assert file.stat().st_size < 6_000_000 and load_editor(models).unet.conv_in.weight[:, 4:].abs().max() > 0


def test_a_run_that_was_killed_goes_on(slim, images, tmp_path, monkeypatch):
    latents, told = pair_latents(slim.vae, [images[:2], images[1:]]), [("mirror it", "back")] * 2
    whole, losses = teach_edits(slim, latents, told, 5, **KEEP)
    class Stop(Exception): pass
    def stopping(*args):
        make_batch = editing_batches(*args)
        def stop(seed):
            if seed % 1_000_003 == 3: raise Stop
            return make_batch(seed)
        return stop
    with monkeypatch.context() as patch:
        patch.setattr(editing, "editing_batches", stopping)
        with pytest.raises(Stop): teach_edits(slim, latents, told, 5, checkpoint=tmp_path / "c.pt", save_every=1, **KEEP)
    saved = load_checkpoint(tmp_path / "c.pt")
    assert len(saved["losses"]) == 3 and all("lora" in k for k in saved["module"])
    resumed, again = teach_edits(slim, latents, told, 5, checkpoint=tmp_path / "c.pt", save_every=1, **KEEP)
    assert again == losses and all(torch.equal(v, resumed.unet.state_dict()[k]) for k, v in whole.unet.state_dict().items())


def test_what_edit_says(slim, images):
    editor = replace(slim, unet=seeing(slim.unet))
    with pytest.raises(ValueError, match="load_editor"): edit(slim, "mirror it", images[0])
    with pytest.raises(ValueError, match="2 pictures for 1"): edit(editor, "mirror it", images[:2])
    with pytest.raises(ValueError, match="a scale must be"): edit(editor, "mirror it", images[0], image_guidance_scale=float("nan"))
    with pytest.raises(TypeError): edit(editor, "mirror it", "picture.png")
    with pytest.warns(UserWarning, match="nothing to do"): edit(editor, "  ", images[0], 1)
    for mode in ("1", "L", "P", "RGBA", "CMYK"): assert edit(editor, "mirror it", images[0].convert(mode), 1)[0].mode == "RGB"
    assert len(edit(editor, ["mirror it"] * 2, images[0], 1)) == 2


def test_an_edit_within_a_mask_leaves_the_rest_alone(slim, images):
    editor, mask = replace(slim, unet=seeing(slim.unet)), white((0, 0, 16, 32))
    plain, full, half = (edit(editor, "mirror it", images[0], 3, mask=m)[0] for m in (None, white((0, 0, 32, 32)), mask))
    assert np.array_equal(plain, full)  # white everywhere is no mask
    old, new = np.asarray(images[0]), np.asarray(half)
    assert np.array_equal(new[:, 16:], old[:, 16:]) and (new[:, :16] != old[:, :16]).mean() > .5
    both = edit(editor, ["mirror it"] * 2, images[:2], 3, mask=[mask, white((0, 0, 32, 32))])
    assert mean_difference(both[0], half) < .5 and np.array_equal(np.asarray(both[0])[:, 16:], old[:, 16:])
    with pytest.warns(UserWarning, match="black everywhere"): same, = edit(editor, "mirror it", images[0], 1, mask=white((0, 0, 0, 0)))
    assert np.array_equal(same, images[0])
    for wrong, sentence in ((white((0, 0, 8, 8), (64, 64)), "64 x 64, but the picture 32 x 32"), ([mask] * 2, "2 masks for 1")):
        with pytest.raises(ValueError, match=sentence): edit(editor, "mirror it", images[0], 1, mask=wrong)


def test_what_is_kept_is_as_noisy_as_the_rest_at_every_step(slim, images, monkeypatch):
    "The latents outside the mask are the picture's plus sigma times the noise, which is what inpainting puts back."
    editor, seen, sigmas = replace(slim, unet=seeing(slim.unet)), [], []
    def watched(noise_at, x, t, s):
        for sigma, x in zip(s[1:], euler(noise_at, x, t, s)):
            seen.append(x), sigmas.append(sigma)
            yield x
    monkeypatch.setattr(editing, "euler", watched)
    edit(editor, "mirror it", images[0], 4, mask=white((0, 0, 16, 32)))
    noise = torch.randn((1, 4, 4, 4), generator=torch.Generator().manual_seed(32))
    known = editing.pil_to_latents(slim.vae, [images[0]])
    assert len(seen) == 4
    for x, sigma in zip(seen, sigmas): assert torch.allclose(x[..., 2:], (known + sigma * noise)[..., 2:], atol=1e-4)


def test_pasting():
    made, image = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    for grey, colour in ((127, (0, 0, 255)), (128, (255, 0, 0))):
        assert pasted(made, image, Image.new("L", (32, 32), grey)).getcolors() == [(32 * 32, colour)]
    assert sorted(pasted(made, image, white((0, 0, 64, 32), (64, 64), "P")).getcolors()) == [(512, (0, 0, 255)), (512, (255, 0, 0))]


def test_an_instruction_finds_its_own_mask(models):
    "On pocket-sd: what it marks is mostly what may change, outside it less changes than without it, and saying nothing marks nothing."
    editor, cases = load_editor(models), [c for c in edits(24, seed=8) if c.kind in ("style", "subject", "moved")]
    told, pictures = [c.instruction for c in cases], [c.image for c in cases]
    masks = relevant(editor, told, pictures)
    assert len(cases) == len(masks) == 12 and all(m.mode == "L" and m.size == (128, 128) for m in masks)
    found, true = (torch.cat([free_places(c.image, m, (16, 16)) for c, m in zip(cases, some)]) for some in (masks, [c.mask for c in cases]))
    assert found[true > 0].mean() > found[true == 0].mean() + .4
    plain, kept = (edit(editor, told[:6], pictures[:6], 10, mask=m) for m in (None, masks[:6]))
    outside = [np.mean([np.abs(np.asarray(i, float) - np.asarray(c.image))[np.asarray(c.mask) == 0].mean() for i, c in zip(some, cases)])
               for some in (plain, kept)]
    assert outside[1] < .9 * outside[0]
    assert not np.asarray(relevant(editor, " ", pictures[0])[0]).any()


def test_what_relevant_says(slim, images):
    editor = replace(slim, unet=seeing(slim.unet))
    with pytest.raises(ValueError, match="load_editor"): relevant(slim, "mirror it", images[0])
    with pytest.raises(ValueError, match="2 pictures for 1"): relevant(editor, "mirror it", images[:2])
    for wrong in (dict(timestep=1000), dict(timestep=-1), dict(draws=0)):
        with pytest.raises(ValueError, match=next(iter(wrong))): relevant(editor, "mirror it", images[0], **wrong)
    one, two = relevant(editor, ["mirror it", "a fox"], images[0], draws=1)
    assert one.size == two.size == (32, 32) and np.array_equal(one, relevant(editor, "mirror it", images[0], draws=1)[0])


def small(monkeypatch, slim):
    "The commands, on tiny models and pictures."
    slim = replace(slim, unet=editing.copy.deepcopy(slim.unet))
    slim.unet.register_to_config(sample_size=16)  # for pictures of 128 x 128
    monkeypatch.setattr(editing, "load_models", lambda *_, **__: slim)
    monkeypatch.setattr(editing, "teach_edits", lambda *a, **k: teach_edits(*a, **k | dict(rank=2)))


def test_the_commands(slim, tmp_path, monkeypatch):
    small(monkeypatch, slim)
    folders = dict(work=str(tmp_path / "work"), out=str(tmp_path))
    train_edits(steps=2, batch_size=2, n_pairs=3, **folders)
    def runs(): return json.loads((tmp_path / "training" / "edits_training.json").read_text())["runs"]
    assert [len(run["losses"]) for run in runs()] == [2]
    seeds = []
    monkeypatch.setattr(editing, "drawn_pairs", lambda *a, seed: seeds.append(seed) or drawn_pairs(*a, seed=seed))
    train_edits(steps=1, batch_size=2, n_pairs=4, start=str(tmp_path / "edits.safetensors"), work=str(tmp_path / "more"), out=str(tmp_path))
    assert [(run["steps"], run["n_pairs"]) for run in runs()] == [(2, 3), (1, 4)] and seeds == [1]  # pairs of its own
    benchmark(n=3, steps=2, **folders)
    record = json.loads((tmp_path / "training" / "edits.json").read_text())
    assert list(record["runs"]) == list(ways(slim, slim)) and all(len(r["target"]) == 3 for r in record["runs"].values())
    assert Image.open(tmp_path / "training" / "edits.webp").size == (3 * 128, 11 * 128)
    monkeypatch.setattr(editing, "measured", lambda *_: pytest.fail("measured again"))
    benchmark(n=3, steps=2, **folders)
    assert json.loads((tmp_path / "training" / "edits.json").read_text()) == record
    with pytest.raises(ValueError, match="n must be"): benchmark(n=0, **folders)


def test_two_steps_in_sd_1s_shapes():
    "The loss around a UNet with SD 1.x's kinds of block: every layer that is named has a LoRA."
    unet = UNet2DConditionModel(sample_size=8, block_out_channels=(32, 32, 32, 32), cross_attention_dim=16, attention_head_dim=8)
    loss = EditingLoss(seeing(unet), 2)
    value = loss(torch.randn(2, 4, 16, 16), torch.randn(2, 77, 16), torch.randn(2, 4, 16, 16), 0)
    value.backward()
    grown = [k for k, p in loss.named_parameters() if p.requires_grad and p.grad is not None and p.grad.abs().sum() > 0]
    assert grown and all("lora_B" in k for k in grown) and any("conv_in" in k for k in grown)
    assert Edit._fields[:6] == ("image", "instruction", "before", "after", "mask", "target")


def test_maps_are_lent_word_by_word(models):
    words = models.tokenizer
    assert lent_words(words, "a cat on a pink background", "a cat on a blue background")[:9].tolist() == list(range(9))
    assert lent_words(words, "a cat", "a cute cat")[:6].tolist() == [0, 1, -1, 2, 3, 4]
    assert lent_words(words, "a cute cat", "a cat")[:5].tolist() == [0, 1, 3, 4, 5]


def test_the_old_prompt_with_its_own_maps_gives_the_inversion_back(models):
    "With the prompt unchanged and no guidance, whatever maps are kept, it is the plain way back; the processors are as before."
    case, kinds = edits(1)[0], {k: type(v) for k, v in models.unet.attn_processors.items()}
    x = invert(models, case.before, case.image, 6)
    *_, x = euler(noise_predictor(models, encode_prompt(models, case.before), None, 1.), x, *sigma_schedule(models, 6))
    plain, = editing.latents_to_pil(models.vae, x)
    for shares in ((1, 1), (0, 0), (.5, 0)):
        kept, = prompt_to_prompt(models, case.before, case.before, case.image, *shares, 6, 1.)
        assert mean_difference(kept, plain) < .5, shares
    after = case.after
    free, kept = (prompt_to_prompt(models, case.before, after, case.image, s, s, 6)[0] for s in (0, 1))
    assert mean_difference(kept, case.image) < mean_difference(free, case.image)
    assert {k: type(v) for k, v in models.unet.attn_processors.items()} == kinds
    with pytest.raises(ValueError): prompt_to_prompt(models, "a fox", ["an owl", "a cat"], case.image, num_inference_steps=2)


def test_a_mask_of_a_large_picture_shrinks_with_it(slim):
    rng = np.random.default_rng(1)
    large = Image.fromarray(rng.integers(0, 255, (128, 128, 3), dtype=np.uint8))
    with pytest.warns(UserWarning, match="is scaled"): made, = inpaint(slim, "a fox", large, white((0, 0, 64, 128), (128, 128)), 2)
    assert made.size == (64, 64)
    with pytest.warns(UserWarning, match="is scaled"), pytest.raises(ValueError, match="128 x 128: give both one size"):
        inpaint(slim, "a fox", large, white((0, 0, 9, 9), (64, 64)), 2)


def test_a_negative_prompt_has_a_say(slim, images):
    one, two = (inpaint(slim, "a fox", images[0], white((0, 0, 32, 32)), 3, negative_prompt=n)[0] for n in ("", "a cat"))
    assert mean_difference(one, two) > .1


@pytest.fixture
def table(tmp_path, images):
    for i, image in enumerate(images): image.resize((96, 96)).save(tmp_path / f"{i}.png")
    Image.new("RGB", (200, 128)).save(tmp_path / "wide.png"), (tmp_path / "notes.txt").write_text("no picture")
    def write(*rows, head="input,target,instruction"): (tmp_path / "pairs.csv").write_text("\n".join([head, *rows]), encoding="utf-8-sig")
    return tmp_path, write


def test_own_pairs_are_read(table):
    folder, write = table
    write("0.png,1.png,frob it", " 1.png , 2.png , \"frob it, twice\"")
    pairs, told = own_pairs(folder, 64)
    assert [*map(list, told)] == [["frob it"], ["frob it, twice"]]
    assert all(i.size == (64, 64) and i.mode == "RGB" for pair in pairs for i in pair)


@pytest.mark.parametrize("row, sentence", [
    ("0.png,none.png,frob it", "line 3: there is no 'none.png'"), ("0.png,wide.png,frob it", "line 3: .*two sizes"),
    ("notes.txt,0.png,frob it", "line 3: 'notes.txt' cannot be read"), ("0.png,1.png,", "line 3: it needs input, target and instruction"),
    ("0.png", "line 3: it needs")])
def test_what_is_wrong_with_own_pairs_is_named_with_its_line(table, row, sentence):
    folder, write = table
    write("0.png,1.png,frob it", row)
    with pytest.raises(ValueError, match=sentence): own_pairs(folder)


def test_too_few_own_pairs_and_none(table, tmp_path_factory):
    folder, write = table
    write("0.png,1.png,frob it")
    with pytest.raises(ValueError, match="1 pairs in pairs.csv: give two at least"): own_pairs(folder)
    with pytest.raises(FileNotFoundError, match="no pairs.csv"): own_pairs(tmp_path_factory.mktemp("empty"))


def test_own_pairs_by_the_command(slim, table, tmp_path, monkeypatch):
    folder, write = table
    write("0.png,1.png,frob it", "1.png,2.png,frob it")
    small(monkeypatch, slim)
    editor = replace(slim, unet=seeing(slim.unet))
    monkeypatch.setattr(editing, "load_editor", lambda *_: editor)
    with pytest.raises(ValueError, match="--out"): train_edits(pairs=str(folder), steps=1)
    train_edits(pairs=str(folder), steps=2, batch_size=2, work=str(tmp_path / "work"), out=str(tmp_path / "mine"))
    write("2.png,0.png,blur it", "1.png,2.png,blur it", "0.png,2.png,blur it")  # another action, another folder: nothing of the first is gone on from
    train_edits(pairs=str(folder), steps=2, batch_size=2, work=str(tmp_path / "work"), out=str(tmp_path / "other"))
    one, two = (load_file(tmp_path / name / "own_edits.safetensors") for name in ("mine", "other"))
    assert any(not torch.equal(one[k], two[k]) for k in one)
    monkeypatch.undo()
    assert load_editor(editor, tmp_path / "mine" / "own_edits.safetensors").unet.config.in_channels == 8
    assert json.loads((tmp_path / "mine" / "training" / "own_edits_training.json").read_text())["runs"][0]["n_pairs"] == 2


@pytest.fixture
def panel():
    calls = []
    def edit(words, image, **settings): return calls.append((words, settings)) or [Image.new("RGB", image.size, "green")]
    def inpaint(words, image, mask, **settings):
        if not words: raise ValueError("prompt is <empty>")
        return calls.append((words, mask, settings)) or [Image.new("RGB", image.size, "blue")]
    return EditingPanel(edit, inpaint, Image.new("RGBA", (128, 128), "red")), calls


def test_the_panel_edits_and_goes_on(panel):
    panel, calls = panel
    panel.build()
    assert panel.before.mode == "RGB" and "<img" in panel.shown.value
    panel.go_on()
    assert "there is no result yet" in panel.message.value
    panel.instruction.value, panel.steps.value = "mirror it", 7
    panel.follow()
    assert calls[0] == ("mirror it", dict(mask=None, image_guidance_scale=1., num_inference_steps=7, guidance_scale=3., seed=32))
    assert "<img" in panel.result.value and panel.message.value == ""
    panel.go_on()
    assert panel.before.getpixel((0, 0)) == (0, 128, 0)
    panel.sides[0].value, panel.only.value = 64, True
    panel.follow()
    assert np.array_equal(calls.pop()[1]["mask"], panel.chosen())
    panel.repaint()
    mask = np.asarray(calls[1][1])
    assert mask[:64, 64:].min() == 255 and mask[64:].max() == mask[:, :64].max() == 0 and panel.image.getpixel((0, 0)) == (0, 0, 255)


def test_what_goes_wrong_in_the_panel_is_one_sentence(panel):
    panel, calls = panel
    panel.build()
    panel.prompt.value = ""
    panel.repaint()
    assert panel.message.value == '<div role="status">Error: prompt is &lt;empty&gt;</div>'
    panel.sides[2].value = 0
    assert "is empty: right and bottom come after left and top" in panel.message.value
    panel.only.value = True
    for act in (panel.repaint, panel.follow):
        panel.say("")
        act()
        assert not calls and "is empty" in panel.message.value
    def upload(name, content, where="before"): panel.received(dict(new=[dict(name=name, content=content)], owner=panel.upload), where)
    upload("notes.txt", b"no picture")
    assert "is no picture that can be read" in panel.message.value
    file = io.BytesIO()
    Image.new("L", (128, 128), 255).save(file, "png")
    upload("mask.png", file.getvalue(), "mask")
    panel.prompt.value = "an owl"
    panel.repaint()
    assert np.asarray(calls[0][1]).min() == 255


def test_a_part_is_painted(panel):
    "What a canvas reports is white in the mask, at whatever size; then it is the box again, or another picture."
    panel, calls = panel
    panel.build()
    def stroke(size, box):
        image, file = Image.new("RGBA", (size, size)), io.BytesIO()
        image.paste((255, 0, 0, 255), box)
        image.save(file, "png")
        panel.strokes.value = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    def asked():
        panel.repaint()
        return np.asarray(calls[-1][1])
    for size, box in (128, (16, 32, 48, 64)), (64, (8, 16, 24, 32)):
        panel.forget()
        assert asked()[:64].min() == 255  # the box: the upper half
        stroke(size, box)
        assert "what you painted" in panel.message.value
        mask = asked()
        assert mask[32:64, 16:48].min() == 255 and (mask > 0).sum() == 32 * 32
    panel.go_on()
    assert asked()[:64].min() == 255
    panel.strokes.value = "data:image/png;base64,bm9uZQ=="
    assert "is no picture that can be read" in panel.message.value


def test_the_panel_without_a_front_end_shows_a_still(panel, monkeypatch):
    shown = []
    monkeypatch.setattr(parts_module, "show_images", lambda images, titles: shown.append(titles))
    panel[0]._ipython_display_()
    assert shown == [["before", "make the background blue"]] and not hasattr(panel[0], "box")
