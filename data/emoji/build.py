"""Builds data/emoji from five packages of the npm registry. The series never runs this: its result is committed.

    pip install resvg-py pillow scipy numpy
    python data/emoji/build.py            # npm must be on the PATH; about three minutes on two cores

Reads `subjects.csv` beside it (emoji, subject, synonyms, category, split), fetches the packages with `npm install`, and writes
one folder a style with one 128 x 128 WebP (with alpha) a drawing, `metadata.csv`, and the licence of every source under `licences/`.
"""
import argparse, csv, io, json, re, shutil, subprocess, tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance
from scipy import ndimage

HERE = Path(__file__).parent
PACKAGES = {"@lobehub/fluent-emoji-3d": "1.1.0", "fluentui-emoji": "1.3.0", "@iconify-json/noto": "1.2.9",
            "@iconify-json/twemoji": "1.2.5",
            "emoji-datasource-google": "16.0.0", "cldr-annotations-full": "48.2.0"}
SIZE = 128
DRAWN = "3d render", "flat illustration", "cartoon"
DERIVED = "watercolor painting", "oil painting", "pencil sketch", "pixel art"
NEVER = "high contrast icon",
HAND = {"3d render": "fluent 3d", "flat illustration": "fluent flat", "cartoon": "noto", "high contrast icon": "fluent high contrast"}

# Subjects of the lecture and of the notebooks. They have further drawings: a flat illustration by Twemoji, watercolors and oil
# paintings after every hand. Left out is what cannot be told at a glance: a floating otter, half a head beside a helmet.
LECTURE = ("astronaut", "campfire", "castle", "cat", "dancer", "fox", "leopard", "lion", "mouse", "otter", "owl", "panda", "parrot",
           "penguin", "puppy", "robot", "rocket", "rose", "skunk", "strawberry", "swan", "teacher", "teddy bear", "top hat")
UNCLEAR = {("otter", "fluent 3d"), ("otter", "twemoji"), ("astronaut", "twemoji")}
# It lies on its back: turned by these degrees, this part of it kept, paths of this fill (whiskers) left out. In full, its face is too small
# for the autoencoder, and thin white lines beside an eye blot it.
PORTRAITS = {("otter", "noto"): (-20, (0, 0, .5, .55), "#e2e2e4")}


# ---------------------------------------------------------------- finding each emoji in the four packages
def install(folder):
    "Install the pinned packages into `folder`; return its node_modules."
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text(json.dumps({"dependencies": PACKAGES}))
    subprocess.run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, check=True)
    return folder / "node_modules"


def strip_variation(code): return "-".join(p for p in code.lower().split("-") if p != "fe0f")


def emoji_names(modules):
    "CLDR name -> code points, for every emoji that the Google sheet lists."
    tts = json.loads((modules / "cldr-annotations-full/annotations/en/annotations.json").read_text(encoding="utf-8"))
    tts = tts["annotations"]["annotations"]
    names = {}
    for e in json.loads((modules / "emoji-datasource-google/emoji.json").read_text(encoding="utf-8")):
        code = strip_variation(e["unified"])
        char = "".join(chr(int(c, 16)) for c in code.split("-"))
        found = tts.get(char) or tts.get(char + "\ufe0f")
        names[found["tts"][0] if found else e["name"].lower()] = code
    return names


def plain(name): return name.replace("’", "'").replace("ñ", "n").lower()


# ---------------------------------------------------------------- the drawn styles
def render_svg(svg, size=2 * SIZE):
    import resvg_py
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
    return Image.open(io.BytesIO(png)).convert("RGBA")


def fit(image, size=SIZE, margin=2):
    "Cut to what is visible, centre it in a square, scale to `size` with premultiplied alpha."
    box = image.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox()
    image = image.crop(box)
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    square = square.convert("RGBa").resize((size - 2 * margin,) * 2, Image.LANCZOS).convert("RGBA")
    out = Image.new("RGBA", (size, size))
    out.paste(square, (margin, margin))
    return out


def drawn(modules, code, name, subject):
    "The drawn pictures of one emoji by hand (see HAND; Twemoji's for LECTURE), or None for those that a package lacks."
    slug = re.sub(r"[^a-z0-9]+", "-", plain(name).replace("'", "")).strip("-")
    slug = {"mermaid": "woman-merpeople"}.get(slug, slug)
    three_d = next((f for f in (modules / "@lobehub/fluent-emoji-3d/assets").glob(f"{code.split('-')[0]}*.webp")
                    if strip_variation(f.stem) == code), None)
    out = {"fluent 3d": fit(Image.open(three_d).convert("RGBA")) if three_d else None}
    for hand, folder in ("fluent flat", "flat"), ("fluent high contrast", "high-contrast"):
        base = modules / "fluentui-emoji/icons" / folder
        svg = next((f for f in (base / f"{slug}.svg", base / f"{slug}-default.svg") if f.exists()), None)
        out[hand] = fit(render_svg(svg.read_text(encoding="utf-8"))) if svg else None
    for hand in ("noto", "twemoji")[:1 + (subject in LECTURE)]: out[hand] = iconify(modules, hand, code, PORTRAITS.get((subject, hand)))
    return out


@cache
def icon_set(folder):
    names = json.loads((folder / "chars.json").read_text(encoding="utf-8"))
    return json.loads((folder / "icons.json").read_text(encoding="utf-8")), {strip_variation(k): v for k, v in names.items()}


def portrait(image, turn, part):
    "What is inside `part` of a picture turned by `turn` degrees: shares (left, top, right, bottom) of what is visible; round corners."
    image = image.convert("RGBa").rotate(turn, Image.BICUBIC, expand=True).convert("RGBA")
    image = image.crop(image.getchannel("A").getbbox())
    image = image.crop([round(share * side) for share, side in zip(part, 2 * image.size)])
    y, x = ((2 * np.indices(image.size[::-1]) + 1) / np.reshape(image.size[::-1], (2, 1, 1)) - 1) ** 4
    alpha = np.asarray(image.getchannel("A")) * np.clip(12 * (1 - x - y), 0, 1)
    image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    return image


def iconify(modules, hand, code, cut=None):
    "The picture of an emoji in one of Iconify's sets, or as `cut` says (see PORTRAITS); None where the set lacks it."
    icons, names = icon_set(modules / "@iconify-json" / hand)
    name = names.get(code)
    if name is None: return None
    name = icons.get("aliases", {}).get(name, {}).get("parent", name)
    icon = icons["icons"][name]
    w, h = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    body = re.sub(f'<path fill="{cut[2]}"[^>]*>', "", icon["body"]) if cut else icon["body"]
    svg = render_svg(f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                     f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {w} {h}">{body}</svg>', 8 * SIZE if cut else 2 * SIZE)
    return fit(portrait(svg, *cut[:2]) if cut else svg)


# ---------------------------------------------------------------- the derived styles
def split(image):
    "RGB over the mean colour of the picture (so that filters do not drag in black from outside), and alpha; floats in [0, 1]."
    rgba = np.asarray(image, dtype=np.float32) / 255
    rgb, alpha = rgba[..., :3], rgba[..., 3]
    near = ndimage.distance_transform_edt(alpha < .6, return_distances=False, return_indices=True)
    return rgb[tuple(near)], alpha


def join(rgb, alpha):
    return Image.fromarray((np.dstack([rgb, alpha]).clip(0, 1) * 255).round().astype(np.uint8), "RGBA")


def kuwahara(rgb, radius):
    "Each pixel takes the mean of the calmest of its four quadrants: flat dabs with sharp borders."
    size, shift = radius + 1, radius / 2
    mean = ndimage.uniform_filter(rgb, (size, size, 0))
    var = (ndimage.uniform_filter(rgb**2, (size, size, 0)) - mean**2).sum(-1)
    k = int(round(shift))
    moves = [(dy, dx) for dy in (-k, k) for dx in (-k, k)]
    means = np.stack([np.roll(mean, m, (0, 1)) for m in moves])
    best = np.stack([np.roll(var, m, (0, 1)) for m in moves]).argmin(0)
    return np.take_along_axis(means, best[None, ..., None], 0)[0]


def blotches(rng, sigma):
    "Smooth noise with mean 0 and standard deviation 1."
    noise = ndimage.gaussian_filter(rng.standard_normal((SIZE, SIZE)), sigma, mode="wrap")
    return (noise / noise.std()).astype(np.float32)


def dark_details(rgb, radius=6):
    "How much darker each place is than what surrounds it within `radius` pixels, 0 to .9: eyes, noses, lines."
    light = ndimage.gaussian_filter(rgb.mean(-1), .5)
    around = ndimage.grey_closing(light, footprint=np.hypot(*np.mgrid[-radius:radius + 1, -radius:radius + 1]) <= radius)
    return np.clip(2.6 * (around - light - .1), 0, .9)


def saturate(rgb, factor):
    grey = rgb.mean(-1, keepdims=True)
    return grey + factor * (rgb - grey)


def watercolor(image, rng):
    "Pale washes that pool at their rims, a wobbling outline, paper shining through; eyes, noses and dark lines in ink."
    rgb, alpha = split(image)
    yy, xx = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    at = [yy + 1.4 * blotches(rng, 5), xx + 1.4 * blotches(rng, 5)]
    ink = ndimage.map_coordinates(dark_details(rgb), at, order=1, mode="nearest")[..., None]
    rgb = np.dstack([ndimage.map_coordinates(c, at, order=1, mode="nearest") for c in np.moveaxis(kuwahara(rgb, 3), -1, 0)])
    alpha = ndimage.map_coordinates(alpha, at, order=1)
    inside = ndimage.gaussian_filter(alpha, 2.5)
    rim = (alpha > .5) * np.clip(1 - (inside - .5) / .35, 0, 1)
    wash = .36 + .12 * blotches(rng, 7) + .05 * blotches(rng, 2) - .30 * rim
    light = rgb.mean(-1)
    wash = wash * np.clip(light / .35, .35, 1)
    rgb = saturate(rgb, 1.25) - .10 * rim[..., None]
    rgb = rgb + (1 - rgb) * np.clip(wash, 0, .65)[..., None]
    rgb = rgb * (1 - ink) + np.float32([.16, .13, .16]) * ink
    return join(rgb, alpha * np.clip(.94 + .05 * blotches(rng, 6), .8, 1))


def paint(canvas, colours, points, angle, rng, length, width, jitter, scale=3):
    "A stroke along `angle` at each of `points` (y, x), in the colour it covers, lighter or darker by `jitter`."
    draw = ImageDraw.Draw(canvas)
    for y, x in points:
        colour = colours[y, x] * (1 + jitter * rng.standard_normal()) + .35 * jitter * rng.standard_normal(3)
        colour = tuple(int(c) for c in (255 * colour).clip(0, 255))
        turn = angle[y, x] + .25 * rng.standard_normal()
        along = length / 2 * rng.uniform(.6, 1.2) * np.array([np.cos(turn), np.sin(turn)])
        line = [tuple(scale * ((x, y) + t * along + .15 * t**2 * along[::-1] * (1, -1))) for t in (-1, -.5, 0, .5, 1)]
        draw.line(line, colour, int(scale * width), joint="curve")
        for end in (line[0], line[-1]):
            draw.circle(end, scale * width / 2, colour)


def oil(image, rng):
    "Broad dabs of a brush, each a little off in colour, smaller ones where there is more detail; eyes, noses and dark lines last."
    rgb, alpha = split(image)
    rgb, solid = saturate(rgb, 1.2), alpha > .5
    angle = .9 + 1.1 * blotches(rng, 18) + 2 * ndimage.gaussian_filter(rgb.mean(-1), 5)
    flat = kuwahara(kuwahara(rgb, 4), 3)
    canvas = join(flat, solid).resize((3 * SIZE,) * 2)
    points = rng.permutation(np.argwhere(ndimage.binary_erosion(solid, iterations=3)))
    paint(canvas, flat, points[:max(12, len(points) // 120)], angle, rng, 38, 17, .2)
    for length, width, jitter, limit in (12, 6, .1, .6), (6, 4, .03, .5):
        painted = np.asarray(canvas.convert("RGB").resize((SIZE,) * 2, Image.BOX), dtype=np.float32) / 255
        wrong = ndimage.gaussian_filter(np.abs(painted - rgb).sum(-1), width / 4)
        points = rng.permutation(np.argwhere((wrong > limit) & ndimage.binary_erosion(solid, iterations=width // 3)))
        paint(canvas, rgb, points[:int(2.5 * len(points) / width / length)], angle, rng, length, width, jitter)
    out = np.asarray(canvas.convert("RGBa").resize((SIZE,) * 2, Image.BOX).convert("RGBA"), dtype=np.float32) / 255
    body = ndimage.gaussian_filter(ndimage.binary_dilation(solid).astype(np.float32), .7)
    dark = dark_details(rgb)[..., None]
    return join((1.1 * out[..., :3] - .08) * (1 - dark) + .08 * dark, out[..., 3] * body)


def pencil(image, rng):
    "Grey lines where colours meet, hatching in the shadows, paper inside."
    rgb, alpha = split(image)
    grey = (rgb @ np.float32([.3, .59, .11])) * alpha + (1 - alpha)
    edges = sum(np.hypot(ndimage.sobel(c, 0), ndimage.sobel(c, 1)) for c in [*np.moveaxis(rgb * alpha[..., None], -1, 0), 1.5 * alpha])
    lines = np.clip(edges / np.quantile(edges[alpha > .5], .93), 0, 1) ** .8
    yy, xx = np.mgrid[:SIZE, :SIZE]
    hatch = .5 + .5 * np.sin((xx + yy) * .9 + .6 * blotches(rng, 5))
    shade = np.clip(.95 - grey, 0, 1) * (.35 + .45 * hatch)
    tone = .97 - .55 * shade - .72 * lines * (1 + .12 * blotches(rng, 1))
    return join(np.repeat(tone[..., None], 3, -1) * np.float32([1, .99, .96]), alpha)


def pixels(image, rng, cells=21):
    "A raster of `cells` x `cells` squares in twelve colours with a hard outline."
    small = image.convert("RGBa").resize((cells, cells), Image.BOX).convert("RGBA")
    alpha = np.asarray(small.getchannel("A")) > 110
    small = ImageEnhance.Contrast(ImageEnhance.Color(small.convert("RGB")).enhance(1.25)).enhance(1.15)
    rgb = np.asarray(small.quantize(12, method=Image.MEDIANCUT).convert("RGB"), dtype=np.float32) / 255
    rim = alpha & ~ndimage.binary_erosion(alpha)
    rgb = np.where(rim[..., None], rgb * .55, rgb)
    big = join(rgb, alpha.astype(np.float32)).resize((6 * cells,) * 2, Image.NEAREST)
    out = Image.new("RGBA", (SIZE, SIZE))
    out.paste(big, (1, 1))
    return out


FILTERS = dict(zip(DERIVED, (watercolor, oil, pencil, pixels)))


# ---------------------------------------------------------------- all of it
def drawings(subject):
    "(style, hand) of all pictures of one subject."
    for style in (*DRAWN, *DERIVED, *NEVER):
        hands = [HAND.get(style, "fluent 3d")]
        if subject in LECTURE:
            if style == "flat illustration": hands += ["twemoji"]
            if style in ("watercolor painting", "oil painting"): hands += ["noto", "twemoji"]
        yield from ((style, hand) for hand in hands if len(hands) == 1 or (subject, hand) not in UNCLEAR)


def one(row, code, modules, out):
    "Write every style of one subject; return its metadata rows, or what is missing."
    subject, images = row["subject"], drawn(modules, code, row["emoji"], row["subject"])
    missing = [s for s in DRAWN if images[HAND[s]] is None]
    if missing: return subject, missing
    slug, rows = subject.replace(" ", "-"), []
    for style, hand in drawings(subject):
        image, main = images[hand], hand in (HAND.get(style), "fluent 3d")
        if image is None: continue
        if style in FILTERS:
            seed = int.from_bytes(f"{slug}/{style}".encode(), "big") % 2**32
            image = FILTERS[style](image, np.random.default_rng(seed))
        file = Path(style.replace(" ", "_")) / f"{slug if main else slug + '-' + hand}.webp"
        exact = style == "pixel art"
        image.save(out / file, lossless=exact, quality=100 if exact else 52, alpha_quality=20, method=6)
        rows.append(dict(file_name=file.as_posix(), subject=subject, synonyms=row["synonyms"], style=style, category=row["category"],
                         split="never" if style in NEVER else row["split"], drawing=hand))
    return subject, rows


LATER = "airplane", "balloon", "rainbow"  # joined the UNet's subjects late: the other networks had seen all of them
BACKGROUNDS = "white", "black", "grey", "red", "orange", "yellow", "green", "blue", "purple", "pink"


def held_out(subjects):
    """Combinations kept out of training, to measure whether the parts are understood: for every training subject but the late ones one
    drawn style on one background, and for every fifth one but LECTURE a derived style on all (its watercolor or oil painting is never seen)."""
    rows = []
    for i, subject in enumerate(sorted(set(subjects) - set(LATER))):
        rows.append((subject, DRAWN[i % 3], BACKGROUNDS[7 * i % 10]))
        if i % 5 == 0 and subject not in LECTURE:
            rows += [(subject, DERIVED[i // 5 % 2], b) for b in BACKGROUNDS]
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, help="folder of an earlier npm install (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        modules = args.packages / "node_modules" if args.packages else install(Path(tmp))
        codes = {plain(n): c for n, c in emoji_names(modules).items()}
        subjects = list(csv.DictReader((HERE / "subjects.csv").open(encoding="utf-8")))
        unknown = [r["emoji"] for r in subjects if plain(r["emoji"]) not in codes]
        if unknown: raise SystemExit(f"no emoji of this name: {unknown}; see the CLDR names in cldr-annotations-full")
        for folder in (args.out / style.replace(" ", "_") for style in (*DRAWN, *DERIVED, *NEVER)):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        with ProcessPoolExecutor(2) as pool:
            done = list(pool.map(partial(one, modules=modules, out=args.out), subjects,
                                 [codes[plain(r["emoji"])] for r in subjects], chunksize=8))
        for subject, missing in done:
            if missing and isinstance(missing[0], str): print(f"left out {subject}: no {missing}")
        rows = [r for _, rs in done for r in rs if isinstance(r, dict)]
        with (args.out / "metadata.csv").open("w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, rows[0], lineterminator="\n")
            writer.writeheader(), writer.writerows(rows)
        with (args.out / "held_out.csv").open("w", newline="", encoding="utf-8") as f:
            writer = csv.writer(f, lineterminator="\n")
            writer.writerow(("subject", "style", "background"))
            writer.writerows(held_out({r["subject"] for r in rows if r["split"] == "train"}))
        licences = args.out / "licences"
        licences.mkdir(exist_ok=True)
        for package in PACKAGES:
            for file in (modules / package).glob("LICENSE*"):
                shutil.copy(file, licences / f"{package.strip('@').replace('/', '-')}.txt")
        print(f"{len(rows)} pictures of {len({r['subject'] for r in rows})} subjects")


if __name__ == "__main__": main()
