import sys; sys.path.insert(0,"/tmp/next/nbs")
import torch, deepdive.latent_diffusion as m, deepdive
from pathlib import Path
assert m.__file__.startswith("/tmp/next")
lr,steps,bs,share,boost,opt,work=float(sys.argv[1]),int(sys.argv[2]),int(sys.argv[3]),float(sys.argv[4]),float(sys.argv[5]),sys.argv[6],sys.argv[7]
models=m.training_models("/tmp/next/data/pocket-sd","/tmp/next/data/pocket-sd/unet")
pictures,cache=m.unet_data(Path("/tmp/next/.train/unet/latents.pt"),models.vae,14000)
old=m.draw_weights
def w(cache,p):
    x=old(cache,p); s=cache["shown"]; o=p.subjects.index("otter"); st=[p.styles.index(k) for k in ("watercolor painting","oil painting","cartoon")]
    is_=(s[:,0]==o)&torch.isin(s[:,1],torch.tensor(st)); x=torch.where(is_,x*boost,x); print("portrait share",(x[is_].sum()/x.sum()).item(), is_.sum().item()); return x
m.draw_weights=w
losses=m.settling(models,cache,pictures,steps,share,lr=lr,batch_size=bs,optimizer=opt,mixed_precision=None,ema_decay=.99,show_speed=True,report_every=50,checkpoint=Path(work+".pt"))
m.save_fp16(models.unet,Path(work)/"unet")
