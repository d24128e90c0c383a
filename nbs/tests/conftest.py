import os
import sys
from pathlib import Path

import pytest

# Each worker, with the kernels that it starts, keeps to its share of the cores: torch is severalfold slower where threads outnumber them.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // WORKERS))

NBS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(NBS))  # for execute.py


@pytest.fixture(scope="session")
def models():
    "The shipped pocket-sd on the CPU in float32."
    from deepdive.sampling_loop import data_folder, load_models
    return load_models(data_folder() / "pocket-sd", device="cpu")


@pytest.fixture(scope="module")
def slim(models):
    "Models with random weights for pictures of 32 x 32, and a tokenizer of their own."
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from deepdive.sampling_loop import Models
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8, 8, 8, 8), norm_num_groups=8, layers_per_block=1, latent_channels=4, sample_size=32,
                        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
    unet = UNet2DConditionModel(sample_size=4, block_out_channels=(16, 32), norm_num_groups=8, layers_per_block=1, cross_attention_dim=16,
                                attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    text = CLIPTextModel(CLIPTextConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                                        bos_token_id=49406, eos_token_id=49407))
    for part in vae, unet, text: part.eval().requires_grad_(False)
    tokenizer = type(models.tokenizer).from_pretrained(models.source / "tokenizer")
    return Models(tokenizer, text, vae, unet, models.scheduler, torch.device("cpu"), torch.float32)
