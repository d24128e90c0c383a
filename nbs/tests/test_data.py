"The pictures: what metadata.csv promises is there, and composites are what their captions say."
import csv
import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from deepdive.autoencoder import image_tensor
from deepdive.pictures import BACKGROUNDS, DRAWN, LECTURE, STYLES, TRAINED_STYLES, Pictures
from deepdive.sampling_loop import data_folder

EMOJI = data_folder() / "emoji"
ROWS = list(csv.DictReader((EMOJI / "metadata.csv").open(encoding="utf-8")))
HELD_OUT = list(csv.DictReader((EMOJI / "held_out.csv").open(encoding="utf-8")))


def test_every_row_has_its_file_and_every_file_its_row():
    assert sorted(r["file_name"] for r in ROWS) == sorted(p.relative_to(EMOJI).as_posix() for p in EMOJI.rglob("*.webp"))
    assert list(ROWS[0]) == ["file_name", "subject", "synonyms", "style", "category", "split", "drawing"]


def test_how_many():
    styles = Counter(r["style"] for r in ROWS)
    assert set(styles) == set(STYLES) and all(styles[s] >= 500 for s in DRAWN)
    splits = Counter(r["split"] for r in ROWS if r["style"] == "3d render")
    assert splits["never"] == 10 and splits["train"] >= 150
    assert {r["split"] for r in ROWS if r["style"] == "high contrast icon"} == {"never"}
    assert sum(p.stat().st_size for p in EMOJI.rglob("*.webp")) < 9.5 * 2**20


def test_one_drawing_a_hand_and_several_hands_for_the_lectures_subjects():
    hands = {}
    for r in ROWS: hands.setdefault((r["subject"], r["style"]), []).append(r["drawing"])
    assert all(len(set(h)) == len(h) for h in hands.values())
    several = set(LECTURE) - {"otter"}  # of whose drawings one can be told: build.py turns it upright
    assert {subject for (subject, _), h in hands.items() if len(h) > 1} == several
    for subject in several:
        for style in "watercolor painting", "oil painting": assert len(hands[subject, style]) >= 2, (subject, style)
    assert {r["style"] for r in ROWS if r["drawing"] == "twemoji"} == {"flat illustration", "watercolor painting", "oil painting"}


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
    examined = sorted(set(pictures.subjects) - {"airplane", "balloon", "rainbow"})
    assert {k[0] for k in held} == set(examined)
    whole = Counter((s, st) for s, st, _ in held if st not in DRAWN)  # a derived style on all backgrounds, of every fifth subject
    assert set(whole.values()) == {len(BACKGROUNDS)} and sorted(s for s, _ in whole) == [s for s in examined[::5] if s not in LECTURE]
    assert Counter(s for s, st, _ in held if st in DRAWN) == dict.fromkeys(examined, 1)
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
        assert np.abs(corner.numpy() * 127.5 + 127.5 - colour).max() < 1e-3


@pytest.mark.parametrize("call, error, message", [
    (lambda: Pictures(subjects=["parrot", "gryphon"]), ValueError, "no pictures of the subject 'gryphon'; the 588 that there are begin with"),
    (lambda: Pictures(styles=("fresco",)), ValueError, "no pictures of the style 'fresco'; the 8 that there are begin with: 3d render"),
    (lambda: Pictures(folder="nowhere"), FileNotFoundError, "no pictures: .*metadata.csv is missing"),
    (lambda: Pictures(subjects=["parrot"]).draw(random.Random(0), "apple", "cartoon"), KeyError, "no picture of 'apple' in the style 'cartoon'"),
    (lambda: Pictures(subjects=["parrot"]).draw(random.Random(0), background="mauve"), ValueError, "background must be one of white, black"),
    (lambda: Pictures(subjects=["parrot"]).batch(0, 1), ValueError, "n must be a whole number of at least 1, not 0"),
    (lambda: Pictures(subjects=["parrot"]).batch("2", 1), TypeError, "n must be a whole number of at least 1, not '2'"),
])
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message): call()
