"Notebook 15: own pictures and their errors; what each method trains, saves, resumes and leaves alone; two steps in SD 1.x's shapes."
import json

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel

from benchmark import random_sd1
from deepdive import finetuning
from deepdive.denoising import fit, load_checkpoint
from deepdive.finetuning import (
    RATES, TASKS, Finetuning, Inversion, batches, compare, copied, example_folder, finetune, learn_style, learners, lesson, own_pictures,
    questions, save_taught, settings_for, teach)
from deepdive.sampling_loop import encode_prompt
from deepdive.textual_inversion import load_embedding

KEEP = dict(batch_size=2, report_every=0, lr=1e-2)
WORDS = dict(inversion="<dodo>", dreambooth="sks", lora="sks", full="sks")


@pytest.fixture(scope="module")
def images(): return {name: Image.new("RGB", (32, 32), name) for name in ("red", "green", "blue")}


def weights(models): return {f"{part}.{k}": v.clone() for part in ("unet", "text_encoder") for k, v in getattr(models, part).state_dict().items()}


@pytest.fixture
def folder(tmp_path):
    for i in range(3): Image.new("RGB", (140, 150), (80 * i, 0, 0)).save(tmp_path / f"my_dodo_{i}.png")
    return tmp_path


def animation(file): Image.new("L", (99, 99)).save(file, save_all=True, append_images=[Image.new("L", (99, 99), 9)])


@pytest.mark.parametrize("name, write, says", [
    ("notes.txt", lambda f: f.write_text("no picture"), "'notes.txt' cannot be read as a picture"),
    ("cut.png", lambda f: f.write_bytes(f.with_name("my_dodo_1.png").read_bytes()[:60]), "'cut.png' cannot be read"),
    ("empty.jpg", lambda f: f.touch(), "'empty.jpg' cannot be read"),
    ("thumb.png", lambda f: Image.new("RGB", (200, 63)).save(f), "'thumb.png' is tiny, 200 x 63: its shorter side needs 64"),
    ("waves.gif", animation, "'waves.gif' is animated: save one of its 2 frames"),
    ("waves.webp", animation, "'waves.webp' is animated"),
])
def test_a_file_that_cannot_serve_is_named(folder, name, write, says):
    write(folder / name)
    with pytest.raises(ValueError, match=says): own_pictures(folder)


def test_a_folder_that_cannot_serve(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="^0 files in .*give 3 to 10 pictures"): own_pictures(tmp_path / "empty")
    with pytest.raises(NotADirectoryError, match="nowhere"): own_pictures(tmp_path / "nowhere")
    for i in range(8): Image.new("RGB", (99, 99)).save(folder / f"{i}.png")
    with pytest.raises(ValueError, match="11 files"): own_pictures(folder)


def test_pictures_are_turned_upright_cut_square_and_laid_on_white(folder):
    turned = Image.new("RGB", (200, 128), "red")
    turned.paste("blue", (0, 0, 100, 128))  # the left half
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by a quarter clockwise: blue comes to the top
    turned.save(folder / "turned.png", exif=exif)
    Image.new("RGBA", (128, 128), (0, 0, 0, 0)).save(folder / "clear.png")
    Image.new("P", (128, 128), 0).save(folder / "palette.gif")
    (folder / ".DS_Store").write_bytes(b"hidden")
    found = own_pictures(folder)
    assert list(found) == ["clear", "my dodo 0", "my dodo 1", "my dodo 2", "palette", "turned"]
    assert {(i.size, i.mode) for i in found.values()} == {((128, 128), "RGB")}
    assert found["clear"].getpixel((9, 9)) == (255, 255, 255)
    assert found["turned"].getpixel((64, 5)) == (0, 0, 255) and found["turned"].getpixel((64, 120)) == (255, 0, 0)


def test_lessons_come_alike_and_captions_are_dropped(slim, images):
    mine, prior = lesson(slim, images.values(), ["a dodo"] * 3), lesson(slim, list(images.values())[:1], ["a duck"])
    assert mine["latents"].shape == (6, 4, 4, 4) and len(prior["captions"]) == 2
    latents, ids, seed = batches(slim, mine, prior, batch_size=400, drop=.25)(7)
    assert torch.equal(ids, batches(slim, mine, prior, batch_size=400, drop=.25)(7)[1]) and seed == 7
    counts = [(ids == slim.tokenizer(text, padding="max_length", return_tensors="pt").input_ids).all(1).sum() for text in ("a dodo", "a duck", "")]
    assert sum(counts) == 400 and all(abs(n - m) < 45 for n, m in zip(counts, (150, 150, 100)))
    own = [any(torch.equal(row, other) for other in prior["latents"]) for row in latents]
    assert 150 < sum(own) < 250  # a lesson of two pictures as often as one of six


@pytest.mark.parametrize("method", RATES)
def test_a_method_changes_what_it_should_and_nothing_else(method, slim, images):
    before = weights(slim)
    taught, name, losses, numbers = teach(slim, images, method, WORDS[method], "duck", steps=2, **KEEP)
    assert all(torch.equal(v, before[k]) for k, v in weights(slim).items())  # the original stays as it was
    after = {k.replace("base_layer.", ""): v for k, v in weights(taught).items()}
    changed = {k for k, v in before.items() if not torch.equal(v, after[k][:len(v)])}
    unet, text = ({k for k in changed if k.startswith(part)} for part in ("unet", "text"))
    assert bool(unet) == (method in ("dreambooth", "full")) and bool(text) == (method == "full")
    assert len(losses) == 2 and name == ("<dodo>" if method == "inversion" else "sks duck")
    if method == "inversion":
        table = taught.text_encoder.get_input_embeddings().weight
        assert numbers == 16 and len(table) == 49409  # the row is new; `changed` is empty: all others are bit-equal
        lengths = slim.text_encoder.get_input_embeddings().weight.norm(dim=1)
        assert table[-1].norm().item() == pytest.approx(lengths.mean().item(), rel=1e-3)
        assert not taught.text_encoder.get_input_embeddings()._forward_hooks
    if method == "lora":
        assert numbers == sum(v.numel() for k, v in after.items() if "lora_" in k) > 0
        assert all(v.abs().sum() > 0 for k, v in after.items() if "lora_B" in k)


@pytest.mark.parametrize("method", ["inversion", "lora"])
def test_a_run_that_was_killed_goes_on(method, slim, images, tmp_path, monkeypatch):
    class Stop(Exception): pass
    def stopping(models, *lessons, **settings):
        make_batch = batches(models, *lessons, **settings)
        def stop(seed):
            if seed % 1_000_003 == 3: raise Stop
            return make_batch(seed)
        return stop
    def run(**more):
        taught, name, losses, _ = teach(slim, images, method, WORDS[method], "duck", steps=5, **KEEP, **more)
        return encode_prompt(taught, name), losses, taught
    torch.manual_seed(5)
    states, losses, whole = run()
    file = tmp_path / "checkpoint.pt"
    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "batches", stopping)
        with pytest.raises(Stop): run(checkpoint=file, save_every=1)
    saved = load_checkpoint(file)
    assert len(saved["losses"]) == 3 and not any(k.startswith("text") or "base_layer" in k for k in saved["module"])
    torch.manual_seed(9)  # what is drawn outside must not matter
    again, resumed, last = run(checkpoint=file, save_every=1)
    assert resumed == losses and torch.equal(again, states)
    assert all(torch.equal(v, weights(whole)[k]) for k, v in weights(last).items())


@pytest.mark.parametrize("method", RATES)
def test_plain_diffusers_loads_what_is_saved(method, slim, images, tmp_path):
    taught, name, _, _ = teach(slim, images, method, WORDS[method], "duck", steps=3, **KEEP)
    size = save_taught(taught, name, method, tmp_path, "mine")
    assert size == sum(f.stat().st_size for f in tmp_path.rglob("*.safetensors"))
    fresh = copied(slim)
    pipe = StableDiffusionPipeline(vae=fresh.vae, text_encoder=fresh.text_encoder, tokenizer=fresh.tokenizer, unet=fresh.unet,
                                   scheduler=fresh.scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    file = tmp_path / "mine.safetensors"
    if method == "inversion": pipe.load_textual_inversion(file)
    elif method == "lora": pipe.load_lora_weights(tmp_path, weight_name=file.name)
    else: pipe.unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet").eval()
    if method == "full": pipe.text_encoder = CLIPTextModel.from_pretrained(tmp_path / "text_encoder").eval()
    if method == "inversion": assert load_embedding(file).shape == (1, 16)
    ids = taught.tokenizer(f"a {name}", padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(ids, pipe.tokenizer(f"a {name}", padding="max_length", return_tensors="pt").input_ids)
    def noise(unet, text): return unet(torch.ones(1, 4, 4, 4), 500, encoder_hidden_states=text(ids).last_hidden_state).sample
    with torch.no_grad():
        ours, theirs = noise(taught.unet, taught.text_encoder), noise(pipe.unet, pipe.text_encoder)
        assert torch.allclose(ours, theirs, atol=2e-3)  # float16 in the file
        if method != "inversion": assert not torch.allclose(ours, noise(slim.unet, slim.text_encoder), atol=2e-3)


def test_a_lora_scaled_and_merged(slim, images):
    taught, *_ = teach(slim, images, "lora", "sks", "duck", steps=3, **KEEP)
    states = encode_prompt(slim, "a sks duck")
    def noise(unet):
        with torch.no_grad(): return unet(torch.ones(1, 4, 4, 4), 500, encoder_hidden_states=states).sample
    full = noise(taught.unet)
    taught.unet.set_adapters("default", 0.)
    assert torch.allclose(noise(taught.unet), noise(slim.unet), atol=1e-6) and not torch.allclose(full, noise(slim.unet), atol=1e-3)
    taught.unet.set_adapters("default", 1.)
    taught.unet.fuse_lora(), taught.unet.unload_lora()
    assert torch.allclose(noise(taught.unet), full, atol=1e-5)
    assert taught.unet.state_dict().keys() == slim.unet.state_dict().keys()


def test_the_models_are_copied_unless_told_not_to(slim, images):
    "On a small GPU there is no room for a second UNet; so the command trains the models that it has loaded."
    before = {k: v.clone() for k, v in slim.unet.state_dict().items()}
    teach(slim, images, "dreambooth", "sks", "duck", steps=2, **KEEP)
    assert all(torch.equal(v, before[k]) for k, v in slim.unet.state_dict().items())
    mine = copied(slim)
    taught, *_ = teach(mine, images, "dreambooth", "sks", "duck", steps=2, keep=False, **KEEP)
    assert taught.unet is mine.unet and not all(torch.equal(v, before[k]) for k, v in mine.unet.state_dict().items())


def test_prior_pictures_are_drawn_and_captioned_by_the_kind(slim, images, monkeypatch):
    asked = []
    def fake(models, prompts, *_, **__): return asked.extend(prompts) or [Image.new("RGB", (32, 32))] * len(prompts)
    monkeypatch.setattr(finetuning, "generate", fake)
    teach(slim, images, "dreambooth", "sks", "picture", "{name} of {file}", prior=4, steps=1, **KEEP)
    assert asked == ["a picture of a red", "a picture of a green", "a picture of a blue", "a picture of a red"]


@pytest.mark.parametrize("settings, says", [
    (dict(method="dream"), "method must be one of inversion, dreambooth, lora, full, not 'dream'"),
    (dict(prior=-1), "prior must be a whole number of at least 0"), (dict(rank=0), "rank must be"), (dict(lr=-1.), "lr must be"),
    (dict(method="inversion", word="duck"), "the token 'duck' is taken"), (dict(method="inversion", word="two words"), "one word"),
])
def test_what_teach_says(settings, says, slim, images):
    with pytest.raises(ValueError, match=says): teach(slim, images, **dict(KEEP, steps=1) | settings)


def test_questions():
    asked = questions("dodo", "sks duck", 5)
    assert [len(some) for some in asked.values()] == [5, 5, 5]
    (subject, style, ground, prompt), duck, other = (some[0] for some in asked.values())
    assert (subject, duck[0]) == ("dodo", "duck") and duck[1:3] == other[1:3] == (style, ground)
    assert f"of a sks duck on a {ground} background" in prompt and "sks" not in duck[3]
    icons = questions("icon", "<icon>", 5)
    assert icons["kind"] == [] and icons["new"][0][1] == "high contrast icon" and icons["new"][0][3].startswith("a <icon> of a")


def test_the_tasks_pictures_are_such_as_nothing_was_trained_on(tmp_path):
    for task, n in (("dodo", 6), ("icon", 10)):
        assert len(own_pictures(example_folder(task, tmp_path / task))) == n and TASKS[task]["word"] == "sks"


def test_compare_measures_once_and_records(tmp_path, monkeypatch):
    def run(**more): compare("dodo", n=2, seeds=1, only="untrained,inversion", steps=1, work=str(tmp_path / "work"), out=str(tmp_path), **more)
    run()
    record = json.loads((tmp_path / "training" / "dodo.json").read_text())
    assert [row["label"] for row in record["rows"]] == ["untrained", "inversion"] and [row["numbers"] for row in record["rows"]] == [0, 128]
    assert record["rows"][1]["bytes"] == (tmp_path / "dodo_inversion.safetensors").stat().st_size < 1000
    assert {row["kind"]["n"] for row in record["rows"]} == {2} and (tmp_path / "training" / "dodo_untrained.webp").exists()
    monkeypatch.setattr(finetuning, "one_run", lambda *a, **k: pytest.fail("measured again"))
    run()
    assert json.loads((tmp_path / "training" / "dodo.json").read_text()) == record
    for wrong in (dict(task="cat"), dict(only="magic")):
        with pytest.raises(ValueError, match="is none of"): compare(**wrong, work=str(tmp_path / "work"), out=str(tmp_path))


def test_the_command_reads_the_folder_before_it_trains(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr(finetuning, "teach", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(ValueError, match="0 files"): finetune(str(tmp_path / "mine"), work=str(tmp_path / "work"), out=str(tmp_path / "out"))


def test_a_word_for_a_style(tmp_path, monkeypatch):
    cached = finetuning.cache_latents
    monkeypatch.setattr(finetuning, "cache_latents", lambda vae, pictures, n: cached(vae, pictures, n // 100))
    learn_style("pencil sketch", "<lead>", steps=1, work=str(tmp_path), out=str(tmp_path))
    assert load_embedding(tmp_path / "lead.safetensors").shape == (1, 128)


def test_two_steps_in_sd_1s_shapes():
    big = random_sd1("cpu", torch.float32)
    keep = settings_for(big, "lora")
    assert keep["checkpointing"] and keep["batch_size"] == 1
    picture = dict(latents=torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), captions=["a sks cat"] * 2)
    big.unet.enable_gradient_checkpointing()
    for begin in (lambda: learners(big, "lora", rank=4), lambda: Inversion(big, "<cat>", "cat")):  # one after the other
        training = begin()
        assert isinstance(training, Finetuning)
        before = {k: v.clone() for k, v in training.state_dict().items()}
        losses = fit(training, batches(big, picture, batch_size=1), 2, lr=keep["lr"], warmup=0, report_every=0,
                     mixed_precision=keep["mixed_precision"])
        assert len(losses) == 2 and all(0 < loss < 10 for loss in losses)
        numbers = {part: sum(v.numel() for k, v in before.items() if part in k) for part in ("attn", "conv", "")}
        assert numbers in (dict(attn=797_184, conv=1_958_400) | {"": 2_755_584}, dict(attn=0, conv=0) | {"": 768})
        assert any(not torch.equal(v, before[k]) for k, v in training.state_dict().items())
