"""Writes CLIP's tokenizer into data/pocket-sd/tokenizer, from the byte-pair file that the PyPI package open-clip-torch carries.

    pip download --no-deps open-clip-torch==3.3.0 -d wheels
    python data/build_tokenizer.py wheels/open_clip_torch-3.3.0-py3-none-any.whl
"""
import gzip, json, sys, zipfile
from pathlib import Path

from transformers import CLIPTokenizer

BPE = "open_clip/bpe_simple_vocab_16e6.txt.gz"
FOLDER = Path(__file__).parent / "pocket-sd" / "tokenizer"


def byte_alphabet():
    "CLIP's printable stand-ins for the 256 bytes, in the order of its vocabulary (as in GPT-2)."
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(rest))]


def main(wheel):
    with zipfile.ZipFile(wheel) as z:
        lines = gzip.decompress(z.read(BPE)).decode("utf-8").split("\n")
        licence = next(n for n in z.namelist() if n.endswith("/LICENSE"))
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / "LICENSE").write_bytes(z.read(licence))
    merges = lines[1:49152 - 256 - 2 + 1]
    letters = byte_alphabet()
    words = [*letters, *(c + "</w>" for c in letters), *("".join(m.split()) for m in merges), "<|startoftext|>", "<|endoftext|>"]
    (FOLDER / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    (FOLDER / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    config = dict(tokenizer_class="CLIPTokenizer", model_max_length=77, do_lower_case=True, bos_token="<|startoftext|>",
                  eos_token="<|endoftext|>", unk_token="<|endoftext|>", pad_token="<|endoftext|>")
    (FOLDER / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    ids = CLIPTokenizer.from_pretrained(FOLDER)("a picture of a puppy").input_ids
    assert ids == [49406, 320, 1674, 539, 320, 6829, 49407], ids
    print(len(words), "tokens; 'a picture of a puppy' ->", ids)


if __name__ == "__main__": main(sys.argv[1])
