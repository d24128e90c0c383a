"Notebooks 01 and 02: what cannot be asserted inside them."

import numpy as np
import pytest
import torch
from PIL import Image

from deepdive.autoencoder import image_tensor, pil_to_latents, psnr, to_rgb
from deepdive.image_to_image import first_step, img2img
from deepdive.sampling_loop import data_folder, latents_to_pil, mean_difference

PARROT = data_folder() / "emoji" / "3d_render" / "parrot.webp"


@pytest.fixture(scope="module")
def parrot(): return to_rgb(Image.open(PARROT))


# ---------------------------------------------------------------- 01: images of any mode and size
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
def test_every_mode_becomes_rgb(mode):
    assert to_rgb(Image.new(mode, (10, 6))).mode == "RGB" and to_rgb(Image.new(mode, (10, 6))).size == (10, 6)


def test_transparency_lies_on_white_and_exif_is_obeyed(tmp_path):
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert to_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4))
    palette.info["transparency"] = 0
    assert to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)
    image, exif = Image.new("RGB", (20, 10), "red"), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert to_rgb(Image.open(tmp_path / "turned.jpg")).size == (10, 20)
    deep = Image.fromarray(np.full((4, 4), 65535 // 2, np.uint16))
    assert abs(to_rgb(deep).getpixel((0, 0))[0] - 127) <= 1


@pytest.mark.parametrize("size, expected", [((128, 128), (128, 128)), ((130, 61), (128, 64)), ((3, 200), (8, 200)), ((21, 29), (24, 32))])
def test_sides_go_to_the_nearest_multiple_of_eight(size, expected):
    assert tuple(image_tensor(Image.new("RGB", size)).shape[:1:-1]) == expected


def test_pil_to_latents_takes_lists_and_samples(models, parrot):
    mean, both = pil_to_latents(models.vae, parrot), pil_to_latents(models.vae, [parrot, parrot.rotate(90)])
    assert mean.shape == (1, 4, 16, 16) and torch.allclose(both[:1], mean, atol=1e-4)
    a, b = (pil_to_latents(models.vae, parrot, torch.Generator().manual_seed(s)) for s in (1, 2))
    assert not torch.equal(a, b) and torch.equal(a, pil_to_latents(models.vae, parrot, torch.Generator().manual_seed(1)))
    assert psnr(parrot, latents_to_pil(models.vae, mean)[0]) > 18 and psnr(parrot, parrot) > 90


# ---------------------------------------------------------------- 02: image to image
def test_strength_counts_steps_as_diffusers_does(models, parrot):
    assert [first_step(s, 50) for s in (0, .5, .8, 1)] == [50, 25, 10, 0] and first_step(.3, 3) == 3
    trip = latents_to_pil(models.vae, pil_to_latents(models.vae, parrot, torch.Generator().manual_seed(32)))[0]
    assert mean_difference(img2img(models, "an owl", parrot, strength=0)[0], trip) == 0
    two = img2img(models, ["an owl", "a panda"], parrot, .9, 4)
    assert len(two) == 2 and mean_difference(*two) > 1
