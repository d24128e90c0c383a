"Notebook 11: two encoders against each other, and the command that trains them."
import math
import random

import pytest
import torch

from deepdive.contrastive import (
    ContrastiveLoss, both_ways, image_features, load_encoders, pocket_image_encoder, pocket_text_encoder, pocket_tokenizer, run_folders,
    similarity_table, text_features, train_text)
from deepdive.denoising import training_record
from deepdive.pictures import Pictures


@pytest.fixture(scope="module")
def encoders():
    torch.manual_seed(0)
    return pocket_text_encoder(32, 1).eval(), pocket_image_encoder(32, 1, 32).eval(), pocket_tokenizer()


def test_features_have_length_one_and_tell_no_batch_apart(encoders):
    text_encoder, image_encoder, tokenizer = encoders
    with torch.no_grad():
        texts = text_features(text_encoder, tokenizer, ["a swan", "a rather longer caption of a swan"])
        alone = text_features(text_encoder, tokenizer, ["a swan"])
        pixels = Pictures(subjects=["swan"]).batch(2, 1)[0]
        pictures = image_features(image_encoder, pixels)  # 128 pixels, averaged down to the encoder's 64
    assert torch.allclose(texts[:1], alone, atol=1e-5)  # padding says nothing
    for x in texts, pictures: assert torch.allclose(x.norm(dim=1), torch.ones(2), atol=1e-5)


def test_loss_is_the_mean_of_both_cross_entropies(encoders):
    text_encoder, image_encoder, tokenizer = encoders
    pixels, drawn = Pictures(subjects=["swan", "owl"]).batch(3, 1, size=64)
    captions = [d.caption for d in drawn]
    with torch.no_grad():
        got = ContrastiveLoss(*encoders)(pixels, captions)
        table = similarity_table(text_encoder, image_encoder, tokenizer, captions, [d.image for d in drawn]) / .07
    rows, columns = (-torch.log_softmax(table, dim).diagonal().mean() for dim in (1, 0))
    assert torch.allclose(got, (rows + columns) / 2, atol=1e-4)


def test_guessing_costs_the_logarithm_of_the_number_of_pairs(encoders):
    text_encoder, image_encoder, tokenizer = encoders
    pixels, _ = Pictures(subjects=["swan"]).batch(1, 1, size=64)
    with torch.no_grad(): loss = ContrastiveLoss(*encoders)(pixels.expand(5, -1, -1, -1), ["a swan"] * 5)
    assert loss.item() == pytest.approx(math.log(5), abs=1e-4)


def test_a_table_scored_both_ways_does_not_mind_which_way_it_lies():
    table = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(both_ways(table, 7.), both_ways(table.T, 7.)) and both_ways(table, 0.).item() == pytest.approx(math.log(5))
    assert both_ways(torch.eye(5), 50.) < 1e-6 < both_ways(torch.eye(5).roll(1, 0), 50.)  # its own pairs, or their neighbours


def test_shipped_encoders_know_the_lectures_three_and_stand_still():
    encoders = load_encoders()
    assert not any(p.requires_grad for encoder in encoders for p in encoder.parameters()) and not any(e.training for e in encoders)
    pictures = Pictures(subjects=["swan", "teddy bear", "teacher"])
    images = [pictures.draw(random.Random(i), s, "3d render").image for i, s in enumerate(("swan", "teddy bear", "teacher"))]
    table = similarity_table(*encoders, pocket_tokenizer(), ["a graceful swan", "a cute teddy", "a teacher"], images)
    assert table.argmax(0).tolist() == table.argmax(1).tolist() == [0, 1, 2]


def test_encoders_that_are_not_there_are_named(tmp_path, encoders):
    with pytest.raises(FileNotFoundError, match="no text_encoder in .*: deepdive-train-text writes it"): load_encoders(tmp_path)
    encoders[0].save_pretrained(tmp_path / "text_encoder")
    with pytest.raises(FileNotFoundError, match="no image_encoder in "): load_encoders(tmp_path)


def test_command_goes_on_from_its_checkpoint_and_leaves_encoders_and_a_record(tmp_path, capsys):
    train_text(steps=2, batch_size=4, work=tmp_path / "work", out=tmp_path / "model")
    first = capsys.readouterr().out
    train_text(steps=2, batch_size=4, work=tmp_path / "work", out=tmp_path / "again")  # all is done: only written anew
    assert "samples/s" in first and "samples/s" not in capsys.readouterr().out
    one, two = (training_record("text", tmp_path / folder) for folder in ("model", "again"))
    assert one == two and one["runs"][0]["steps"] == len(one["runs"][0]["losses"]) == 2 and 0 <= one["accuracy"] <= 1


@pytest.mark.parametrize("options, error, message", [
    (dict(batch_size=0), ValueError, "batch_size must be a whole number of at least 2, not 0"),
    (dict(batch_size=1), ValueError, "batch_size must be a whole number of at least 2, not 1"),
    (dict(steps=-3), ValueError, "steps must be a whole number of at least 0, not -3"),
    (dict(steps=1.5), TypeError, "steps must be a whole number"),
    (dict(mixed_precision="half"), ValueError, "mixed_precision must be 'no', 'bf16' or 'fp16', not 'half'"),
    (dict(optimizer="sgd"), ValueError, "optimizer must be 'adamw' or 'muon', not 'sgd'"),
    (dict(out="a_file"), NotADirectoryError, "out is to be a folder, but .*a_file is a file"),
    (dict(out="a_file/model"), NotADirectoryError, "out is to be a folder, but .*a_file is a file"),
    (dict(work="a_file"), NotADirectoryError, "work is to be a folder, but .*a_file is a file"),
])
def test_command_checks_before_it_trains(tmp_path, monkeypatch, options, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("")
    with pytest.raises(error, match=message): train_text(**{**dict(out="model", work="work"), **options})
    assert [p.name for p in tmp_path.iterdir()] == ["a_file"]


def test_folders_have_defaults_and_counts_of_parts_may_be_zero():
    out, work = run_folders(None, ".train/x", steps=0, finish=0, batch_size=1)
    assert out.name == "pocket-sd" and str(work) == str(type(work)(".train/x"))
