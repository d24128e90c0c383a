"""What the sentences of 00 to 04 say about their pictures, asked of the judge (data/judge) and of plain numbers; 05 to 07: the second file.

The rules. A claim is what a sentence of a notebook says about pictures. These are made again by the calls of the notebook: its prompts, steps,
scale, sampler and seed; and nine times more, with the seeds 1, 2, 3 ... or, where nothing is drawn at random, with nine other subjects, in
order. So no seed and no subject is chosen. The notebook's own is the first of the ten and has to hold. How many must hold is read off the
sentence: eight of ten where it plainly says what is drawn, seven where it says "mostly"; each is tested with one less, since another
machine's rounding may turn a picture. Where it says "not always" or "on average", the claim asks all ten TOGETHER.

All of it takes some ten minutes on one core. Eighteen claims that need pictures of their own are skipped unless DEEPDIVE_DEMONSTRATIONS is `all`.
"""
import os
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image

from deepdive.autoencoder import image_tensor, pil_to_latents, psnr, to_rgb
from deepdive.image_to_image import first_step, img2img, noised
from deepdive.pictures import LECTURE, judge_images, load_judge
from deepdive.sampling_loop import (
    data_folder, denoise, encode_prompt, initial_latents, latents_to_pil, mean_difference, predict_noise, prepared, seeded)
from deepdive.text_encoder import text_embeddings_from, token_embeddings_of
from deepdive.textual_inversion import load_embedding
from deepdive.unet import txt2img

PLAIN, MOSTLY, TOGETHER = 8 - 1, 7 - 1, 0
SLOW = pytest.mark.skipif(os.environ.get("DEEPDIVE_DEMONSTRATIONS") != "all", reason="takes long: DEEPDIVE_DEMONSTRATIONS=all runs it, too")
OTTER, PARROT, CASTLE, CAMPFIRE = ("A watercolor painting of an otter", "a 3d render of a parrot on a blue background",
                                   "a cartoon of a castle on a pink background", "An oil painting of a campfire")
OWL, PUPPY = "a 3d render of an owl", 6829


# ---------------------------------------------------------------- tools
def ten(own): return [own, *(s for s in range(1, 11) if s != own)][:10]


class Studio:
    "Makes ten pictures at once, each as the notebooks' calls make it alone from its seed, and keeps them for the claims to come."
    def __init__(self, models, judge):
        self.models, self.judge, self.kept = models, judge, {}
        self.euler = EulerDiscreteScheduler.from_config(models.scheduler.config)

    def once(self, key, make):
        if key not in self.kept: self.kept[key] = make()
        return self.kept[key]

    def noise(self, seeds): return torch.cat([initial_latents(self.models, seed=s) for s in seeds])
    def decoded(self, latents): return latents_to_pil(self.models.vae, latents)

    def embedded(self, what, n):
        "(n, 77, width) of a prompt, of n prompts in a tuple, or of a function of the models."
        made = what(self.models) if callable(what) else encode_prompt(self.models, list(what) if isinstance(what, tuple) else what)
        return made.expand(n, -1, -1)

    def drawn(self, prompt, own=32, seeds=None, negative="", steps=30, scale=7.5, sampler=None):
        "Ten pictures, as `txt2img` and `picture_from` make them one by one; `sampler` None is the models' own, LMS."
        seeds = tuple(seeds or ten(own))
        def make():
            told, away = self.embedded(prompt, len(seeds)), self.embedded(negative, len(seeds))
            return self.decoded(denoise(self.models, self.noise(seeds), told, away, steps, scale, scheduler=sampler))
        return self.once(("drawn", prompt, seeds, negative, steps, scale, sampler), make)

    def changed(self, prompt, image, strength, own=32, steps=30, scale=7.5, sampler=None, seeds=None):
        "Ten pictures, as `img2img` makes them one by one; `image` is one or ten."
        m, seeds, start = self.models, seeds or ten(own), first_step(strength, steps)
        def begun(seed, image):
            generator = seeded(seed)
            latents = pil_to_latents(m.vae, image, generator)
            return noised(prepared(m, sampler, steps, start), latents, start, generator)
        def make():
            images = image if isinstance(image, list) else [image] * len(seeds)
            latents = torch.cat([begun(s, i) for s, i in zip(seeds, images)])
            told, empty = self.embedded(prompt, len(seeds)), encode_prompt(m, "")
            return self.decoded(denoise(m, latents, told, empty, steps, scale, start, sampler))
        return self.once(("changed", prompt, "ten" if isinstance(image, list) else image.size, strength, tuple(seeds), steps, sampler), make)

    def judged(self, images, place): return [said[place] for said in judge_images(self.judge, images)]
    def shows(self, images, subject): return [s == subject for s in self.judged(images, 0)]
    def stands_on(self, images, ground): return [g == ground for g in self.judged(images, 2)]

    @torch.no_grad()
    def score(self, images, style):
        "How sure the judge is of a style, for each image: log p - log(1 - p)."
        return self.judge(image_tensor(images))[1].log_softmax(1)[:, self.judge.styles.index(style)].exp().logit().tolist()


@pytest.fixture(scope="session")
def studio(models):
    if not (data_folder() / "judge").is_dir(): pytest.skip("no judge: data/judge is missing")
    return Studio(models, load_judge())


def photo(subject): return Image.open(data_folder() / "emoji" / "3d_render" / f"{subject.replace(' ', '-')}.webp")
def picture(subject): return to_rgb(photo(subject)).resize((128, 128), Image.LANCZOS)


def subjects(own): return [own, *(s for s in LECTURE if s != own)][:10]
def pixels(image): return np.asarray(image, dtype=float)
def rough(image): return np.abs(np.diff(pixels(image)[::4], axis=0)).mean()  # how far one colour is from the next, four pixels below
def nearer(image, one, other): return mean_difference(image, one) < mean_difference(image, other)
def masses(image): return np.asarray(image.resize((8, 8), Image.BOX), dtype=float).ravel()
def survived(before, after): return np.corrcoef(masses(before), masses(after))[0, 1]  # as in 02


def paleness(image):  # as in 04
    inner = image_tensor([image])[0, :, 24:-24, 24:-24]
    return 1 - (inner.amax(0) - inner.amin(0)).mean().item() / 2


def new_list():
    "A list of claims, and the decorator that puts a check on it: studio -> ten booleans, the notebook's own first; TOGETHER: it asserts."
    claims = []
    def claim(notebook, share=PLAIN, slow=False):
        def note(check):
            claims.append(pytest.param(check, share, id=f"{notebook}-{check.__name__}", marks=[SLOW] * slow))
            return check
        return note
    return claims, claim


def ask(studio, check, share):
    if share == TOGETHER: return check(studio)
    held = [bool(h) for h in check(studio)]
    said = f"{sum(held)} of {len(held)} hold, the notebook's own {'does' if held[0] else 'does not'}; wanted: it, and {share}"
    print(said)
    assert len(held) == 10 and held[0] and sum(held) >= share, said


CLAIMS, claim = new_list()


def test_ten_at_once_are_the_notebooks_own_calls(studio):
    alone = txt2img(studio.models, PARROT, seed=1) + img2img(studio.models, OWL, picture("parrot"), .5, 30, seed=2, scheduler=studio.euler)
    assert max(map(mean_difference, alone, [grid(studio, PARROT)[0], owls_from_a_parrot(studio, .5)[1]])) < 1


# ---------------------------------------------------------------- 00: the loop
def grid(s, prompt): return s.drawn(prompt, own=1)


@claim("00")
def the_prompt_decides_what_an_otter(s): return s.shows(grid(s, OTTER), "otter")


@claim("00")
def a_parrot(s): return s.shows(grid(s, PARROT), "parrot")


@claim("00")
def a_castle(s): return s.shows(grid(s, CASTLE), "castle")


@claim("00", MOSTLY)
def the_seed_decides_what_the_prompt_leaves_open(s):
    grounds = s.judged(grid(s, OTTER), 2)
    return [a != b for a, b in zip(grounds, grounds[1:] + grounds[:1])]


@claim("00")
def and_in_which_style(s):
    otters, parrots = (s.score(grid(s, prompt), "watercolor painting") for prompt in (OTTER, PARROT))
    return [otter > parrot for otter, parrot in zip(otters, parrots)]


@claim("00")
def a_ground_that_the_prompt_names_is_drawn(s): return s.stands_on(grid(s, CASTLE), "pink")


# ---------------------------------------------------------------- 01: the autoencoder
def photos(own="parrot"): return [picture(name) for name in subjects(own)]
def there(s): return s.once("there", lambda: pil_to_latents(s.models.vae, photos()))
def back(s): return s.once("back", lambda: s.decoded(there(s)))


@claim("01")
def the_picture_comes_back(s):
    return [same and psnr(a, b) > 25 for same, a, b in zip(map(np.equal, s.judged(back(s), 0), s.judged(photos(), 0)), photos(), back(s))]


@claim("01")
def forty_eight_times_fewer_numbers(s): return [pixels(p).size == 48 * z.numel() for p, z in zip(photos(), there(s))]


@claim("01")
def edges_suffer_and_plain_areas_hardly(s):
    def lost(a, b):
        error, (down, across) = np.abs(pixels(a) - pixels(b)).mean(-1), np.gradient(pixels(a).mean(-1))
        edge = np.hypot(down, across)
        return error[edge > 20].mean(), error[edge < 2].mean()
    return [edges > 4 * plain for edges, plain in map(lost, photos(), back(s))]


@claim("01")
def one_sees_the_subject_in_a_channel(s):
    def outline(name):
        return np.asarray(photo(name).convert("RGBA").getchannel("A").resize((16, 16), Image.BOX), dtype=float).ravel()
    return [max(abs(np.corrcoef(outline(name), channel.flatten())[0, 1]) for channel in latents) > .6
            for name, latents in zip(subjects("parrot"), there(s))]


@claim("01")
def samples_differ_and_one_cannot_see_it(s):
    with torch.no_grad(): posterior = s.models.vae.encode(image_tensor(photos())).latent_dist
    one, two = (posterior.sample(torch.Generator().manual_seed(k)) * s.models.vae.config.scaling_factor for k in (0, 1))
    return [not torch.equal(a, b) and mean_difference(x, y) < 1 for a, b, x, y in zip(one, two, s.decoded(one), s.decoded(two))]


@claim("01")
def half_way_shows_both_at_once(s):
    latents = pil_to_latents(s.models.vae, picture("owl"))
    owl, = s.decoded(latents)
    middles, both = s.decoded((there(s) + latents) / 2), [Image.blend(p, owl, .5) for p in back(s)]
    return [mean_difference(m, b) < min(mean_difference(m, p), mean_difference(m, owl)) / 2 for m, b, p in zip(middles, both, back(s))]


@claim("01")
def random_latents_are_no_picture(s): return [rough(r) > 2 * rough(p) for r, p in zip(s.decoded(s.noise(ten(32))), back(s))]


def turned(s):
    "For ten noises: how far each of 01's five additions turns the parrot's mean colour, (5, 3)."
    def noises(seed):
        generator = torch.Generator().manual_seed(seed)
        gaussian, uniform = torch.randn(1, 4, 16, 16, generator=generator) / 12**.5, torch.rand(1, 4, 16, 16, generator=generator)
        return torch.cat([0 * uniform, gaussian, uniform, 0 * uniform + .5, uniform - .5])
    def make():
        images = s.decoded(torch.cat([there(s)[:1] + 2 * noises(seed) for seed in ten(32)]))
        colours = np.stack([pixels(i).mean((0, 1)) for i in images]).reshape(10, 5, 3)
        return colours - colours[:, :1]
    return s.once("turned", make)


@claim("01")
def rand_turns_the_parrot_yellow_green(s): return [green > 0 > red > blue for red, green, blue in turned(s)[:, 2]]


@claim("01")
def the_mean_alone_is_to_blame(s):
    far = np.abs(turned(s)).max(-1)
    return [max(randn, without) < rand / 2 and rand / 2 < alone for _, randn, rand, alone, without in far]


@claim("01")
def a_shifted_latent_is_a_shifted_picture(s):
    moved = s.decoded(there(s).roll(1, 3))
    return [np.abs(np.roll(pixels(p), 8, 1) - pixels(q))[:, 24:-16].mean() < 4 for p, q in zip(back(s), moved)]


# ---------------------------------------------------------------- 02: noise, and image to image
def scheduler_of(s, steps): return prepared(s.models, None, steps)


@claim("02", 10)
def fifteen_steps_of_71_36(s): return [abs(t - (999 - 999 / 14 * i)) < .01 for i, t in enumerate(scheduler_of(s, 15).timesteps[:10])]


@claim("02", 10)
def the_sigmas_are_the_lectures(s):
    known = {0: 14.6146, 1: 9.6826, 2: 6.6780, 3: 4.7746, 4: 3.5221, 9: 1.0097, 10: .7913, 13: .2780, 14: .0292, 15: 0.}
    return [abs(scheduler_of(s, 15).sigmas[i] - sigma) < 6e-5 for i, sigma in known.items()]


@claim("02", 10)
def add_noise_adds_sigma_times_the_noise(s):
    scheduler, noise = scheduler_of(s, 15), s.noise(ten(32))
    added = scheduler.add_noise(there(s), noise, scheduler.timesteps[10].repeat(10))
    return [torch.allclose(a, z + .7913 * e, atol=1e-3) for a, z, e in zip(added, there(s), noise)]


@claim("02")
def the_noisier_the_less_is_seen_of_the_picture(s):
    scheduler, noise = scheduler_of(s, 15), s.noise(ten(32))
    rows = [s.decoded(scheduler.add_noise(there(s), noise, scheduler.timesteps[i].repeat(10))) for i in (14, 12, 8, 0)]
    lost = [[mean_difference(p, q) for p, q in zip(back(s), row)] for row in rows]
    return [sorted(column) == [*column] and column[0] < 5 for column in zip(*lost)]


@claim("02")
def most_of_what_step_10_of_50_begins_with_is_noise(s): return [scheduler_of(s, 50).sigmas[10]**2 > 9 * z.var() for z in there(s)]


@claim("02", MOSTLY, slow=True)
def the_lectures_dancer_dances(s):
    def make():
        scheduler, parrot = scheduler_of(s, 50), pil_to_latents(s.models.vae, picture("parrot"))
        noisy = scheduler.add_noise(parrot.expand(10, -1, -1, -1), s.noise(ten(32)), scheduler.timesteps[10].repeat(10))
        told, empty = s.embedded("A colorful dancer, nat geo photo", 10), encode_prompt(s.models, "")
        return s.decoded(denoise(s.models, noisy, told, empty, 50, 8., start_step=10))
    return s.shows(s.once("dancer", make), "dancer")


def owls_from_a_parrot(s, strength):
    return s.changed(OWL, picture("parrot"), strength, own=1, sampler=s.euler)


@claim("02", 10)
def at_strength_a_half_the_parrot_stays(s): return s.shows(owls_from_a_parrot(s, .5), "parrot")


@claim("02", MOSTLY)
def at_strength_seven_tenths_mostly_parrots(s): return s.shows(owls_from_a_parrot(s, .7), "parrot")


@claim("02", MOSTLY)
def at_strength_point_84_mostly_owls(s): return s.shows(owls_from_a_parrot(s, .84), "owl")


@claim("02", TOGETHER)
def between_them_the_seed_decides(s):
    said = s.judged(owls_from_a_parrot(s, .77), 0)
    assert 2 <= said.count("parrot") <= 8 and 2 <= said.count("owl") <= 8, said


@claim("02")
def colours_and_masses_survive_a_small_strength_and_not_a_large_one(s):
    parrot, = s.once("parrot's round trip", lambda: s.decoded(pil_to_latents(s.models.vae, picture("parrot"))))
    little, much = ([survived(parrot, i) for i in owls_from_a_parrot(s, strength)] for strength in (.5, .84))
    return [a > .9 and b < .7 for a, b in zip(little, much)]


def in_eight_steps(s):
    "02's parrots from step 5 of 8: right, one step late, LMS as it is, LMS with orders counted anew."
    def counted(x, told, empty):
        scheduler = prepared(s.models, None, 8)
        for taken, t in enumerate(scheduler.timesteps[5:], 1):
            with torch.no_grad(): guess = predict_noise(s.models, x, t, told, empty, 7.5, scheduler)
            x = scheduler.step(guess, t, x, order=min(taken, 4)).prev_sample
        return x
    def make():
        parrot, told, empty = pil_to_latents(s.models.vae, picture("parrot")), s.embedded("a 3d render of a parrot", 10), encode_prompt(s.models, "")
        scheduler = prepared(s.models, s.euler, 8)
        noisy = scheduler.add_noise(parrot.expand(10, -1, -1, -1), s.noise(ten(32)), scheduler.timesteps[5].repeat(10))
        runs = [denoise(s.models, noisy, told, empty, 8, 7.5, start, sampler) for start, sampler in ((5, s.euler), (6, s.euler), (5, None))]
        return [s.decoded(x) for x in (*runs, counted(noisy, told, empty))]
    return s.once("in eight steps", make)


@claim("02", slow=True)
def one_step_too_late_leaves_noise(s): return [rough(wrong) > 1.2 * rough(right) for right, wrong, *_ in zip(*in_eight_steps(s))]


@claim("02", slow=True)
def lms_begun_half_way_overshoots_and_orders_counted_anew_cure_it(s):
    return [mean_difference(counted, right) < mean_difference(lms, right) for right, _, lms, counted in zip(*in_eight_steps(s))]


def twice(s):
    "02's owls in oil, begun from the parrot, and once more from what came."
    def make():
        prompt, parrot = "an oil painting of an owl", picture("parrot")
        once = s.changed(prompt, parrot, .77, own=34, sampler=s.euler)
        return once, s.changed(prompt, once, .5, seeds=[1] * 10, sampler=s.euler)
    return s.once("twice", make)


@claim("02", slow=True)
def a_second_round_at_a_half_keeps_the_layout(s): return [survived(once, again) > .95 for once, again in zip(*twice(s))]


@claim("02", slow=True)
def an_owl_stays_an_owl_and_a_parrot_a_parrot(s):
    once, again = (s.judged(images, 0) for images in twice(s))
    return [a == b or a not in ("owl", "parrot") for a, b in zip(once, again)]


# ---------------------------------------------------------------- 03: the text encoder
ANIMALS = {"brown bear", "wild boar", *"""badger bat beaver camel cat cow deer elephant fox giraffe goat hedgehog hippopotamus horse kangaroo
           koala leopard lion mouse otter panda pig puppy rabbit rhinoceros sheep skunk tiger unicorn zebra""".split()}


def from_the_photo(s, prompt): return s.changed(prompt, photo("parrot"), .9)


@claim("03")
def one_word_keeps_the_parrot(s): return s.shows(from_the_photo(s, "a 3d render of a parrot"), "parrot")


@claim("03")
def and_another_makes_it_an_owl(s): return s.shows(from_the_photo(s, OWL), "owl")


@claim("03")
def and_a_third_a_strawberry(s): return s.shows(from_the_photo(s, "a 3d render of a strawberry"), "strawberry")


def with_row(row, models, prompt="A picture of a puppy"):
    "What the text encoder makes of the prompt with `row` of its token table, or a vector, in the place of puppy."
    rows, ids = token_embeddings_of(models, [prompt] if isinstance(prompt, str) else list(prompt))
    table = models.text_encoder.get_input_embeddings().weight.detach()
    return text_embeddings_from(models, torch.where(ids[..., None] == PUPPY, table[row] if isinstance(row, int) else row(table), rows))


cat = partial(with_row, 2368)
half_skunk, mostly_skunk = (partial(with_row, lambda table, w=w: torch.lerp(table[PUPPY], table[42194], w)) for w in (.5, .65))


@claim("03")
def a_swapped_token_draws_a_cat(s): return s.shows(s.drawn(cat), "cat")


@claim("03", MOSTLY)
def with_a_third_of_puppy_a_skunk_stays_a_skunk(s): return s.shows(s.drawn(mostly_skunk, scale=5.), "skunk")


@claim("03", TOGETHER)
def the_middle_is_one_animal_or_another_as_the_seed_has_it(s):
    said = s.judged(s.drawn(half_skunk, seeds=(32, *range(9)), scale=5.), 0)
    assert len(ANIMALS.intersection(said)) >= 4, said


def mouse_and_leopard(models): return torch.lerp(*encode_prompt(models, ["A mouse", "A leopard"]).split(1), .65)


@claim("03", TOGETHER)
def two_thirds_of_a_leopards_prompt_mostly_draw_a_leopard(s): assert sum(s.shows(s.drawn(mouse_and_leopard), "leopard")) >= MOSTLY


def part(models, words):
    "03's parrot with its words alone, or with its end and padding alone."
    (full, empty), ids = encode_prompt(models, [PARROT, ""]).split(1), token_embeddings_of(models, PARROT)[1]
    before_end = (torch.arange(77) < (ids[0] == 49407).nonzero()[0])[None, :, None]
    return torch.where(before_end == words, full, empty)


words_only, ends_only = partial(part, words=True), partial(part, words=False)


@claim("03")
def the_words_alone_draw_the_parrot(s): return s.shows(s.drawn(words_only), "parrot")


@claim("03", MOSTLY)
def mostly_on_blue(s): return s.stands_on(s.drawn(words_only), "blue")


@claim("03")
def end_and_padding_alone_draw_the_blue_ground(s): return s.stands_on(s.drawn(ends_only), "blue")


@claim("03", MOSTLY)
def and_mostly_some_other_thing(s): return [not parrot for parrot in s.shows(s.drawn(ends_only), "parrot")]


@claim("03", 10)
def a_word_changes_nothing_before_it(s):
    pairs = [("apple", "pear"), *zip(LECTURE[:9], LECTURE[9:])]
    changes = [torch.diff(encode_prompt(s.models, [f"a red bus and a green {word}" for word in pair]), dim=0)[0].norm(dim=-1) for pair in pairs]
    return [change[:7].max() < .1 * change[7:].min() for change in changes]


def nearest_five(s):
    "03's looks of all subjects, and which five sentences are nearest to each subject's."
    names = (data_folder() / "pocket-sd" / "subjects.txt").read_text(encoding="utf-8").splitlines()
    sentences = [f"A picture of a {name}" for name in names]
    ends = (token_embeddings_of(s.models, sentences)[1] != 49407).sum(1).tolist()
    read = torch.nn.functional.normalize(encode_prompt(s.models, sentences)[range(len(ends)), ends], dim=1)
    return names, (read @ read.T).fill_diagonal_(-1).topk(5).indices


def apart(s, what):
    "For ten subjects: how far the looks of the five nearest are, in mean distances of any two."
    def look(name):
        values = torch.from_numpy(np.array(photo(name).convert("RGBA").resize((32, 32)))) / 255
        colour, outline = values[..., :3], values[..., 3:]
        return (colour * outline).sum((0, 1)) / outline.sum() if what == "colour" else outline.flatten()
    names, five = nearest_five(s)
    looks = torch.stack([look(name) for name in names])
    far = torch.cdist(looks, looks)
    shown = "puppy", "strawberry", "lion", "rocket"
    return [far[i, five[i]].mean() / far[far > 0].mean() for i in map(names.index, [*shown, *(n for n in LECTURE if n not in shown)][:10])]


@claim("03")
def words_are_near_whose_pictures_have_one_colour(s): return [ratio < .8 for ratio in apart(s, "colour")]


@claim("03", MOSTLY)
def their_outline_hardly_counts(s): return [ratio > .8 for ratio in apart(s, "outline")]


# ---------------------------------------------------------------- 04: textual inversion
def learned(name, models, prompt):
    vector = load_embedding(data_folder() / "embeddings" / f"{name}.safetensors")[0]
    return with_row(lambda table: vector.to(table), models, prompt)


NAMES, TWO_SEEDS = ("mouse", "castle", "lion", "parrot", "strawberry") * 2, (32,) * 5 + (1, 2, 3, 4, 5)  # two of each, one with 04's seed
def each(form): return tuple(form.format(name) for name in NAMES)


mouse_in_style = partial(learned, "wash", prompt="A mouse in the style of puppy")
plain, named, styled = each("a 3d render of a {}"), each("a watercolor of a {}"), partial(learned, "wash", prompt=each("a {} in the style of puppy"))
sketched, asked_for_sketches = partial(learned, "pencil", prompt=each("a puppy of a {}")), each("a pencil sketch of a {}")


@claim("04")
def the_learned_style_raises_its_styles_score(s):
    mice, in_style = (s.score(s.drawn(prompt), "watercolor painting") for prompt in ("A mouse", mouse_in_style))
    return [b > a for a, b in zip(mice, in_style)]


@claim("04")
def and_the_mouse_stays_a_mouse(s): return s.shows(s.drawn(mouse_in_style), "mouse")


@claim("04")
def it_goes_with_other_prompts(s):
    without, with_it = (s.score(s.drawn(prompts, seeds=TWO_SEEDS), "watercolor painting") for prompts in (plain, styled))
    return [b > a for a, b in zip(without, with_it)]


@claim("04", MOSTLY)
def it_mostly_makes_the_drawing_that_watercolor_makes(s):
    return [nearer(i, n, p) for p, i, n in zip(*(s.drawn(prompts, seeds=TWO_SEEDS) for prompts in (plain, styled, named)))]


@claim("04", TOGETHER)
def on_average_its_pictures_are_paler(s):
    before, after = (np.reshape([paleness(i) for i in s.drawn(prompts, seeds=TWO_SEEDS)], (2, 5)).mean(1) for prompts in (plain, styled))
    assert (after > before + .03).all(), (before, after)


@claim("04", TOGETHER)
def nearest_to_the_learned_vector_is_the_word_watercolor(s):
    table = torch.nn.functional.normalize(s.models.text_encoder.get_input_embeddings().weight.detach()[:49408], dim=1)  # no added words
    vector = load_embedding(data_folder() / "embeddings" / "wash.safetensors")[0]
    assert s.models.tokenizer.decode([(table @ vector).argmax().item()]).strip() == "watercolor"


@claim("04", MOSTLY, slow=True)
def asked_for_a_sketch_it_mostly_draws_a_pencil(s): return s.shows(s.drawn(asked_for_sketches, seeds=TWO_SEEDS, scale=5.), "pencil")


@claim("04", TOGETHER)
def the_learned_pencil_brings_hardly_a_subject(s):
    said = s.judged(s.drawn(sketched, seeds=TWO_SEEDS, scale=5.), 0)
    assert sum(map(str.__eq__, said, NAMES)) <= 3, said


@claim("04", slow=True)
def and_neither_brings_a_sketch(s):
    rows = (s.judged(s.drawn(prompts, seeds=TWO_SEEDS, scale=5.), 1) for prompts in (asked_for_sketches, sketched))
    return [a != "pencil sketch" != b for a, b in zip(*rows)]


@pytest.mark.parametrize("check, share", CLAIMS)
def test_claim(studio, check, share): ask(studio, check, share)
