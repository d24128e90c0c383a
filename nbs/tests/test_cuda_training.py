"Notebooks 09 to 14 on a CUDA GPU: two training steps of each kind, and what is measured. Skipped without a GPU."
import math
import random

import pytest
import torch

from deepdive.autoencoder_training import FinishingLoss, VAELoss, batch_psnr, pocket_vae, round_trip, scale_factor, vae_training
from deepdive.contrastive import (
    contrastive_training, pocket_image_encoder, pocket_text_encoder, pocket_tokenizer, retrieval_accuracy)
from deepdive.denoising import choose_precision
from deepdive.evaluation import combinations, half_way, limits, scores
from deepdive.latent_diffusion import cache_latents, generate, loss_by_timestep, settling, training_models, unet_training
from deepdive.pictures import POCKET_STYLES, Pictures, train_judge
from deepdive.sampling_loop import data_folder, load_models

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
SHORT = dict(report_every=None, mixed_precision=None)


@pytest.fixture(scope="module")
def pictures(): return Pictures(subjects=["owl", "lion", "panda"], styles=POCKET_STYLES[:2])


def finite(losses): return len(losses) == 2 and all(map(math.isfinite, losses))


def test_09_10_judge(pictures):
    assert choose_precision("cuda") in ("bf16", "no")
    judge, losses = train_judge(pictures, 2, batch_size=4, **SHORT)
    asked = combinations(pictures, 4, held_out=False)
    images = [pictures.draw(random.Random(i), *a[:3]).image for i, a in enumerate(asked)]
    assert finite(losses) and scores(judge, asked, images)["background"] == 1


def test_11_contrast(pictures):
    parts = pocket_text_encoder(), pocket_image_encoder(), pocket_tokenizer()
    assert finite(contrastive_training(pictures, *parts, 2, 4, **SHORT))
    assert 0 <= retrieval_accuracy(*parts, pictures, n=8) <= 1


@pytest.mark.parametrize("loss", [VAELoss, FinishingLoss])
def test_12_autoencoder(pictures, loss):
    vae = pocket_vae()
    assert finite(vae_training(vae, [(pictures, 2)], 2, loss, optimizer="muon", **SHORT))
    images = pictures.batch(2, 0)[0]
    assert batch_psnr(images, round_trip(vae, images)).isfinite().all() and scale_factor(vae, pictures, n=32) > 0


def test_13_latent_diffusion(pictures):
    models = training_models(data_folder() / "pocket-sd", data_folder() / "pocket-sd" / "unet")
    assert models.device.type == "cuda" and {p.dtype for p in models.unet.parameters()} == {torch.float32}
    cache = cache_latents(models.vae, pictures, 8)
    assert finite(unet_training(models, cache, pictures, 2, batch_size=4, mix=.5, optimizer="muon", **SHORT))
    assert finite(settling(models, cache, pictures, 2, .5, batch_size=4, **SHORT))
    assert loss_by_timestep(models, cache, pictures, 64, bins=2).isfinite().all()


def test_14_evaluation(pictures):
    models = load_models(data_folder() / "pocket-sd", device="cuda")
    assert models.dtype == torch.float16 and len(generate(models, ["an owl", "a lion"], steps=3)) == 2
    assert set(limits(models, pictures, 2)) == {"real", "euler", "lms"}
    assert len(half_way(models, ["an owl"], ["a lion"])) == 1
