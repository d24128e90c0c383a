"""Run notebooks top to bottom, each in a fresh kernel, and write them back with their outputs.

    python nbs/execute.py            # all of them, in order
    python nbs/execute.py 00 11      # some, by the beginning of their names

Running it twice on one machine leaves the same bytes. It ends with an error as soon as a cell fails."""
import base64
import io
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

NBS = Path(__file__).resolve().parent


def notebooks(names=()):
    "The numbered notebooks, or those whose names begin as given. Raises ValueError for a name that fits none."
    found = sorted(NBS.glob("[0-9][0-9]_*.ipynb"))
    if unknown := [n for n in names if not any(f.name.startswith(n) for f in found)]:
        raise ValueError(f"no notebook begins with {unknown}; there are: {[f.stem for f in found]}")
    return [f for f in found if not names or f.name.startswith(tuple(names))]


def smaller(data, kind):
    "A picture as notebooks keep it, base64 text, in fewer bytes: PNG (plots) in 128 colours, JPEG of quality 75."
    raw, out = base64.b64decode(data), io.BytesIO()
    image = Image.open(io.BytesIO(raw))
    if kind == "png": image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(out, kind, optimize=True)
    else: image.save(out, kind, quality=75, optimize=True, progressive=True)
    return base64.b64encode(min(raw, out.getvalue(), key=len)).decode()


def shrink(nb):
    "Make the pictures among the outputs of `nb` smaller, in place."
    for data in (o["data"] for cell in nb.cells for o in cell.get("outputs", []) if "data" in o):
        for kind in ("png", "jpeg"):
            if f"image/{kind}" in data: data[f"image/{kind}"] = smaller(data[f"image/{kind}"], kind)


def execute(file, env=None):
    "The executed notebook of `file` (nothing is written). Its kernel works in nbs/, as JupyterLab's does; `env` adds to its environment."
    nb = nbformat.read(file, as_version=4)
    kernel_env = {**os.environ, "PYTHONHASHSEED": "0", **(env or {})}
    client = NotebookClient(nb, timeout=900, kernel_name="python3", record_timing=False, coalesce_streams=True,  # else chance cuts prints
                            resources={"metadata": {"path": str(NBS)}})
    client.create_kernel_manager()
    with tempfile.TemporaryDirectory() as folder:
        if os.name == "posix":  # sockets in files: runs side by side cannot take each other's ports
            client.km.transport, client.km.ip = "ipc", f"{folder}/kernel"
        client.execute(env=kernel_env)
    shrink(nb)
    nb.metadata = dict(kernelspec=dict(display_name="Python 3", language="python", name="python3"), language_info=dict(name="python"))
    return nb


if __name__ == "__main__":
    for file in notebooks(tuple(sys.argv[1:])):
        start = time.time()
        nbformat.write(execute(file), file)
        print(f"{file.name:32} {time.time() - start:5.0f} s  {file.stat().st_size / 1000:6.0f} kB", flush=True)
