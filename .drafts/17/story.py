md(r'''
# 17 · Editing

**How do I change one thing in a picture, and nothing else?** In four ways, from no training at all to a UNet that takes instructions. They are measured on pictures whose right answer is known to the pixel. The last one can be taught an action of your own.

| | |
|---|---|
| Lectures | the question that remains after lesson 9A: *my* action on *my* picture |
| Before this | notebooks 02 (image to image), 05 (attention maps), 06 (Euler's steps) and 15 (LoRA) |
| Running time | about a minute and a half on two CPU cores |
| In a hurry? | look at *The right answer is known*, *A UNet that sees the picture* and *One table* |

![Where we are: four places where a picture's latents come into the sampling loop. As the noise to begin with (inversion), at the step to begin at (image to image), as what the UNet sees (instructions), and as the latents of each step (inpainting)](drawings/17.svg)
''')
code("#| default_exp editing")
ex("imports")
code('''
import csv, tempfile
from difflib import SequenceMatcher

import matplotlib.pyplot as plt
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionInstructPix2PixPipeline

from deepdive.denoising import plot_losses, training_record
from deepdive.finetuning import one_picture
from deepdive.sampling_loop import agree, check_answer, mean_difference, show_images
''')
md('''
## The right answer is known

A composite of notebook 10 is a drawing on a ground. Whoever has its parts can change one of them and lay them together again:
''')
code('''
pictures = Pictures(splits=("train",), styles=POCKET_STYLES)
two = [pictures.compose(random.Random(4), "fox", "cartoon", ground) for ground in ("pink", "blue")]
show_images(two, ["this picture", "make the background blue"], size=1.6)
''')
md('''
So for such pictures an edit has an exact target. Here are six kinds, with the words that lead there, and those that lead back:
''')
ex("changed")
ex("parts")
code('''
rng = random.Random(5)
rows = [parts_pair(pictures, rng, kind, False) for kind in KINDS]
shown = [composed(pictures, parts)[0] for row in rows for parts in row[:2]]
show_images(shown, [words for *_, there, back in rows for words in (back, there)], 6, 1.4)
''')
md('''
Above each picture stand the words that lead to it from its neighbour.

The benchmark takes what is there before from held_out.csv: combinations that no UNet of the series was trained on, nor the lessons further down. Each case has all that a way to edit could ask for: the picture, an instruction, a prompt for before and one for after, a mask.
''')
ex("edits")
code('''
cases = edits(6)
show_images([i for c in cases for i in (c.image, c.mask.convert("RGB"), c.target)],
            [words for c in cases for words in (c.instruction, "may change", "target")], 6, 1.4)
''')
code('''
for case in cases: print(f"{case.instruction:28} {case.before} → {case.after}")
''')
md('''
The last three kinds have no prompt of their own: what is asked for is a place or a size, and this model's captions never name one.

Three measures for each case: how near the result is to the target; how near it is to the input where nothing may change; and whether the change is there at all.
''')
ex("measured")
code('''
models, judge = load_models(data_folder() / "pocket-sd", dtype=torch.float32), load_judge()
judge = judge.to(models.device)
inputs, targets = [c.image for c in cases], [c.target for c in cases]
''')
code('''
def tell(name, images):
    "Print the means of what is measured on the first of the cases."
    found = measured(judge, cases[:len(images)], images)
    print(f"{name:22}", "   ".join(f"{k} {np.mean(found[k]):6.2f}" for k in ("target", "outside", "right")))

def trip(images): return latents_to_pil(models.vae, pil_to_latents(models.vae, images))
tell("the input itself", inputs)
tell("its round trip", trip(inputs))
tell("the target's round trip", trip(targets))
''')
md('''
The input is equal to itself outside the mask, which counts as more than a hundred dB. A share above zero for it, or below one for the target, is the judge's error: styles are what it mistakes. And what has gone through the autoencoder can hardly be nearer to the target than the last line.

## Image to image is the first row

Notebook 02's way: noise, and another prompt from there on. The strength decides how much of the old picture survives:
''')
code('''
sampler, strengths, prompts = solver(models, "Euler"), (.3, .6, .8), [c.after for c in cases[:3]]
made = [img2img(models, prompts, inputs[:3], s, 20, scheduler=sampler) for s in strengths]
for s, images in zip(strengths, made): tell(f"strength {s}", images)
''')
code('''
def compare(ways, width=1.5):
    "Show the first three cases: the input, {name: three pictures} and the target."
    show_images([i for k in range(3) for i in (inputs[k], *(w[k] for w in ways.values()), targets[k])],
                [t for c in cases[:3] for t in (c.instruction, *ways, "target")], len(ways) + 2, width)

compare({f"strength {s}": images for s, images in zip(strengths, made)})
''')
md('''
At low strength the change does not come; at high strength the rest goes, too: camera and lion are larger than they should be. And the ground does not even change at the highest, for most of it is settled in the first steps.

## Inpainting: keep what is known

With a mask, the loop can be told what to leave alone. The known latents are at hand at every noise level: the picture's own, plus noise. So after each step they are put back, and the UNet goes on with what is drawn in its known surroundings. A latent stands for a square of 8 x 8 pixels, and is free as soon as one of these may change:
''')
ex("mask")
ex("inpaint")
code('''
box = Image.new("L", (128, 128))
box.paste(255, (0, 0, 128, 64))
masks = [cases[2].mask, box]
painted = inpaint(models, ["a cartoon of an owl"] * 2, inputs[2], masks, 20, seed=3)
show_images([inputs[2], *(i for pair in zip([m.convert("RGB") for m in masks], painted) for i in pair)],
            ["picture", "mask", "an owl", "mask", "an owl"], size=1.6)
''')
code('''
for mask in masks:
    free = free_places(inputs[2], mask, (16, 16))
    print(f"{(np.asarray(mask) > 0).mean():.0%} of the pixels may change, {free.mean():.0%} of the latents")
''')
md('''
The edge of a mask is as coarse as the latents. diffusers' pipeline does the same with the same UNet; of each square it looks at one pixel only, so a mask is best when it follows the grid. Then both agree:
''')
code('''
parts = dict(vae=models.vae, text_encoder=models.text_encoder, tokenizer=models.tokenizer,
             scheduler=sampler, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
pipe = StableDiffusionInpaintPipeline(unet=models.unet, **parts)
pipe.set_progress_bar_config(disable=True)
''')
code('''
theirs = pipe("an owl", inputs[2], box, height=128, width=128, num_inference_steps=10, guidance_scale=7.5,
              generator=torch.Generator().manual_seed(3)).images[0]
ours, = inpaint(models, "an owl", inputs[2], box, 10, seed=3)
print(f"mean difference {mean_difference(ours, theirs):.3f} of 255")
assert mean_difference(ours, theirs) < 1
''')
md('''
### Steps taken again

At first the known part is drowned in noise, and the free part is laid out without it. Lugmayr et al. take each step several times, with fresh noise in between, so that one part can still listen to the other. Here the lower halves are given, with the prompt of the whole picture:
''')
code('''
befores = [c.before for c in cases[:3]]
halves = {n: inpaint(models, befores, inputs[:3], box, 20, seed=1, repeats=n) for n in (1, 4)}
show_images([i for k in range(3) for i in (inputs[k], halves[1][k], halves[4][k])],
            ["picture", "each step once", "four times"] * 3, 9, 1.1)
''')
code('''
def seam(image):
    "How much brighter or darker the row above the mask's edge is than the row below, on average, of 255."
    pixels = np.asarray(image, dtype=float)
    return abs(pixels[63] - pixels[64]).mean()

for n, images in halves.items(): print(f"{n} times: {np.mean([*map(seam, images)]):.1f} across the edge")
print(f"the pictures themselves: {np.mean([*map(seam, inputs[:3])]):.1f}")
''')
md('''
Both ways continue the lower half, and both leave a seam. On these three pictures four times the work buys next to nothing: the prompt already says what belongs there.

### Masks that are none

White everywhere is text to image. Black everywhere leaves nothing to do: it is warned of, and the round trip comes back. Half grey or more counts as white. A mask of another size is no mask of this picture:
''')
code('''
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    same, = inpaint(models, "a fox", inputs[0], Image.new("L", (128, 128)), 2)
print(f"{said[0].message}; {psnr(same, inputs[0]):.1f} dB to the input")
''')
code('''
try: inpaint(models, "a fox", inputs[0], Image.new("L", (64, 64)))
except ValueError as e: print(e)
''')
md('''
## Walking back to the noise

Euler's loop is deterministic: one noise, one picture. Which noise would have given *this* picture? Each step adds a multiple of the predicted noise, and can be taken back by subtracting it. But the prediction belongs to the noisier end of the step, and that is what is looked for.
''')
ex("invert")
code('''
@torch.no_grad()
def returned(scale, steps=20, rounds=1):
    "PSNR of two cases' inputs and what comes back from their inversions; same prompts, same scale."
    some, images = befores[:2], inputs[:2]
    x = invert(models, some, images, steps, scale, rounds)
    noise_at = noise_predictor(models, encode_prompt(models, some), encode_prompt(models, ""), scale)
    *_, x = euler(noise_at, x, *(v.to(x) for v in sigma_schedule(models, steps)))
    return np.mean([psnr(a, b) for a, b in zip(latents_to_pil(models.vae, x), images)])
''')
md('''
How near to home does it come back? Guess first: what do more steps do to that, and what does guidance?
''')
code('''
counts = (5, 10, 20)
for scale in (1., 3., 7.5):
    plt.plot(counts, [returned(scale, n) for n in counts], "o-", label=f"scale {scale:g}")
plt.axhline(np.mean([*map(psnr, trip(inputs[:2]), inputs[:2])]), color="grey", ls=":", label="round trip")
plt.gcf().set_size_inches(5, 2.4), plt.legend(fontsize=7)
plt.xlabel("steps"), plt.ylabel("PSNR to the picture, dB"), plt.show();
''')
md('''
More steps come nearer. A scale of 3 costs little, one of 7.5 nearly everything. Is it guidance itself, or the prediction in the wrong place, whose error the scale multiplies? The second can be taken away: predict again at the place where the step ended, a few times over.
''')
code('''
for scale in (3., 7.5):
    found = {rounds: returned(scale, 10, rounds) for rounds in (1, 2, 8)}
    print(f"scale {scale:g}:", ", ".join(f"{rounds} rounds {db:.1f} dB" for rounds, db in found.items()))
    assert found[8] > found[1] + 2
''')
md('''
With the prediction from the right place it comes much nearer under guidance, too, for as many times the work. The usual way is cheaper: walk back without guidance, and forth with another prompt and with guidance. The picture is not to come back, after all.

## Attention kept from the first run

What then says where things are? The maps of notebook 05: for each word its places. Hertz et al. keep them. The old prompt's run, without guidance, finds back to the picture; beside it runs the new prompt from the same noise, and takes over the maps. First: which word takes whose map?
''')
code('''
def lent_words(before, after):
    "For each place in prompt `after` the place in `before` whose map it takes, (77,), or -1."
    ids = [models.tokenizer(p, padding="max_length", truncation=True).input_ids for p in (before, after)]
    places = torch.full((len(ids[1]),), -1)
    for tag, i, i_end, j, j_end in SequenceMatcher(None, *ids, autojunk=False).get_opcodes():
        if tag in ("equal", "replace"):
            places[j:j_end] = torch.arange(i, i + j_end - j).clamp(max=i_end - 1)
    return places
''')
code('''
print(lent_words("a cat on a pink background", "a cat on a blue background")[:9].tolist())
print(lent_words("a cat", "a cute cat")[:9].tolist())
''')
md('''
A word in the place of another takes its map; a word more has its own. The processor is notebook 05's, for batches of pairs:
''')
code('''
class LentMaps:
    "An attention processor: each second picture of a batch attends as the one before it does."
    def __init__(self, places): self.places, self.words, self.own = places[:, None, None], True, True
    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                   for layer, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context)))
        shares = (q * attn.scale @ k.transpose(-1, -2)).softmax(-1)
        if encoder_hidden_states is None and self.own: shares = shares[::2].repeat_interleave(2, 0)
        elif encoder_hidden_states is not None and self.words:
            places = self.places.to(shares.device).expand_as(shares[::2])
            lent = shares[::2].gather(-1, places.clamp(min=0))
            shares[1::2] = torch.where(places < 0, shares[1::2], lent)
        return attn.to_out[1](attn.to_out[0]((shares @ v).transpose(1, 2).flatten(2)))
''')
code('''
def pair_noise(before, after, scale):
    "noise_at for latents in pairs: the first of each without guidance to `before`, the second to `after`."
    texts = [prompt for pair in zip(before, after) for prompt in pair]
    both = torch.cat([encode_prompt(models, [""] * len(texts)), encode_prompt(models, texts)])
    scales = torch.tensor([1., scale]).repeat(len(after)).to(models.device)[:, None, None, None]
    def noise_at(x, sigma, t):
        scaled = torch.cat([x / (sigma**2 + 1)**.5] * 2).to(models.dtype)
        uncond, cond = models.unet(scaled, t, encoder_hidden_states=both).sample.to(x).chunk(2)
        return uncond + scales * (cond - uncond)
    return noise_at
''')
code('''
@torch.no_grad()
def redrawn(before, after, images, words=.8, own=.4, scale=5., steps=20):
    "`images` of `before`, with `after`: shares `words` and `own` of the steps with the first run's maps."
    x = invert(models, before, images, steps).repeat_interleave(2, 0)
    places = torch.stack([lent_words(*pair) for pair in zip(before, after)])
    lender, kept = LentMaps(torch.cat([torch.full_like(places, -1), places])), models.unet.attn_processors
    models.unet.set_attn_processor(lender)
    lender.words, lender.own = words > 0, own > 0
    run = euler(pair_noise(before, after, scale), x, *(v.to(x) for v in sigma_schedule(models, steps)))
    for i, x in enumerate(run, 1): lender.words, lender.own = i < words * steps, i < own * steps
    models.unet.set_attn_processor(dict(kept))
    return latents_to_pil(models.vae, x[1::2])
''')
md('''
How long should maps be kept? Cross-attention for a share of the steps, and self-attention, which says what place listens to what place, for another:
''')
code('''
shares = {"no maps kept": (0, 0), "words .8": (.8, 0), "words .8, own .4": (.8, .4), "all": (1, 1)}
kept = {name: redrawn(befores, prompts, inputs[:3], *share) for name, share in shares.items()}
for name, images in kept.items(): tell(name, images)
''')
code('''
compare(kept, 1.4)
''')
md('''
With no maps kept the drawings grow to the size that the model is used to. With the maps of self-attention they stay where they were, and what should not change is several dB nearer. But the change itself stays away, too: where a lion should come, there is something of the bat's shape. Each share is a trade.

## A UNet that sees the picture

All this was work around a UNet that cannot see what it is to change. Brooks et al. let it see: the picture's latents are four more channels of its input. The first layer's weights for them begin as zeros, so that at first nothing is different. Then LoRAs (notebook 15) learn, beside all convolutions and matrices, that first layer among them.
''')
ex("seeing")
code('''
unet, states = seeing(models.unet), encode_prompt(models, ["mirror it", "a fox"])
noisy = torch.randn((2, 4, 16, 16), generator=seeded(0)).to(models.device)
with torch.no_grad():
    plain = models.unet(noisy, 500, encoder_hidden_states=states).sample
    for seen in noisy, 10 * noisy.flip(-1):
        assert agree(plain, unet(torch.cat([noisy, seen], 1), 500, encoder_hidden_states=states).sample)
''')
code('''
numbers = sum(p.numel() for p in EditingLoss(unet, 38).parameters() if p.requires_grad)
print(f"{numbers:,} numbers learn: {2 * numbers / 1e6:.1f} MB in float16")
''')
md('''
Its lessons are pairs like the benchmark's, of other combinations, and each is good for both directions. A few go without text, without picture, or without both, so that guidance can lead away from either.
''')
ex("lessons")
ex("batches")
ex("teach")
md('''
Eight steps, to see it go. That is far from enough. Below them is the loss of the run that made the file used from here on, by the command at the end. How well it follows depends on how long it ran:
''')
code('''
pairs, words = drawn_pairs(pictures, 24)
lessons = pair_latents(models.vae, pairs)
learner, losses = teach_edits(models, lessons, words, 8, batch_size=8, report_every=4, warmup=2)
''')
code('''
known = training_record("edits_training", data_folder() / "embeddings")
plot_losses(known["losses"], f"{known['steps']} steps", min(20, len(known["losses"]) // 4))
''')
md('''
Two scales push when it draws: away from no text, and away from no picture.
''')
ex("edit")
code('''
editor = load_editor(models)
made = edit(editor, [c.instruction for c in cases], inputs)
show_images([i for c, m in zip(cases, made) for i in (c.image, m, c.target)],
            [words for c in cases for words in (c.instruction, "done", "target")], 6, 1.4)
tell("instructions", made)
''')
md('''
How much of which scale? The first case again:
''')
code('''
scales = [(text, picture) for picture in (1., 1.5, 3.) for text in (1., 3., 7.5)]
grid = [edit(editor, cases[0].instruction, inputs[0], 10, *pair)[0] for pair in scales]
show_images(grid, [f"text {text:g}, picture {picture:g}\\n{psnr(i, targets[0]):.1f} dB"
                   for i, (text, picture) in zip(grid, scales)], 9, 1.2)
''')
md('''
The file is a LoRA, and plain diffusers takes it, on a UNet with the four channels added:
''')
code('''
pipe = StableDiffusionInstructPix2PixPipeline(unet=seeing(models.unet), **parts)
pipe.load_lora_weights(data_folder() / "embeddings", weight_name="edits.safetensors")
pipe.set_progress_bar_config(disable=True)
theirs = pipe("mirror it", inputs[0], num_inference_steps=5, guidance_scale=5., image_guidance_scale=1.5,
              generator=torch.Generator().manual_seed(32)).images[0]
assert mean_difference(theirs, edit(editor, "mirror it", inputs[0], 5)[0]) < 1
''')
md('''
A picture may be of any mode. An instruction that says nothing is warned of, and what cannot work is refused:
''')
code('''
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    same, = edit(editor, " ", inputs[0].convert("P"))
print(f"{said[0].message}: {psnr(same, inputs[0]):.1f} dB to the input")
''')
code('''
for some, images in ((models, inputs[0]), (editor, inputs[:2])):
    try: edit(some, "mirror it", images)
    except ValueError as e: print(e)
''')
md('''
## Your own action

A folder of pictures, and in it a `pairs.csv` with the columns `input,target,instruction`: that is all it takes. What cannot serve is named with its line.
''')
code('''
def fault_of(names, files, size):
    "What is wrong with a row of the table, or ''; and its two pictures."
    if not all(names): return "it needs input, target and instruction", []
    if gone := [f.name for f in files if not f.is_file()]: return f"there is no {gone[0]!r}", []
    try: pair = [one_picture(f, size) for f in files]
    except ValueError as e: return str(e), []
    sizes = [Image.open(f).size for f in files]
    return "" if sizes[0] == sizes[1] else f"{sizes[0]} and {sizes[1]} are two sizes: give both one", pair
''')
code('''
def own_pairs(folder, size=128):
    "([(input, target)], [(instruction,)]) of the rows of `pairs.csv` in `folder`; pictures are cut square."
    file, pairs, told = Path(folder) / "pairs.csv", [], []
    if not file.is_file(): raise FileNotFoundError(f"no pairs.csv in {file.parent.name!r}")
    with file.open(encoding="utf-8-sig", newline="") as f: rows = list(csv.DictReader(f))
    for line, row in enumerate(rows, 2):
        names = [(row.get(k) or "").strip() for k in ("input", "target", "instruction")]
        fault, pair = fault_of(names, [file.parent / name for name in names[:2]], size)
        if fault: raise ValueError(f"pairs.csv, line {line}: {fault}")
        pairs.append(pair), told.append(names[2:])
    if len(pairs) > 1: return pairs, told
    raise ValueError(f"{len(pairs)} pairs in pairs.csv: give two at least, better twenty")
''')
md('''
As an example an action that no word of the series names: red, green and blue change places. Twenty pairs of it:
''')
code('''
def frobbed(image): return Image.fromarray(np.asarray(image)[..., [1, 2, 0]])

folder, table = Path(tempfile.mkdtemp()), ["input,target,instruction"]
for i, (image, _) in enumerate(drawn_pairs(pictures, 20, seed=3)[0]):
    image.save(folder / f"{i}.png"), frobbed(image).save(folder / f"{i}_after.png")
    table.append(f"{i}.png,{i}_after.png,frob it")
''')
code('''
(folder / "pairs.csv").write_text("\\n".join(table), encoding="utf-8")
own, own_words = own_pairs(folder)
show_images([i for pair in own[:4] for i in pair], ["input", "frob it"] * 4, 8, 1.2)
''')
code('''
Image.new("RGB", (200, 128)).save(folder / "wide.png"), (folder / "notes.txt").write_text("no picture")
for row in ("0.png,none.png,frob it", "0.png,wide.png,frob it", "notes.txt,0.png,frob it", "0.png,1.png,"):
    (folder / "pairs.csv").write_text("\\n".join([*table, row]), encoding="utf-8")
    try: own_pairs(folder)
    except ValueError as e: print(e)
''')
md('''
The lessons go on from what the editor has learned:
''')
code('''
mine, losses = teach_edits(editor, pair_latents(models.vae, own), own_words, 40, batch_size=6, rank=8,
                           report_every=20, warmup=5)
fresh = [c.image for c in edits(4, seed=7)]
before, after = (edit(some, ["frob it"] * 4, fresh) for some in (editor, mine))
''')
code('''
show_images([i for k in range(4) for i in (fresh[k], before[k], after[k], frobbed(fresh[k]))],
            ["picture", "not taught", "taught", "target"] * 4, 8, 1.2)
for name, images in (("not taught", before), ("taught", after)):
    print(f"{name}: {np.mean([psnr(a, frobbed(b)) for a, b in zip(images, fresh)]):.1f} dB to the target")
''')
md('''
## Two pictures in one

Predictions of noise can be added up. Take one for the latents as they are, and one for the latents upside down, turned back: steps along their mean lead to a picture that is both (Geng et al. 2024).
''')
code('''
@torch.no_grad()
def two_in_one(prompts, joined, view, n=5, steps=15, scale=7.5):
    "`n` pictures for two prompts; the second sees latents through `view`; `joined` makes one noise of two."
    texts, empty = [encode_prompt(models, [p] * n) for p in prompts], encode_prompt(models, "")
    one, other = (noise_predictor(models, text, empty, scale) for text in texts)
    def noise_at(x, sigma, t): return joined(one(x, sigma, t), view(other(view(x), sigma, t)))
    timesteps, sigmas = (v.to(models.device) for v in sigma_schedule(models, steps))
    x = torch.randn((n, 4, 16, 16), generator=seeded(0)).to(models.device)
    *_, x = euler(noise_at, x * sigmas[0], timesteps, sigmas)
    return latents_to_pil(models.vae, x)
''')
code('''
def show_both(images, others, way):
    "Both looks at the pictures, with what the judge names."
    names = [subject for subject, *_ in judge_images(judge, images + others)]
    show_images(images + others, names[:len(images)] + [f"{way}: {n}" for n in names[len(images):]], 5, 1.4)
''')
code('''
asked = [f"a cartoon of a {subject} on a white background" for subject in ("panda", "penguin")]
both = two_in_one(asked, lambda a, b: (a + b) / 2, lambda x: x.flip(-2), scale=10.)
show_both(both, [ImageOps.flip(i) for i in both], "turned")
''')
md('''
Not every seed succeeds. Where it does, the judge names a panda and, turned, a penguin. Large pictures also allow for the coarse part of one prediction and the fine part of another, so that what one sees depends on the distance:
''')
code('''
def coarse(x): return torch.nn.functional.interpolate(
    torch.nn.functional.avg_pool2d(x, 2), scale_factor=2., mode="bilinear")

both = two_in_one(["an oil painting of a lion", "an oil painting of a castle"],
                  lambda near, far: near - coarse(near) + coarse(far), lambda x: x)
show_both(both, [i.resize((16, 16), Image.BOX).resize((128, 128), Image.BICUBIC) for i in both], "far")
''')
md('''
Here one subject takes the whole picture, near and far. Latents of 16 x 16 have no room for two distances: what is coarse in them is already the drawing.

## One table

A way to edit is a function from cases to pictures. One command measures them all on the same fixed cases:
''')
ex("ways")
ex("benchmark")
code('''
found = training_record("edits", data_folder() / "embeddings")
print(f"{found['n']} cases, {found['steps']} steps; dB to the target, dB outside the mask, share right")
print(f"{'':15}{'seconds':>7}{'trained':>10}", *(f"{kind:>16}" for kind in KINDS))
''')
code('''
def means(run, kind):
    "The three measures of the cases of this kind."
    columns = zip(*(run[k] for k in ("kind", "target", "outside", "right")))
    rows = [row[1:] for row in columns if row[0] == kind]
    return "{:6.1f}{:6.1f}{:5.0%}".format(*np.mean(rows, 0))

for name, run in found["runs"].items():
    trained = numbers if name == "instruction" else 0
    print(f"{name:15}{run['seconds']:7.2f}{trained:10,}", *(means(run, kind) for kind in KINDS))
''')
md('''
The same twelve cases for all. From the top: the inputs, the targets, then the ways in the order of the table.
''')
code('''
show_images(Image.open(data_folder() / "embeddings/training/edits.webp").convert("RGB"), size=9)
''')
md('''
And this command made the LoRA:
''')
ex("train")
md('''
## What each cannot do

| way | needs | cannot |
|---|---|---|
| image to image | a prompt for the whole | change a part without the rest |
| inpainting | a mask, and a prompt | keep anything where the mask is white: a new ground is fine, a new style forgets the old drawing |
| inversion, with or without maps | prompts for before and after | give a subject another shape while its maps are kept |
| instructions | pairs to learn from | do what was not in its lessons |

## Change this, expect that

1. Give `inpaint` a mask that is white everywhere: it is text to image, and the picture is of no consequence.
2. In `returned`, invert with the empty prompt and go forth with the case's: the way back at scale 1 no longer ends at the picture.
3. Give `edit` an `image_guidance_scale` of 0: what comes need have nothing to do with the picture.

## Exercise 1: back up by noise

Taking a step again means going back up: latents with noise of standard deviation `then` are to get noise of `sigma`. How much is to be added? Return its standard deviation. (Easy; five minutes.)
''')
code('''
def added(sigma, then):
    "Your lines here: the standard deviation of the noise that leads from `then` up to `sigma`."

check_answer(added(5., 3.), 4., 1e-6, {
    "standard deviations do not add up, their squares do": 2., "that is the variance": 16.});
''')
md('''
<details><summary>A hint</summary>

The variances of independent noises add up.

</details>

<details><summary>An answer</summary>

```python
def added(sigma, then):
    return (sigma**2 - then**2) ** .5
```

</details>

## Exercise 2: two scales

Given predictions with text and picture, with the picture alone, and with neither, and two scales: return the noise that pushes away from no text and from no picture. At scales of one it is the first of the three. (Medium; ten minutes.)
''')
code('''
def pushed(text, picture, neither, by_text, by_picture):
    "Your lines here: the noise that leads away from no text and from no picture."

check_answer(pushed(3., 2., 1.5, 5., 1.5), 7.25, 1e-6, {
    "the text's arrow begins at the picture's prediction, not at neither's": 1.5 + 1.5 * .5 + 5 * 1.5,
    "begin at the prediction with neither, not at the picture's": 2 + 1.5 * .5 + 5 * 1.});
''')
md('''
<details><summary>A hint</summary>

Two arrows, each with its scale: from neither to the picture, and from there to picture and text.

</details>

<details><summary>An answer</summary>

```python
def pushed(text, picture, neither, by_text, by_picture):
    return neither + by_picture * (picture - neither) + by_text * (text - picture)
```

</details>

**What we have now:** pictures that change where they should, and a way to teach a model a change of your own.
''')
