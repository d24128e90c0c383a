"""What notebook 17 needs besides its ways to edit: pictures made of parts, tables of one's own pairs, and a panel.

Written by hand; the ways themselves are made in the notebook."""
import base64
import csv
import random
from collections import namedtuple
from dataclasses import replace
from difflib import SequenceMatcher
from html import escape
from pathlib import Path

import ipywidgets
import numpy as np
import torch
from IPython.display import display
from PIL import Image, ImageDraw, ImageOps

from .autoencoder import image_tensor, psnr, to_rgb
from .evaluation import with_article
from .finetuning import one_picture
from .pictures import BACKGROUNDS, POCKET_STYLES, Pictures, judge_images
from .playground import button, front_end, labelled, number
from .playground_parts import figure, opened, png
from .sampling_loop import check_number, show_images

Parts = namedtuple("Parts", "subject style ground width x y mirrored")
KINDS = "ground", "style", "subject", "mirrored", "larger", "moved"

def composed(pictures, parts, size=128):
    "(RGB picture of these Parts, share of each pixel that the drawing covers, (size, size))."
    cut = pictures.cutout(pictures.drawings(parts.subject, parts.style)[0])
    cut = cut.resize((parts.width,) * 2, Image.LANCZOS)
    if parts.mirrored: cut = ImageOps.mirror(cut)
    across, down = ((p, size - parts.width - p) for p in (parts.x, parts.y))
    above = np.pad(np.asarray(cut, dtype=np.float32), (down, across, (0, 0)))
    covered = above[..., 3:] / 255
    pixels = above[..., :3] + (1 - covered) * BACKGROUNDS[parts.ground]
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)), covered[..., 0]

def changed(pictures, rng, kind, a):
    "(Parts after an edit of this kind of Parts `a`, the words that lead there, and those that lead back)."
    known = dict(ground=("make the background {}", BACKGROUNDS), style=("turn it into {}", pictures.styles),
                 subject=("replace it with {}", pictures.subjects))
    if kind in known:
        (words, some), old = known[kind], getattr(a, kind)
        new = rng.choice([o for o in some if o != old])
        there, back = (words.format(o if kind == "ground" else with_article(o)) for o in (new, old))
        return a._replace(**{kind: new}), there, back
    if kind == "mirrored": return a._replace(mirrored=not a.mirrored), "mirror it", "mirror it"
    if kind == "larger": return a._replace(width=a.width + 32, x=a.x - 16, y=a.y - 16), "make it larger", "make it smaller"
    dx, dy, there, back = rng.choice([(-24, 0, "left", "right"), (24, 0, "right", "left"), (0, -24, "up", "down"), (0, 24, "down", "up")])
    return a._replace(x=a.x + dx, y=a.y + dy), f"move it {there}", f"move it {back}"

def parts_pair(pictures, rng, kind, held_out):
    """(Parts, Parts after, words there, words back) of one of KINDS.

    If `held_out`, the first is one of held_out.csv's combinations; if not, neither is."""
    kept, options = sorted(pictures.held_out), (pictures.subjects, pictures.styles, list(BACKGROUNDS))
    while True:
        shown = rng.choice(kept) if held_out else [rng.choice(some) for some in options]
        width = dict(larger=72, moved=80).get(kind) or rng.choice((88, 104))
        places = dict(larger=range(16, 41, 8), moved=[24]).get(kind) or range(0, 129 - width, 8)
        a = Parts(*shown, width, rng.choice(places), rng.choice(places), rng.random() < .5)
        b, *words = changed(pictures, rng, kind, a)
        if held_out or not {a[:3], b[:3]} & pictures.held_out: return a, b, *words

def drawn_pairs(pictures, n, seed=0, often=(2, 6, 2, 2, 1, 2)):
    """`n` pairs of pictures, and for each the words that lead there and back; KINDS as `often` as it says.

    pictures: Pictures, or None for those that pocket-sd was trained on. Each `seed` draws others."""
    pictures, rng = pictures or Pictures(("train",), styles=POCKET_STYLES), random.Random(seed)
    found = [parts_pair(pictures, rng, kind, False) for kind in rng.choices(KINDS, often, k=n)]
    return [[composed(pictures, p)[0] for p in row[:2]] for row in found], [row[2:] for row in found]

Edit = namedtuple("Edit", "image instruction before after mask target kind shows")
def edits(n, seed=0):
    """`n` Edits, KINDS in turn, of combinations that no UNet and no lesson of the series has seen.

    The mask is white where anything may change; `shows` is (subject, style, ground) of the target."""
    pictures, cases = Pictures(splits=("train",), styles=POCKET_STYLES), []
    def prompt(p): return f"{with_article(p.style)} of {with_article(p.subject)} on a {p.ground} background"
    for i in range(check_number("n", n, 1, whole=True)):
        kind, rng = KINDS[i % len(KINDS)], random.Random(10_000 * seed + i)
        a, b, told, _ = parts_pair(pictures, rng, kind, True)
        (image, covered), (target, then) = (composed(pictures, parts) for parts in (a, b))
        free = (np.asarray(image) != np.asarray(target)).any(-1)
        free |= covered < 1 if kind == "ground" else (covered > 0) | (then > 0)
        mask = Image.fromarray(np.uint8(free) * 255)
        cases.append(Edit(image, told, prompt(a), prompt(b), mask, target, kind, b[:3]))
    return cases

def measured(judge, cases, images):
    """Lists of one value a case: PSNR in dB to `target`, to the input `outside` the mask, is it `right`?
    Of ground, style and subject the judge says so; else the target must be nearer than the input."""
    rows = []
    for case, image, said in zip(cases, images, judge_images(judge, images), strict=True):
        word, near = dict(subject=0, style=1, ground=2).get(case.kind), psnr(image, case.target)
        right = near > psnr(image, case.image) if word is None else said[word] == case.shows[word]
        kept = np.asarray(case.mask) == 0
        far = psnr(*(Image.fromarray(np.asarray(i)[kept][None]) for i in (image, case.image)))
        rows.append(dict(kind=case.kind, target=round(near, 2), outside=round(far, 2), right=bool(right)))
    return {k: [row[k] for row in rows] for k in rows[0]}

def listed(some, n, what):
    "The list `some`, or `n` times that one thing; ValueError for another length."
    some = [*some] if isinstance(some, (list, tuple)) else [some] * n
    if len(some) == n: return some
    raise ValueError(f"{len(some)} {what} for {n} prompts: give one, or one for each")

def pasted(made, image, mask):
    "`made` where `mask` is white, half grey counting as white, and elsewhere `image`, of the same size; a PIL image."
    white = to_rgb(mask).convert("L").point(lambda grey: 255 * (grey >= 128)).resize(made.size, Image.NEAREST)
    return Image.composite(made, image, white)

def lent_words(tokenizer, before, after):
    "For each place in prompt `after` the place in `before` whose map of attention it takes, (77,), or -1: one of its own."
    ids = [tokenizer(p, padding="max_length", truncation=True).input_ids for p in (before, after)]
    places = torch.full((len(ids[1]),), -1)
    for tag, i, i_end, j, j_end in SequenceMatcher(None, *ids, autojunk=False).get_opcodes():
        if tag in ("equal", "replace"): places[j:j_end] = torch.arange(i, i + j_end - j).clamp(max=i_end - 1)
    return places

@torch.no_grad()
def pair_latents(vae, pairs, batch_size=16):
    "[(picture, target)] -> their latents, unscaled as diffusers' pipeline takes them, (n, 2, 4, h, w), float16."
    pixels = (image_tensor(sum(map(list, pairs[i:i + batch_size]), [])).to(vae.device, vae.dtype)
              for i in range(0, len(pairs), batch_size))
    return torch.cat([vae.encode(p).latent_dist.mean.unflatten(0, (-1, 2)).half().cpu() for p in pixels])

def merged(models, unet):
    "`models` with this UNet, and what its LoRAs learned added to its own weights."
    unet.fuse_lora(), unet.unload_lora()
    return replace(models, unet=unet.requires_grad_(False).to(models.device, models.dtype).eval())

def fault_of(names, files, size):
    "(What is wrong with a row of a table of pairs, or '', its two pictures)."
    if not all(names): return "it needs input, target and instruction", []
    if gone := [f.name for f in files if not f.is_file()]: return f"there is no {gone[0]!r}", []
    try: pair = [one_picture(f, size) for f in files]
    except ValueError as e: return str(e), []
    sizes = [Image.open(f).size for f in files]
    return "" if sizes[0] == sizes[1] else f"{sizes[0]} and {sizes[1]} are two sizes: give both one", pair

def own_pairs(folder, size=128):
    """([(input, target)], [(instruction,)]) of the rows of `pairs.csv` in `folder`; RGB, cut square, `size` pixels wide.

    Its columns are input, target (names of files beside it) and instruction. ValueError, with the line, for a
    picture that is missing or cannot be read, for two of different size, and for fewer than two rows."""
    file, pairs, told = Path(folder) / "pairs.csv", [], []
    if not file.is_file(): raise FileNotFoundError(f"no pairs.csv in {file.parent.name!r}: its columns are input,target,instruction")
    with file.open(encoding="utf-8-sig", newline="") as f: rows = list(csv.DictReader(f, skipinitialspace=True))
    for line, row in enumerate(rows, 2):
        names = [(row.get(k) or "").strip() for k in ("input", "target", "instruction")]
        fault, pair = fault_of(names, [file.parent / name for name in names[:2]], size)
        if fault: raise ValueError(f"pairs.csv, line {line}: {fault}")
        pairs.append(pair), told.append(names[2:])
    if len(pairs) > 1: return pairs, told
    raise ValueError(f"{len(pairs)} pairs in pairs.csv: give two at least, better twenty")

# Drawn over the picture: a round brush as wide as an eighth of it. What is painted goes into a hidden text area, from there to the kernel.
PAINT = ("const c=this.getContext('2d'),s=this.width/this.clientWidth,x=event.offsetX*s,y=event.offsetY*s;"
         "if(event.type=='pointerdown'){this.setPointerCapture(event.pointerId);this.at=[x,y];}"
         "if(event.buttons&&this.at){c.strokeStyle='red';c.lineWidth=this.width/8;c.lineCap='round';"
         "c.beginPath();c.moveTo(...this.at);c.lineTo(x,y);c.stroke();this.at=[x,y];}")
TELL = ("const t=document.querySelector('.{0} textarea');if(this.at){{this.at=null;t.value=this.toDataURL();"
        "for(const e of ['input','change'])t.dispatchEvent(new Event(e,{{bubbles:true}}));}}")

def paintable(image, caption, told):
    "HTML of a picture on which one can paint; each stroke reports to the text area inside the class `told`, as a PNG's data URL."
    place = "position:absolute;left:2px;top:2px;width:240px;height:auto;opacity:.55;cursor:crosshair;touch-action:none"
    acts = dict(down=PAINT, move=PAINT, up=TELL.format(told), cancel=TELL.format(told))
    acts = " ".join(f'onpointer{name}="{code}"' for name, code in acts.items())
    canvas = f'<canvas width="{image.width}" height="{image.height}" style="{place}" aria-hidden="true" {acts}></canvas>'
    return f'<div style="position:relative">{figure(image, caption)}{canvas}</div>'

def painted(url, size):
    "The mask, mode L, in a canvas's data URL: white where anything was painted. ValueError where it is no picture."
    image, _ = opened("painted.png", base64.b64decode(url.partition(",")[2]))
    return image.convert("RGBA").getchannel("A").point(lambda a: 255 * (a > 127)).resize(size, Image.NEAREST)

class EditingPanel:
    """A panel that edits one picture: an instruction, or a prompt for a part of it - a box, painted, or an uploaded mask.

    edit, inpaint: functions of notebook 17, with their models in place: edit(instruction, image, mask=...) and
    inpaint(prompt, image, mask=...), each to a list of one PIL image. Displaying it shows it; `image` is
    the last result. Where no front end is (see `playground`), the picture and a first edit stand there."""
    def __init__(self, edit, inpaint, image, instruction="make the background blue"):
        self.edit, self.inpaint, self.told = edit, inpaint, instruction
        self.before, self.image, self.mask = to_rgb(image), None, None

    def _ipython_display_(self):
        if front_end(): return display(self.build().box)
        self.image, = self.edit(self.told, self.before)
        show_images([self.before, self.image], ["before", self.told])

    def build(self):
        "Make the widgets, unless they are there; in reading order, which is the order of the tab key."
        if hasattr(self, "box"): return self
        w, wrap = ipywidgets, dict(flex_flow="row wrap")
        self.instruction = labelled("Text", "Instruction", value=self.told)
        self.prompt = labelled("Text", "Part: prompt", value="an owl")
        self.steps, self.seed = number("Int", "Steps", min=1, max=150, value=20), labelled("BoundedIntText", "Seed", max=2**32 - 1, value=32)
        self.scale, self.by_picture = (number("Float", label, max=30, step=.5, value=v)
                                       for label, v in (("Guidance scale", 3.), ("Picture's scale", 1.)))
        sides = zip(("Left", "Top", "Right", "Bottom"), (0, 0, self.before.width, self.before.height // 2))
        self.sides = [labelled("BoundedIntText", f"Box: {side.lower()}", max=4096, value=v) for side, v in sides]
        for side in self.sides: side.observe(lambda _: self.refresh(), "value")
        self.only = w.Checkbox(description="Follow it in the part only", indent=False)
        self.upload, self.upload_mask = (w.FileUpload(description=f"Upload a {what}", accept="image/*", layout=dict(width="auto"))
                                         for what in ("picture", "mask"))
        self.upload.observe(lambda c: self.received(c, "before"), "value")
        self.upload_mask.observe(lambda c: self.received(c, "mask"), "value")
        self.strokes, self.told_by = w.Textarea(layout=dict(display="none")), f"deepdive-painted-{id(self)}"
        self.strokes.add_class(self.told_by).observe(lambda c: self.paint(c["new"]), "value")
        self.message, self.shown, self.result = w.HTML(), w.HTML(), w.HTML()
        acts = {"Follow the instruction": self.follow, "Repaint the part": self.repaint, "Back to the box": self.forget,
                "Go on from the result": self.go_on}
        numbers = [w.HBox([c, c.slider]) for c in (self.steps, self.scale, self.by_picture)]
        left = w.VBox([self.upload, self.instruction, self.only, self.prompt, *self.sides, self.upload_mask, *numbers, self.seed,
                       w.HBox([button(*act) for act in acts.items()], layout=wrap)])
        right = w.VBox([self.message, w.HBox([self.shown, self.result], layout=wrap), self.strokes])
        left.layout.flex, right.layout.flex = "1 1 360px", "1 1 300px"
        self.box = w.HBox([left, right], layout=wrap)
        self.refresh()
        return self

    def chosen(self):
        "The mask: the painted or uploaded one, or the box in white; ValueError where the box is none."
        if self.mask is not None: return self.mask
        left, top, right, bottom = (side.value for side in self.sides)
        if left >= right or top >= bottom:
            raise ValueError(f"the box from ({left}, {top}) to ({right}, {bottom}) is empty: right and bottom come after left and top")
        mask = Image.new("L", self.before.size)
        mask.paste(255, (left, top, right, bottom))
        return mask

    def refresh(self):
        "The picture, with what may change outlined."
        self.message.value, seen = "", self.before.copy()
        try: bounds = self.chosen().convert("L").getbbox()
        except ValueError as e: return self.say(e)
        if bounds: ImageDraw.Draw(seen).rectangle((bounds[0], bounds[1], bounds[2] - 1, bounds[3] - 1), outline="red")
        words = "before; the box is outlined" if self.mask is None else "before; the mask's bounds are outlined"
        self.shown.value = paintable(seen, f"{words}; paint on it for another part", self.told_by)

    def say(self, error): self.message.value = f'<div role="status">Error: {escape(str(error))}</div>'

    def received(self, change, name):
        "A file was chosen: another picture, or a mask for this one."
        if not change["new"]: return
        file, change["owner"].value = change["new"][0], ()
        try: image = to_rgb(opened(file["name"], file["content"])[0])
        except ValueError as e: return self.say(e)
        setattr(self, name, image)
        if name == "before": return self.forget()
        self.refresh()

    def forget(self):
        "The part that may change is the box again."
        self.mask = None
        self.refresh()

    def paint(self, url):
        "A stroke is over: what is painted now is the part that may change."
        try: self.mask = painted(url, self.before.size)
        except ValueError as e: return self.say(e)
        self.message.value = '<div role="status">the part that may change is what you painted</div>'

    def act(self, make, words, **more):
        "Show what `make` makes of the picture, or the sentence of its error."
        self.message.value = '<div role="status">working</div>'
        settings = dict(num_inference_steps=self.steps.value, guidance_scale=self.scale.value, seed=self.seed.value)
        try: self.image, = make(words, self.before, **more, **settings)
        except Exception as e: return self.say(e)
        self.message.value, self.result.value = "", figure(self.image, words, png(self.image))

    def follow(self): self.masked(self.edit, self.instruction.value, self.only.value, image_guidance_scale=self.by_picture.value)
    def repaint(self): self.masked(self.inpaint, self.prompt.value, True)
    def masked(self, make, words, only, **more):
        "`act`, if `only` then with the mask; or the sentence of what is wrong with that."
        try: mask = self.chosen() if only else None
        except ValueError as e: return self.say(e)
        self.act(make, words, mask=mask, **more)
    def go_on(self):
        if self.image is None: return self.say("there is no result yet")
        self.before = self.image
        self.forget()
