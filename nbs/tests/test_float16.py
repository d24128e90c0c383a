"""Guidance by a loss in float16: does the gradient point where float32's does?

A CPU computes float16 convolutions a hundred times too slowly. So each kernel runs in float32 here and its result is rounded, as a GPU does it."""
import copy

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch.utils._python_dispatch import TorchDispatchMode

from deepdive.guidance import carried_back, decode, guided_txt2img, loss_gradient
from deepdive.sampling_loop import Models, encode_prompt, initial_latents
from deepdive.schedulers import noise_predictor

IN_FLOAT32 = ("mm addmm bmm baddbmm convolution convolution_backward native_group_norm native_group_norm_backward native_layer_norm "
              "_softmax _softmax_backward_data _scaled_dot_product_flash_attention_for_cpu "
              "_scaled_dot_product_flash_attention_for_cpu_backward").split()


def cast(values, dtype):
    "`values`, nested, with every float16 or float32 tensor in `dtype`."
    if isinstance(values, torch.Tensor): return values.to(dtype) if values.dtype in (torch.float16, torch.float32) else values
    return type(values)(cast(v, dtype) for v in values) if isinstance(values, (list, tuple)) else values


class Rounded(TorchDispatchMode):
    "Products, convolutions, norms and attention of float16 tensors: computed in float32, rounded to float16."
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, half = kwargs or {}, any(isinstance(a, torch.Tensor) and a.dtype == torch.float16 for a in args)
        if not half or func._schema.name.removeprefix("aten::") not in IN_FLOAT32: return func(*args, **kwargs)
        return cast(func(*cast(args, torch.float32), **{k: cast(v, torch.float32) for k, v in kwargs.items()}), torch.float16)


def half(models):
    "The same in float16."
    parts = {name: copy.deepcopy(getattr(models, name)).half() for name in ("text_encoder", "vae", "unet")}
    return Models(models.tokenizer, scheduler=models.scheduler, device=models.device, dtype=torch.float16, source=models.source, **parts)


@pytest.fixture(scope="module")
def halved(models): return half(models)


def cosine(a, b): return F.cosine_similarity(a.double().flatten(), b.double().flatten(), 0).item()
def blue(images): return (images[:, 2] - .9).abs().mean()


@pytest.mark.parametrize("through_unet", [False, True])
@pytest.mark.parametrize("sigma, t", [(14.6146, 999.), (2., 500.), (.1, 20.)])
def test_the_gradient_of_pocket_sd_keeps_its_direction(models, halved, sigma, t, through_unet):
    x, sigma = initial_latents(models) * sigma, torch.tensor(sigma)
    found = []
    for m in models, halved:
        with Rounded():
            noise_at = noise_predictor(m, *encode_prompt(m, ["an owl", ""]).chunk(2), 8.)
            found.append(loss_gradient(m, x, sigma, t, noise_at, blue, through_unet))
    (loss, gradient), (loss16, gradient16) = found
    assert gradient16.dtype == torch.float32 and loss16 == pytest.approx(loss, rel=.02)
    assert cosine(gradient, gradient16) > .99 and gradient16.norm().item() == pytest.approx(gradient.norm().item(), rel=.05)


def test_a_loss_too_small_for_float16_keeps_its_direction(models, halved):
    "A hundredth of the share that a pixel has at 512 x 512; sent back as it is, nothing of it arrives."
    x, found = initial_latents(models) * .5, []
    for m in models, halved:
        with Rounded():
            latents = x.clone().requires_grad_()
            images = decode(m.vae, latents)
            slope = torch.sign(images.detach().float() - .5) * 1e-8
            found.append(carried_back(images, latents, slope))
            plain, = torch.autograd.grad(images, latents, slope.to(images.dtype))
    assert cosine(*found) > .99 and not plain.any()


def test_a_decoder_that_multiplies_does_not_overflow():
    "A slope of one for each number times a weight of 3000 leaves float16's range, an eighth of it does not."
    x = torch.ones(4, dtype=torch.float16, requires_grad=True)
    y = (x.expand(64, 4) * 3000.).sum(0)
    assert torch.allclose(carried_back(y, x, torch.full((4,), 1e-7)), torch.full((4,), 64 * 3000 * 1e-7), rtol=1e-2)


def test_the_decoder_of_sd_1(models):
    "Random weights in the shapes of SD 1.x's decoder (49 M parameters), 128 x 128 pixels."
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
                        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4).eval().requires_grad_(False)
    del vae.encoder
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    found = []
    for dtype in torch.float32, torch.float16:
        with Rounded():
            small = Models(None, None, vae.to(dtype), None, None, torch.device("cpu"), dtype)
            found.append(loss_gradient(small, x, torch.tensor(2.), 500., lambda x, sigma, t: x / 3, blue)[1])
    assert cosine(*found) > .99 and found[1].norm().item() == pytest.approx(found[0].norm().item(), rel=.05)


def test_the_lectures_scale_can_be_used_and_twice_as_much_is_never_a_silent_nan(halved):
    losses = []
    def run(scale):
        with Rounded():
            return guided_txt2img(halved, "a campfire", blue, scale, num_inference_steps=10, report=lambda i, loss: losses.append(loss))[0]
    assert run(200.).size == (128, 128) and losses[-1] < losses[0]
    try: assert run(400.).size == (128, 128)
    except ValueError as e: assert "NaN or infinity" in str(e) and "lower guidance_scale or loss_scale" in str(e)
    with pytest.raises(ValueError, match="NaN or infinity.*float16"): run(1e7)
