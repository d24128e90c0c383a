"run1's checkpoint (LowRank parametrizations) -> data/embeddings/edits.safetensors (LoRA) and its record."
import sys; sys.path.insert(0,"/tmp/e17")
import torch
from pathlib import Path
from diffusers import StableDiffusionPipeline
from deepdive.sampling_loop import data_folder, load_models
from deepdive.denoising import load_checkpoint, record, thinned
from deepdive.editing import seeing
c=load_checkpoint(sys.argv[1]); which=sys.argv[2]
keys=list(c["module"])
vals=c["ema"]["shadow_params"] if which=="ema" else [c["module"][k] for k in keys]
m=load_models(data_folder()/"pocket-sd",dtype=torch.float32)
mods=dict(seeing(m.unet).named_modules())
state={}
for k,v in zip(keys,vals):
    name,leaf=k.removeprefix("unet.").split(".parametrizations.weight.0.")
    w=mods[name].weight
    inner=w.shape[1:]
    if leaf=="down": state[f"{name}.lora_A.weight"]=v.half().view(-1,*inner).contiguous()
    else: state[f"{name}.lora_B.weight"]=v.half().view(*v.shape,*(1,)*(len(inner)-1)).contiguous()
out=data_folder()/"embeddings"
StableDiffusionPipeline.save_lora_weights(out,state,weight_name="edits.safetensors")
record("edits_training",out,steps=len(c["losses"]),n_pairs=3008,losses=thinned(c["losses"]))
print(len(c["losses"]),(out/"edits.safetensors").stat().st_size)
