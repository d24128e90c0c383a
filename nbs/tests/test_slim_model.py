"Notebooks 00 to 07 run to their end on another model: random weights, SD 1.x's text width of 768, none of pocket-sd's extras."
import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from deepdive.sampling_loop import data_folder
from execute import execute, notebooks


@pytest.fixture(scope="module")
def slim(tmp_path_factory):
    folder, pocket = tmp_path_factory.mktemp("slim"), data_folder() / "pocket-sd"
    torch.manual_seed(0)
    AutoencoderKL(block_out_channels=(4, 4, 8, 8), norm_num_groups=4, layers_per_block=1, latent_channels=4, sample_size=128,
                  down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4).save_pretrained(folder / "vae")
    UNet2DConditionModel(sample_size=16, block_out_channels=(16, 16, 32), layers_per_block=1, norm_num_groups=8,
                         cross_attention_dim=768, attention_head_dim=4,
                         down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
                         up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")).save_pretrained(folder / "unet")
    CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=256, num_hidden_layers=2, num_attention_heads=12, projection_dim=768,
                                 bos_token_id=49406, eos_token_id=49407)).save_pretrained(folder / "text_encoder")
    for part in "tokenizer", "scheduler": shutil.copytree(pocket / part, folder / part)
    index = json.loads((pocket / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "image_encoder": [None, None]}))
    return folder


@pytest.mark.parametrize("file", [f for f in notebooks() if f.name < "08"], ids=lambda f: f.stem)
def test_notebook_on_another_model(file, slim):
    nb = execute(file, dict(DEEPDIVE_MODEL=str(slim)))
    assert not [o for c in nb.cells if c.cell_type == "code" for o in c.outputs if o.get("name") == "stderr"]
