"""Learn one vector from pictures of one style (textual inversion, Gal et al. 2022).

    python data/embeddings/train.py                                                         # wash.safetensors
    python data/embeddings/train.py --style "pencil sketch" --token "<pencil>" --steps 160  # pencil.safetensors

All weights stand still, in float32 also on a GPU; the gradient of the diffusion loss goes through UNet and text encoder to the one new
row. The subjects that notebook 04 shows (SHOWN) are not among its pictures. One to two minutes on two cores."""
import random

import torch
import torch.nn.functional as F
from fastcore.script import call_parse
from torch import nn

from deepdive.denoising import fit
from deepdive.latent_diffusion import DiffusionLoss, cache_latents, training_alphas
from deepdive.pictures import BACKGROUNDS, Pictures
from deepdive.sampling_loop import check_number, data_folder, load_models
from deepdive.textual_inversion import add_token, save_embedding

SHOWN = "mouse", "castle", "lion", "parrot", "strawberry"
WORDINGS = "a {word} of {a}", "{word} of {a}"


class Inversion(nn.Module):
    """latents (B, 4, h, w), ids (B, 77), seed -> the diffusion loss, with a learned vector for every id from `first` on.

    The vectors keep the length `length`, that of the words: free ones grow until they drown the subject."""
    def __init__(self, models, first, vectors, length):
        super().__init__()
        self.loss, self.text, self.first = DiffusionLoss(models.unet, training_alphas()), models.text_encoder, first
        self.free, self.length = nn.Parameter(vectors), length
        self.text.get_input_embeddings().register_forward_hook(self.put)

    @property
    def vectors(self): return F.normalize(self.free, dim=1) * self.length

    def put(self, layer, args, rows):
        new = args[0] - self.first
        return torch.where(new[..., None] >= 0, self.vectors[new.clamp(min=0)], rows)

    def forward(self, latents, ids, seed): return self.loss(latents, self.text(ids).last_hidden_state, seed)


@call_parse
def main(
    steps: int = 240,  # training steps
    batch_size: int = 24,  # latents a batch
    style: str = "watercolor painting",  # a style of data/emoji
    token: str = "<wash>",  # the word for it
    n_subjects: int = 60,  # subjects whose pictures it learns from
    n_vectors: int = 1,  # rows of the table to learn
    lr: float = 1e-2,  # highest learning rate
    length: float = None,  # of the vectors (default: that of all words on average)
    model: str = None,  # model folder (default: data/pocket-sd)
    out: str = None,  # file to write (default: data/embeddings/ and the token's name)
):
    "Learn the vector and save it."
    known = [s for s in Pictures(splits=("train",)).subjects if s not in SHOWN]
    for name, value in dict(steps=steps, batch_size=batch_size, n_vectors=n_vectors).items(): check_number(name, value, 1, whole=True)
    check_number("n_subjects", n_subjects, 1, len(known), whole=True)
    models, rng = load_models(model, dtype=torch.float32), random.Random(0)  # float16 models are not for training
    pictures = Pictures(subjects=rng.sample(known, n_subjects), styles=(style,))
    cache = cache_latents(models.vae, pictures, 10 * n_subjects)
    table = models.text_encoder.get_input_embeddings().weight
    start = table[[models.tokenizer(w).input_ids[1] for w in ("cartoon", "flat", "illustration", "black")]].mean(0)
    word = add_token(models, token, start.expand(n_vectors, -1))
    models.text_encoder.requires_grad_(False)
    training = Inversion(models, len(models.tokenizer) - n_vectors, start.expand(n_vectors, -1).clone().float(),
                         length or table.norm(dim=1).mean().item())

    def make_batch(seed):
        rng = random.Random(seed)
        rows = rng.choices(range(len(cache["latents"])), k=batch_size)
        named = [(pictures.subjects[s], list(BACKGROUNDS)[b]) for s, _, b in cache["shown"][rows].tolist()]
        def worded(subject, background):
            article = "an" if subject[0] in "aeiou" else "a"
            ground = f" on a {background} background" if rng.random() < .7 else ""
            return rng.choice(WORDINGS).format(word=word, a=f"{article} {subject}") + ground
        ids = models.tokenizer([worded(*n) for n in named], padding="max_length", return_tensors="pt").input_ids
        return cache["latents"][rows].float(), ids, seed

    fit(training, make_batch, steps, lr=lr, weight_decay=0, seed=3, report_every=50)
    print(f"length of the vectors: {training.vectors.norm(dim=1).tolist()}")
    save_embedding(out or data_folder() / "embeddings" / f"{token.strip('<>')}.safetensors", token, training.vectors)
