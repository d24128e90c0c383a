"The pictures: what metadata.csv promises is there, and composites are what their captions say."
import csv
import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from deepdive.contrastive import BACKGROUNDS, DRAWN, STYLES, TRAINED_STYLES, Pictures, data_folder, image_tensor

EMOJI = data_folder() / "emoji"
ROWS = list(csv.DictReader((EMOJI / "metadata.csv").open(encoding="utf-8")))
HELD_OUT = list(csv.DictReader((EMOJI / "held_out.csv").open(encoding="utf-8")))


def test_every_row_has_its_file_and_every_file_its_row():
    assert sorted(r["file_name"] for r in ROWS) == sorted(p.relative_to(EMOJI).as_posix() for p in EMOJI.rglob("*.webp"))
    assert list(ROWS[0]) == ["file_name", "subject", "synonyms", "style", "category", "split"]


def test_how_many():
    styles = Counter(r["style"] for r in ROWS)
    assert set(styles) == set(STYLES) and all(styles[s] >= 500 for s in DRAWN)
    splits = Counter(r["split"] for r in ROWS if r["style"] == "3d render")
    assert splits["never"] == 10 and splits["train"] >= 150
    assert {r["split"] for r in ROWS if r["style"] == "high contrast icon"} == {"never"}
    assert sum(p.stat().st_size for p in EMOJI.rglob("*.webp")) < 9 * 2**20


def test_pictures_are_128_px_with_alpha():
    for row in random.Random(0).sample(ROWS, 200):
        image = Image.open(EMOJI / row["file_name"])
        assert image.size == (128, 128) and image.mode == "RGBA" and image.format == "WEBP"
        alpha = np.asarray(image)[..., 3]
        assert alpha.max() > 200 and alpha.min() < 20, row


def test_names_and_synonyms_mean_one_thing():
    words = [w for r in ROWS if r["style"] == "3d render" for w in [r["subject"], *filter(None, r["synonyms"].split(";"))]]
    assert [w for w, n in Counter(words).items() if n > 1] == []
    lecture = {"otter", "parrot", "macaw", "dancer", "puppy", "cat", "skunk", "mouse", "leopard", "campfire", "swan", "teddy", "teacher", "astronaut"}
    assert lecture <= set(words)


def test_held_out_is_never_drawn_unless_asked_for():
    pictures = Pictures(splits=("train",))
    held = {(r["subject"], r["style"], r["background"]) for r in HELD_OUT}
    assert held == pictures.held_out
    assert {k[0] for k in held} == set(pictures.subjects) - {"airplane", "balloon", "rainbow"}
    rng = random.Random(0)
    assert not {(d.subject, d.style, d.background) for d in (pictures.draw(rng, size=16) for _ in range(3000))} & held
    one = next(iter(sorted(held)))
    assert pictures.draw(rng, *one).subject == one[0]
    subject, style, _ = one
    judges = Pictures(subjects=[subject], styles=(style,), hold_out=False)
    seen = {(d.subject, d.style, d.background) for d in (judges.draw(rng, size=16) for _ in range(200))}
    assert seen & held and not judges.held_out


def test_never_seen_subjects_and_style_stay_away():
    pictures, never = Pictures(), {r["subject"] for r in ROWS if r["split"] == "never" and r["style"] in DRAWN}
    assert never and not never & set(pictures.subjects) and "high contrast icon" not in pictures.styles


def test_same_seed_same_batch():
    pictures = Pictures()
    a, b, c = (pictures.batch(4, seed)[0] for seed in (3, 3, 4))
    assert (a == b).all() and not (a == c).all() and a.shape == (4, 3, 128, 128) and a.min() >= -1 and a.max() <= 1


def test_captions_say_what_is_there():
    pictures, rng = Pictures(), random.Random(1)
    named = Counter()
    for _ in range(500):
        d = pictures.draw(rng, size=16)
        assert any(w in d.caption for w in pictures.synonyms[d.subject])
        colours = [b for b in BACKGROUNDS if f" {b} background" in d.caption or f" {b} wall" in d.caption]
        assert colours in ([], [d.background])
        named["background"] += bool(colours)
    assert 250 < named["background"] < 400
    wordings = {pictures.caption(rng, "parrot", s, "red") for s in TRAINED_STYLES for _ in range(40)}
    assert len(wordings) > 100 and any("macaw" in w for w in wordings)


def test_background_colour_is_on_the_border():
    pictures = Pictures()
    for name, colour in BACKGROUNDS.items():
        corner = image_tensor([pictures.draw(random.Random(2), "apple", "3d render", name).image])[0, :, 0, 0]
        assert (corner * 127.5 + 127.5 - np.array(colour)).abs().max() <= 8.5


@pytest.mark.parametrize("call, error, message", [
    (lambda: Pictures(subjects=["parrot", "gryphon"]), ValueError, r"no pictures of \['gryphon'\]"),
    (lambda: Pictures(styles=("fresco",)), ValueError, r"no pictures in the style \['fresco'\]; there are"),
    (lambda: Pictures(subjects=["parrot"]).cutout("apple", "cartoon"), KeyError, "no picture of 'apple' in the style 'cartoon'"),
])
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message): call()
