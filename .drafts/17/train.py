import sys; sys.path.insert(0,"/tmp/e17")
from draft import *
import time
from deepdive.denoising import choose_precision
from diffusers.models.attention_processor import AttnProcessor
def instruction(a, b):
    if a.ground != b.ground: return f"make the background {b.ground}"
    if a.style != b.style: return f"turn it into {with_article(b.style)}"
    if a.subject != b.subject: return f"replace it with {with_article(b.subject)}"
    if a.mirrored != b.mirrored: return "mirror it"
    if a.width != b.width: return f"make it {'larger' if b.width > a.width else 'smaller'}"
    return "move it " + ("left" if b.x < a.x else "right" if b.x > a.x else "up" if b.y < a.y else "down")

class LowRank(nn.Module):
    def __init__(self, weight, rank):
        super().__init__()
        rows, cols = weight.flatten(1).shape
        rank = min(rank, rows, cols)
        self.down = nn.Parameter(torch.randn(rank, cols) / cols**.5)
        self.up = nn.Parameter(torch.zeros(rows, rank))
    def forward(self, weight): return weight + (self.up @ self.down).view_as(weight)

def seeing(unet):
    unet, old = copy.deepcopy(unet).float(), unet.conv_in
    unet.conv_in = nn.Conv2d(8, old.out_channels, 3, padding=1).to(old.weight)
    with torch.no_grad():
        unet.conv_in.weight.zero_(), unet.conv_in.bias.copy_(old.bias)
        unet.conv_in.weight[:, :4] = old.weight
    unet.register_to_config(in_channels=8)
    return unet.requires_grad_(False)

def adapted(unet, rank=38):
    for part in list(unet.modules()):
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            parametrize.register_parametrization(part, "weight", LowRank(part.weight, rank))
            part.parametrizations.weight.original.requires_grad_(False)
    return unet

class EditingLoss(nn.Module):
    def __init__(self, unet):
        super().__init__()
        self.unet, self.loss = unet, DiffusionLoss(self.noise_in, training_alphas())
    def noise_in(self, noisy, t, **text): return self.unet(torch.cat([noisy, self.picture], 1), t, **text)
    def forward(self, latents, text_states, picture, seed):
        self.picture = picture
        return self.loss(latents, text_states, seed)
    def state_dict(self, *args, **kwargs):
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}
    def load_state_dict(self, state, *args, **kwargs): return super().load_state_dict(state, strict=False)

def told_both(pictures, n, seed):
    rng, parts = random.Random(seed), []
    while len(parts) < n:
        parts += [drawn(pictures, rng, k, False) for k in rng.choices(KINDS, (3,3,2,1,1,2), k=16)]
    return [(instruction(a, b), instruction(b, a)) for a, _, b in parts]

def batches(models, latents, told, batch_size):
    words = sorted({""}.union(*told)); 
    with torch.no_grad(): states = torch.cat([encode_prompt(models, words[i:i+64]) for i in range(0,len(words),64)])
    place = {w: i for i, w in enumerate(words)}
    factor = models.vae.config.scaling_factor
    def make_batch(seed):
        rng = random.Random(seed)
        rows = [(rng.randrange(len(told)), rng.random() < .5) for _ in range(batch_size)]
        drop = [rng.random() for _ in rows]
        before = torch.stack([latents[r, int(w)] for r, w in rows]).float()
        after = torch.stack([latents[r, 1 - w] for r, w in rows]).float() * factor
        ids = [place["" if d < .1 else told[r][w]] for (r, w), d in zip(rows, drop)]
        keep = torch.tensor([not .05 < d < .15 for d in drop])
        return after, states[ids], before * keep[:, None, None, None], seed
    return make_batch

if __name__ == "__main__":
    steps, lr, opt, name = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4]
    m=load_models(data_folder()/"pocket-sd",dtype=torch.float32)
    p=Pictures(splits=("train",),styles=POCKET_STYLES)
    files = sys.argv[5:]
    caches=[load_checkpoint(f) for f in files]
    told=[]
    for f,c in zip(files,caches):
        t=told_both(p,len(c["told"]),int(f.split("_")[-1].split(".")[0]))
        assert [x[0] for x in t]==c["told"]; told+=t
    latents=torch.cat([c["latents"] for c in caches])
    torch.manual_seed(0)
    unet=adapted(seeing(m.unet))
    unet.set_attn_processor(AttnProcessor())
    loss=EditingLoss(unet)
    print(sum(q.numel() for q in loss.state_dict().values()), len(told), choose_precision(), flush=True)
    fit(loss, batches(m,latents,told,16), steps, lr=lr, weight_decay=0, ema_decay=.999 if steps>300 else None, checkpoint=f"/tmp/e17/{name}.pt", save_every=50, report_every=20, mixed_precision=None, optimizer=opt, show_speed=True, warmup=30)
