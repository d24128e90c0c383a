"Notebook 10: composites on the latents' grid, several drawings, and the judge."
import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from deepdive import pictures as module
from deepdive.pictures import (
    BACKGROUNDS, LECTURE, WIDTHS, Pictures, border_colour, judge_images, judged_pictures, load_judge, save_sheet, sheet, train_judge)
from deepdive.sampling_loop import data_folder


def test_composites_lie_on_the_grid_in_two_widths():
    pictures, rng = Pictures(subjects=["apple"]), random.Random(0)
    for size in 128, 64:
        placed = Counter(pictures.placing(rng, "red", size)[1:] for _ in range(600))
        step = size // 16
        assert {w for w, _, _ in placed} == {round(w * size) for w in WIDTHS}
        assert all(x % step == y % step == 0 and 0 <= x <= size - w and 0 <= y <= size - w for w, x, y in placed)
        assert len(placed) == 4**2 + 2**2
    assert pictures.compose(rng, "apple", "cartoon", "red", 16).size == (16, 16)  # smaller than the grid


def test_one_drawing_gives_forty_pictures_and_half_are_mirrored():
    pictures, rng = Pictures(subjects=["apple"], styles=("cartoon",)), random.Random(1)
    assert len({pictures.compose(rng, "apple", "cartoon", "blue", 32).tobytes() for _ in range(600)}) == 40
    class Still(Pictures):
        def placing(self, rng, background, size): return BACKGROUNDS[background], size, 0, 0
    still = Still(subjects=["apple"], styles=("cartoon",))
    made = Counter(still.compose(random.Random(i), "apple", "cartoon", "blue", 32).tobytes() for i in range(200))
    assert len(made) == 2 and min(made.values()) > 70


def test_anywhere_is_free_of_the_grid_and_of_the_exact_colour():
    pictures, rng = Pictures(subjects=["apple"], anywhere=True), random.Random(0)
    placed = [pictures.placing(rng, "red", 128) for _ in range(200)]
    assert len({w for _, w, _, _ in placed}) > 10 and {x % 8 for _, _, x, _ in placed} == set(range(8))
    apart = np.abs([np.subtract(colour, BACKGROUNDS["red"]) for colour, *_ in placed])
    assert apart.max() == 8 and len({tuple(c) for c, *_ in placed}) > 150


def test_all_drawings_of_a_subject_come():
    pictures, opened = Pictures(subjects=["owl"]), Counter()
    cutout, rng = pictures.cutout, random.Random(0)
    pictures.cutout = lambda file: opened.update([file]) or cutout(file)
    for _ in range(90): pictures.compose(rng, "owl", "watercolor painting", "red", 16)
    assert set(opened) == set(pictures.drawings("owl", "watercolor painting")) and len(opened) == 3 and min(opened.values()) > 15


def test_what_is_wanted_often_comes_five_times_as_often():
    pictures, rng = Pictures(subjects=["apple", "otter"], often=LECTURE), random.Random(0)
    count = Counter(pictures.draw(rng, size=16).subject for _ in range(1200))
    assert 4 < count["otter"] / count["apple"] < 6.5
    assert set(LECTURE) <= set(Pictures(splits=("train",)).subjects)


def test_border_colour_of_all_ten():
    for anywhere in False, True:
        pictures = Pictures(subjects=["swan"], anywhere=anywhere)
        assert [border_colour(pictures.draw(random.Random(1), "swan", "cartoon", b).image) for b in BACKGROUNDS] == list(BACKGROUNDS)


def test_judge_learns_from_real_pictures():
    pictures = Pictures(subjects=["parrot", "castle", "apple"], styles=("flat illustration", "pencil sketch"), hold_out=False)
    judge, losses = train_judge(pictures, 40, batch_size=24, lr=3e-3, warmup=5, report_every=None)
    _, drawn = pictures.batch(40, seed=123_456)
    said = judge_images(judge, [d.image for d in drawn])
    right = np.mean([[a == b for a, b in zip(s, (d.subject, d.style, d.background))] for s, d in zip(said, drawn)], 0)
    assert len(losses) == 40 and right[2] == 1 and right[1] > .9 and right[0] > .6
    assert not judge.training


def test_judge_is_saved_with_its_names(tmp_path):
    torch.manual_seed(0)
    judge = module.Judge(["parrot", "castle"], ["cartoon"], width=8).eval()
    module.save_judge(judge, tmp_path / "judge")
    again = load_judge(tmp_path / "judge")
    pixels, _ = Pictures(subjects=["parrot", "castle"], styles=("cartoon",)).batch(4, 1)
    assert (again.subjects, again.styles, again.training) == (["parrot", "castle"], ["cartoon"], False)
    with torch.no_grad(): assert all(torch.allclose(a, b, atol=1e-2) for a, b in zip(judge(pixels), again(pixels)))
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    (tmp_path / "judge" / "judge.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="judge.safetensors is missing .deepdive-train-judge"): load_judge(tmp_path / "judge")


def test_judges_command_goes_on_and_leaves_a_judge(tmp_path, capsys):
    for steps in 1, 2: module.make_judge(steps=steps, batch_size=2, work=tmp_path / "work", out=tmp_path / "judge")
    assert load_judge(tmp_path / "judge").subjects == judged_pictures().subjects
    assert "step     2 of 2" in capsys.readouterr().out
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1"): module.make_judge(steps=0, work=tmp_path / "work")


def test_shipped_judge_knows_what_it_judges():
    judge, pictures = load_judge(), judged_pictures()
    assert (judge.subjects, judge.styles) == (pictures.subjects, pictures.styles) and len(judge.subjects) == 162
    assert set(Pictures(splits=("train",)).subjects) < set(judge.subjects)
    _, drawn = pictures.batch(200, seed=777_777)
    said = judge_images(judge, [d.image for d in drawn])
    right = np.mean([[a == b for a, b in zip(s, d[2:])] for s, d in zip(said, drawn)], 0)
    assert (right >= (.95, .9, 1)).all(), right
    assert (data_folder() / "judge" / "judge.safetensors").stat().st_size < 2 * 2**20


def test_judge_says_the_same_of_a_picture_alone_and_in_company():
    pictures = Pictures(subjects=["parrot", "castle"], styles=("cartoon",))
    judge = module.Judge(["parrot", "castle"], ["cartoon"]).eval()
    pixels, _ = pictures.batch(4, 1)
    with torch.no_grad(): assert torch.allclose(judge(pixels)[0][:1], judge(pixels[:1])[0], atol=1e-5)


def test_sheets_hold_all_pictures_and_only_the_main_process_saves_them(tmp_path, monkeypatch):
    images = [Image.new("RGB", (4, 2), c) for c in ("red", "green", "blue")]
    assert sheet(images, 2).size == (8, 4) and sheet(images, 2).getpixel((1, 3)) == (0, 0, 255)
    save_sheet(images, 3, "three", tmp_path)
    assert Image.open(tmp_path / "training" / "three.webp").size == (12, 2)
    monkeypatch.setattr(module, "main_process", lambda: False)
    save_sheet(images, 3, "more", tmp_path)
    assert not (tmp_path / "training" / "more.webp").exists()
