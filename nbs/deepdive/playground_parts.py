"""What the panel of notebook 08 needs besides widgets: a picture's settings, the call that makes it, and both as text, code and HTML.

Written by hand; the panel itself is made in the notebook."""
import base64
import html
import io
import json
import re
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import diffusers
import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .autoencoder import image_tensor
from .guidance import blue_loss, guided_txt2img, symmetry
from .image_to_image import first_step, fitted, img2img
from .sampling_loop import data_folder, encode_prompt, latents_to_pil, model_source, prepared
from .textual_inversion import add_token, load_embedding
from .unet import txt2img

@dataclass
class Settings:
    "What a picture is made from; `image` is a PIL image to start from, or None, `push` a name in PUSHES."
    prompt: str = "A watercolor painting of an otter"
    negative_prompt: str = ""
    second_prompt: str = ""
    share: float = .5
    guidance_scale: float = 7.5
    num_inference_steps: int = 20
    seed: int = 32
    sampler: str = "DPM++ 2M"
    image: object = None
    strength: float = .6
    push: str = "none"
    push_scale: float = 40.
    push_start: float = 0.

SAMPLERS = {"LMS": "LMSDiscrete", "Euler": "EulerDiscrete", "Euler a": "EulerAncestralDiscrete",
            "Heun": "HeunDiscrete", "DDIM": "DDIM", "DPM++ 2M": "DPMSolverMultistep"}
PUSHES = {"blue": blue_loss, "symmetry": symmetry}
EMBEDDINGS = data_folder(check=False) / "embeddings"
WORDS = {f"<{name}>": EMBEDDINGS / f"{name}.safetensors" for name in ("wash", "pencil")}
NUMBERS = {name: type(v) for name, v in vars(Settings()).items() if isinstance(v, (int, float))}

def used(s):
    "The names of the settings that have a say in the picture of `s`: a push goes by Euler, from noise."
    idle = ["strength"] * (s.image is None) + ["share", "second_prompt"] * (not s.second_prompt)
    idle += ["push", "push_scale", "push_start"] if s.push == "none" else ["sampler", "strength"]
    return [name for name in vars(s) if name not in idle]

def words_in(s, words): return [w for w in words if w in s.prompt + s.negative_prompt + s.second_prompt]

def known(table, name):
    if name in table: return table[name]
    raise ValueError(f"there is no {name!r}, only {', '.join(table)}")

def call_for(models, s, pushes=PUSHES, words=WORDS):
    """(helper, its arguments) that make the picture of the Settings `s`: `helper(models, **arguments)[0]`.

    What is wrong with `s` is raised here, before the first step. Learned `words` in a prompt are taught."""
    for word in words_in(s, words):
        if word in models.tokenizer.get_added_vocab(): continue
        add_token(models, word, load_embedding(words[word]))
    prompt = encode_prompt(models, s.prompt)
    if s.second_prompt: prompt = torch.lerp(prompt, encode_prompt(models, s.second_prompt), s.share)
    same = dict(prompt=prompt, negative_prompt=encode_prompt(models, s.negative_prompt), seed=s.seed,
                guidance_scale=s.guidance_scale, num_inference_steps=s.num_inference_steps)
    if s.push != "none":
        push = dict(loss_fn=known(pushes, s.push), loss_scale=s.push_scale, start=s.push_start)
        return guided_txt2img, {**same, **push}
    same["scheduler"] = scheduler_for(models, s)
    if s.image is None: return txt2img, same
    n = s.num_inference_steps
    taken = s.strength if first_step(s.strength, n) < n else 0
    return img2img, dict(same, image=fitted(models, s.image), strength=taken)

def scheduler_for(models, s):
    return getattr(diffusers, known(SAMPLERS, s.sampler) + "Scheduler").from_config(models.scheduler.config)

def make(models, s, callback=None, **names):
    "The PIL image of the Settings `s`; `names` may hold `pushes` and `words` of your own."
    helper, arguments = call_for(models, s, **names)
    return helper(models, callback=callback, **arguments)[0]

def variants(s, **axes):
    "`s` with each value of one setting, or each pair of two: guidance_scale=[1, 7.5], seed=[1, 2]."
    if not axes or any(not hasattr(s, name) or not values for name, values in axes.items()):
        raise ValueError(f"compare over settings, each with a list of values, not over {axes}")
    return [replace(s, **dict(zip(axes, values))) for values in product(*axes.values())]

def compare(models, s, names={}, **axes):
    "The pictures of `variants(s, **axes)`, row by row: the last setting varies fastest."
    return [make(models, v, **names) for v in variants(s, **axes)]

def steps_taken(models, s):
    "How many calls of a `callback` there are, and whether the sampler keeps latents of variance one."
    if s.push != "none": return s.num_inference_steps, False
    flat = s.sampler in ("DDIM", "DPM++ 2M")
    return len(prepared(models, scheduler_for(models, s), s.num_inference_steps).timesteps), flat

def views(models, latents, t, noise_pred, variance_one):
    """PIL images of what the UNet saw at timestep `t`, and of the end it points to.

    `variance_one` says how the sampler keeps `latents`: as DDIM does, or with noise of deviation sigma."""
    abar = models.scheduler.alphas_cumprod.cpu().double().numpy()
    sigma = float(np.interp(float(t), np.arange(len(abar)), ((1 - abar) / abar)**.5))
    scaled = latents if variance_one else latents / (1 + sigma**2)**.5
    end = scaled * (1 + sigma**2)**.5 - sigma * noise_pred
    return latents_to_pil(models.vae, torch.cat([scaled, end]))

def forming(models, s, n=4, **names):
    "The picture of `s`, and {step: predicted end} at up to `n` steps on the way, evenly spread."
    steps = []
    image = make(models, s, lambda *step: steps.append(step), **names)
    _, flat = steps_taken(models, s)
    some = sorted({1 + k * (len(steps) - 1) // n for k in range(n)}) if len(steps) > 1 else []
    return image, {steps[k][0] + 1: views(models, steps[k - 1][2], steps[k][1], steps[k][3], flat)[1] for k in some}

LABELS = {"Steps": "num_inference_steps", "Sampler": "sampler", "CFG scale": "guidance_scale",
          "Seed": "seed", "Denoising strength": "strength", "Second prompt": "second_prompt",
          "Second prompt share": "share", "Push": "push", "Push scale": "push_scale", "Push start": "push_start"}

def name_of(image): return Path(getattr(image, "filename", "") or "start.png").name

def parameters(models, s, image):
    "The settings `s` of `image` in the form in which the web UI writes them into a PNG."
    def quoted(v):
        text = f"{v:.10g}" if isinstance(v, float) else str(v)
        return json.dumps(text, ensure_ascii=False) if re.search(r'[,:"\\\n]', text) else text
    values = {label: getattr(s, name) for label, name in LABELS.items() if name in used(s)}
    values |= dict(Size=f"{image.width}x{image.height}", Model=Path(str(models.source)).name)
    if s.push != "none": values["Sampler"] = "Euler"
    if "strength" in used(s): values["Start picture"] = name_of(s.image)
    negative = ["Negative prompt: " + s.negative_prompt] if s.negative_prompt else []
    return "\n".join([s.prompt, *negative, ", ".join(f"{k}: {quoted(v)}" for k, v in values.items())])

def settings_from(text):
    """(settings by name, remarks) that a text `parameters` holds, this panel's or another tool's.

    Labels that we do not know are passed over; a remark says what could not be taken."""
    *lines, last = text.strip().split("\n")
    pairs = dict(re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)', last))
    if len(pairs) < 3: lines, pairs = [*lines, last], {}
    at = next((i for i, line in enumerate(lines) if line.startswith("Negative prompt:")), len(lines))
    values = dict(prompt="\n".join(lines[:at]), negative_prompt="\n".join(lines[at:])[16:].strip(),
                  second_prompt="", push="none")
    remarks = []
    for label, name in LABELS.items():
        if label not in pairs: continue
        try:
            plain = json.loads(pairs[label]) if pairs[label].startswith('"') else pairs[label].strip()
            values[name] = NUMBERS.get(name, str)(plain)
        except ValueError: remarks.append(f"{label}: {pairs[label]!r} is not understood")
    if (sampler := values.get("sampler", "LMS")) not in SAMPLERS:
        values["sampler"] = max((k for k in SAMPLERS if sampler.startswith(k)), key=len, default="DPM++ 2M")
        remarks.append(f"there is no sampler {sampler!r}, {values['sampler']} takes its place")
    return values, remarks

def png(image, text=""):
    "`image` as the bytes of a PNG, with `text` in its chunk `parameters`."
    info, file = PngInfo(), io.BytesIO()
    if text: info.add_text("parameters", text)
    image.save(file, "png", pnginfo=info)
    return file.getvalue()

def opened(name, content):
    "(image, its text `parameters` or '') from the bytes of a file; ValueError where it is no picture."
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except Exception as e:  # Pillow stumbles over broken files in many ways
        raise ValueError(f"{name!r} is no picture that can be read: choose a PNG, JPEG or WebP") from e
    image.filename, text = name, image.info.get("parameters")
    return image, text if isinstance(text, str) else ""

def values_of(name, text):
    "The values typed for a setting: prompts between |, others between commas. ValueError names what is none."
    values = [v.strip() for v in text.split("|" if name.endswith("prompt") else ",")]
    try: return [NUMBERS.get(name, str)(v) for v in values]
    except ValueError: raise ValueError(f"{name}: {text!r} is no list of numbers such as 1, 2, 4") from None

def place(path):
    "A learned word's file, as code."
    return f"data_folder() / 'embeddings' / {path.name!r}" if path in WORDS.values() else repr(str(path))

def source_of(models): return "" if str(models.source) == str(model_source()) else repr(str(models.source))

def shared(s):
    return (f"negative_prompt={s.negative_prompt!r},\n    num_inference_steps={s.num_inference_steps}, "
            f"guidance_scale={s.guidance_scale}")

def needed(lines):
    "`lines` as text, without the imports (they stand before the first empty line) that they do not need."
    body, kept = "\n".join(lines[lines.index(""):]), []
    for line in lines[:lines.index("")]:
        start, _, names = line.rpartition("import ")
        names = [n for n in names.split(", ") if n + "(" in body or n + "." in body or f"={n}," in body]
        if names: kept.append(f"{start}import {', '.join(names)}")
    return "\n".join([*kept, body])

def code_for(models, s, pushes=PUSHES, words=WORDS):
    "The lines that make the picture of `s` with the helpers of notebooks 00 to 07, to copy into a cell."
    cls, loss = SAMPLERS[s.sampler] + "Scheduler", pushes[s.push].__name__ if s.push != "none" else ""
    helper = "guided_txt2img" if loss else "txt2img" if s.image is None else "img2img"
    module = dict(guided_txt2img="guidance", img2img="image_to_image", txt2img="unet")[helper]
    ours = [loss] * (loss != "" and PUSHES.get(s.push) is pushes[s.push]) + [helper]
    lines = ["import torch", f"from diffusers import {cls}", "from PIL import Image",
             "from deepdive.sampling_loop import data_folder, encode_prompt, load_models",
             "from deepdive.textual_inversion import add_token, load_embedding",
             f"from deepdive.{module} import {', '.join(ours)}", "", f"models = load_models({source_of(models)})"]
    lines += [f"add_token(models, {w!r}, load_embedding({place(words[w])}))" for w in words_in(s, words)]
    lines += [f"prompt = {s.prompt!r}"]
    if s.second_prompt:
        lines += [f"second = encode_prompt(models, {s.second_prompt!r})",
                  f"prompt = torch.lerp(encode_prompt(models, prompt), second, {s.share})"]
    more = f"scheduler={cls}.from_config(models.scheduler.config)"
    if s.image is not None: more = f"image=Image.open({name_of(s.image)!r}), strength={s.strength},\n    {more}"
    if loss: more = f"loss_fn={loss}, loss_scale={s.push_scale}, start={s.push_start}"
    lines += [f"image = {helper}(\n    models, prompt, {shared(s)}, seed={s.seed},\n    {more})[0]"]
    return needed(lines)

def pipeline_code(models, s, words=WORDS):
    "The lines that make the picture of `s` with diffusers' pipeline, which has no push by a loss."
    if s.push != "none": return "# diffusers has no pipeline that a loss pushes; see guided_txt2img"
    cls, kind = SAMPLERS[s.sampler] + "Scheduler", "Img2Img" * (s.image is not None)
    lines = ["import torch", f"from diffusers import {cls}, StableDiffusion{kind}Pipeline",
             "from PIL import Image", "from deepdive.autoencoder import to_rgb",
             "from deepdive.sampling_loop import choose_device, data_folder, model_source", "",
             f"pipe = StableDiffusion{kind}Pipeline.from_pretrained(",
             f"    model_source({source_of(models)}), safety_checker=None).to(*choose_device())",
             f"pipe.scheduler = {cls}.from_config(pipe.scheduler.config)"]
    lines += [f"pipe.load_textual_inversion({place(words[w])}, token={w!r})" for w in words_in(s, words)]
    text = f"prompt={s.prompt!r}"
    if s.second_prompt:
        lines += ["first, second = (pipe.encode_prompt(prompt, pipe.device, 1, False)[0]",
                  f"                 for prompt in ({s.prompt!r}, {s.second_prompt!r}))"]
        text = f"prompt_embeds=torch.lerp(first, second, {s.share})"
    if kind:
        size = tuple(image_tensor(fitted(models, s.image)).shape[:1:-1])
        lines += [f"start = to_rgb(Image.open({name_of(s.image)!r})).resize({size}, Image.LANCZOS)"]
        text += f", image=start, strength={s.strength}"
    end = f"generator=torch.Generator().manual_seed({s.seed})).images[0]"
    return needed([*lines, f"image = pipe({text}, {shared(s)},\n    {end}"])

def axes_from(chosen, s, most=36):
    """({setting: its values}, the Settings of each picture) of a grid; `chosen` is [(setting, typed values)].

    Raises ValueError where that makes no grid."""
    axes = {name: values_of(name, text) for name, text in chosen}
    if len(axes) < len(chosen): raise ValueError("choose two different settings to compare")
    wanted = variants(s, **axes)
    if len(wanted) > most: raise ValueError(f"a grid of {len(wanted)} pictures is too much: at most {most}")
    return axes, wanted

def picture_tag(image, words, width, data=None):
    "HTML of an image, which is read out as `words`."
    return (f'<img alt="{html.escape(words)}" width="{width}" '
            f'src="data:image/png;base64,{base64.b64encode(data or png(image)).decode()}">')

def figure(image, caption, data=None, width=240):
    "HTML of an image over its caption; `data` is its PNG, if it is there already."
    style = f"display:inline-block;margin:2px;width:{width}px;line-height:1.3;overflow-wrap:anywhere"
    below = html.escape(caption).replace("\n", "<br>")
    return f'<figure style="{style}">{picture_tag(image, caption, width, data)}<figcaption>{below}</figcaption></figure>'

def table(images, across, down=("", [""])):
    "HTML of a grid of images, row by row; an axis is (its name, its values)."
    def head(axis, i): return f"{axis[0]} {axis[1][i]}".strip()
    cols = range(len(across[1]))
    rows = "<tr><th></th>" + "".join(f'<th scope="col">{html.escape(head(across, i))}</th>' for i in cols)
    for n, image in enumerate(images):
        row, col = divmod(n, len(cols))
        if not col: rows += f'<tr><th scope="row">{html.escape(head(down, row))}</th>'
        rows += f"<td>{picture_tag(image, f'{head(down, row)} {head(across, col)}'.strip(), 128)}</td>"
    return f"<table>{rows}</table>"

def as_pil(image):
    "A PIL image as it is; an array (h, w) or (h, w, 3), uint8 or in [0, 1], as a PIL image."
    if isinstance(image, Image.Image): return image
    array = np.asarray(image)
    if array.dtype != np.uint8: array = (array.clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(array)

def put(control, name, value):
    "Set a control; ValueError says what it takes where `value` is out of its range."
    low, high, options = (getattr(control, k, None) for k in ("min", "max", "options"))
    if options and value not in options:
        raise ValueError(f"{name}: {value!r} is not one of {', '.join(options)}")
    if low is not None and not low <= value <= high:
        raise ValueError(f"{name}: {value!r} is beyond this panel's {low:g} to {high:g}")
    control.value = value
