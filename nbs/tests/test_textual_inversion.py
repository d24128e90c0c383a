"Notebook 04: files of embeddings, new tokens, and their errors."
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from deepdive.sampling_loop import data_folder, encode_prompt, load_models
from deepdive.textual_inversion import LEARNED, add_token, load_embedding, read_embeddings, save_embedding

PEER = Path(__file__).resolve().parents[3] / "shared" / "peer" / "learned_embeds.bin"


@pytest.fixture
def fresh():
    "A pocket-sd of its own: adding a token changes it."
    return load_models(data_folder() / "pocket-sd", device="cpu")


@pytest.fixture(scope="module")
def pipe():
    pipe = StableDiffusionPipeline.from_pretrained(data_folder() / "pocket-sd", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def vectors(n=1, width=128): return torch.randn(n, width, generator=torch.Generator().manual_seed(n)) * .2


def web_ui(v): return dict(string_to_token={"*": 265}, string_to_param=v, name="web", step=10, sd_checkpoint=None)


@pytest.mark.parametrize("n", [1, 3])
def test_every_format_gives_the_same_vectors(tmp_path, n):
    v = vectors(n)
    save_embedding(tmp_path / "a.safetensors", "<t>", v)
    save_embedding(tmp_path / "b.bin", "<t>", v)
    save_file({"emb_params": v}, tmp_path / "c.safetensors")
    torch.save(web_ui({"*": v}), tmp_path / "d.pt")
    torch.save(web_ui(torch.nn.ParameterDict({"*": torch.nn.Parameter(v)})), tmp_path / "e.pt")
    torch.save({"<t>": v[0]} if n == 1 else {"<t>": v.half().double()}, tmp_path / "f.bin")
    for name, token in (("a.safetensors", "<t>"), ("b.bin", "<t>"), ("c.safetensors", "c"), ("d.pt", "web"), ("e.pt", "web"), ("f.bin", "<t>")):
        found = read_embeddings(tmp_path / name)
        assert list(found) == [token] and found[token].shape == (n, 128) and found[token].dtype == torch.float32, name
        assert torch.allclose(load_embedding(tmp_path / name), v, atol=1e-3 if name == "f.bin" else 0)


@pytest.mark.skipif(not PEER.exists(), reason="shared/peer/learned_embeds.bin is not here")
def test_an_embedding_that_others_made(fresh):
    found = read_embeddings(PEER)
    assert list(found) == ["<birb-style>"] and found["<birb-style>"].shape == (1, 768)
    assert load_embedding(PEER).norm().item() == pytest.approx(3.0136, abs=1e-4)
    with pytest.raises(ValueError, match=r"\(1, 768\) does not fit this model, whose tokens are 128 wide"):
        add_token(fresh, "<birb-style>", load_embedding(PEER))


def old_parameter_dict(v):
    "A ParameterDict as torch 1.11 saved it: the fields of a Module of that time, without `_keys`."
    old = torch.nn.ParameterDict.__new__(torch.nn.ParameterDict)
    hooks = ("_backward_hooks", "_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks")
    old.__dict__.update(training=True, _parameters=OrderedDict({"*": torch.nn.Parameter(v)}), _buffers=OrderedDict(), _modules=OrderedDict(),
                        _non_persistent_buffers_set=set(), _is_full_backward_hook=None, **{h: OrderedDict() for h in hooks})
    return old


@pytest.mark.parametrize("n", [1, 3])
def test_a_web_uis_file_from_before_torch_1_12(tmp_path, n):
    torch.save(web_ui(old_parameter_dict(vectors(n))), tmp_path / "old.pt")
    assert torch.equal(load_embedding(tmp_path / "old.pt", "web"), vectors(n))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_numpys_arrays_in_a_bin(tmp_path, dtype):
    array = vectors(2).numpy().astype(dtype)
    torch.save({"<t>": array}, tmp_path / "n.bin")
    assert np.array_equal(load_embedding(tmp_path / "n.bin").numpy(), array.astype("float32"))
    data = (tmp_path / "n.bin").read_bytes()
    if b"numpy._core" in data: torch.save({"<t>": array}, tmp_path / "o.bin", pickle_module=Numpy1)
    if b"numpy._core" in data: assert torch.equal(load_embedding(tmp_path / "o.bin"), load_embedding(tmp_path / "n.bin"))


class Numpy1:
    "The module pickle, naming numpy's as version 1 did."
    class Pickler(pickle._Pickler):
        def save_global(self, obj, name=None):
            if getattr(obj, "__module__", "") != "numpy._core.multiarray": return super().save_global(obj, name)
            self.write(pickle.GLOBAL + f"numpy.core.multiarray\n{obj.__name__}\n".encode())
            self.memoize(obj)
        dispatch = {**pickle._Pickler.dispatch, type(save_global): save_global}
    dump, dumps, loads, load, Unpickler = pickle.dump, pickle.dumps, pickle.loads, pickle.load, pickle.Unpickler


class Trap:
    def __reduce__(self): return print, ("code in a file was run",)


@pytest.mark.parametrize("name, write, message", [
    ("code.bin", lambda f: torch.save({"<t>": Trap()}, f), "'code.bin' is not loaded: it asks to run code"),
    ("code.pt", lambda f: torch.save(web_ui({"*": Trap()}), f), "it asks to run code"),
    ("text.bin", lambda f: f.write_text("hello"), "'text.bin' is broken, or of another format: [^W]"),
    ("empty.bin", lambda f: f.write_bytes(b""), "'empty.bin'"),
    ("cut.safetensors", lambda f: f.write_bytes(b"\x10\0\0\0\0\0\0\0{}"), "'cut.safetensors' is broken, or of another format"),
    ("list.bin", lambda f: torch.save([vectors()], f), "'list.bin' holds no embedding"),
    ("nothing.bin", lambda f: torch.save({}, f), "'nothing.bin' holds no embedding"),
    ("image.bin", lambda f: torch.save({"<t>": torch.zeros(1, 3, 8, 8)}, f), "'image.bin' holds no embedding"),
    ("numbers.pt", lambda f: torch.save(dict(string_to_param={"*": 3}), f), "'numbers.pt' holds no embedding"),
    ("none.pt", lambda f: torch.save(web_ui(None), f), "'none.pt' looks like a web UI's file, but its string_to_param holds NoneType"),
    ("list.pt", lambda f: torch.save(web_ui([vectors()]), f), "its string_to_param holds list where a dict"),
    ("tensor.pt", lambda f: torch.save(web_ui(vectors()), f), "its string_to_param holds Tensor where a dict"),
    ("bare.pt", lambda f: torch.save(web_ui({}), f), "its string_to_param holds dict"),
    ("nan.bin", lambda f: torch.save({"<t>": vectors() * float("nan")}, f), "the numbers of '<t>' in 'nan.bin' hold NaN"),
    ("inf.safetensors", lambda f: save_file({"<t>": vectors() / 0}, f), "hold NaN or infinity"),
    ("zero.bin", lambda f: torch.save({"<t>": torch.stack([vectors()[0], torch.zeros(128)])}, f), "'<t>' in 'zero.bin' has only zeros in row 1"),
    ("ids.bin", lambda f: torch.save({"<t>": torch.arange(128)}, f), "'<t>' in 'ids.bin' must be a tensor of floating-point numbers"),
    ("sdxl.safetensors", lambda f: save_file({"clip_l": vectors(2, 768), "clip_g": vectors(2, 1280)}, f),
     "'sdxl.safetensors' is for SDXL: clip_l and clip_g .* version for SD 1.x"),
    ("objects.bin", lambda f: torch.save({"<t>": np.array([Trap()], dtype=object)}, f), "'objects.bin'"),
    ("texts.bin", lambda f: torch.save({"<t>": np.array(["a"])}, f), "'texts.bin'"),
])
def test_bad_files_are_named(tmp_path, capsys, name, write, message):
    write(tmp_path / name)
    with pytest.raises((ValueError, TypeError), match=message): load_embedding(tmp_path / name)
    assert "code in a file was run" not in capsys.readouterr().out


def test_which_token_and_which_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no embedding file .*none.bin"): load_embedding(tmp_path / "none.bin")
    torch.save({"<a>": vectors()[0], "<b>": vectors(2)}, tmp_path / "two.bin")
    with pytest.raises(ValueError, match="'two.bin' holds '<a>', '<b>': say which"): load_embedding(tmp_path / "two.bin")
    with pytest.raises(KeyError, match="no .*<c>.* in .*two.bin.*; it holds"): load_embedding(tmp_path / "two.bin", "<c>")
    assert torch.equal(load_embedding(tmp_path / "two.bin", "<b>"), vectors(2))
    with pytest.raises(ValueError, match="saved as .safetensors or .bin, not as '.pt'"): save_embedding(tmp_path / "x.pt", "<t>", vectors())


def test_tokens_that_cannot_be_added(fresh):
    assert add_token(fresh, "<new>", vectors()[0]) == "<new>"
    for taken in ("puppy", "<|endoftext|>"):
        with pytest.raises(ValueError, match="is taken; choose another"): add_token(fresh, taken, vectors())
    for bad in ("two words", "", " x"):
        with pytest.raises(ValueError, match="a token is one word without spaces"): add_token(fresh, bad, vectors())
    for width in (127, 768):
        with pytest.raises(ValueError, match=f"{width}\\) does not fit this model, whose tokens are 128 wide"):
            add_token(fresh, "<w>", vectors(1, width))
    with pytest.raises(ValueError, match=r"\(width,\) or \(n, width\), not \(1, 2, 128\)"): add_token(fresh, "<w>", torch.ones(1, 2, 128))
    add_token(fresh, "<many>", vectors(3))
    with pytest.raises(ValueError, match="'<many>_1' is taken, by a vector of '<many>'"): add_token(fresh, "<many>_1", vectors())
    for n in (1, 2, 4):
        with pytest.raises(ValueError, match=f"'<many>' was added with another number of vectors than {n}"): add_token(fresh, "<many>", vectors(n))


@pytest.mark.parametrize("n", [1, 3])
def test_a_token_may_be_taught_again(fresh, n):
    first = add_token(fresh, "<again>", vectors(n))
    before, words = encode_prompt(fresh, ["a castle", f"a {first}"]), len(fresh.tokenizer)
    assert add_token(fresh, "<again>", vectors(n)) == first and len(fresh.tokenizer) == words
    assert torch.equal(encode_prompt(fresh, ["a castle", f"a {first}"]), before)
    assert add_token(fresh, "<again>", -vectors(n)) == first and len(fresh.tokenizer) == words
    after = encode_prompt(fresh, ["a castle", f"a {first}"])
    assert torch.equal(after[0], before[0]) and not torch.equal(after[1], before[1])
    assert not any(p.requires_grad for p in fresh.text_encoder.parameters())


def test_a_refused_token_leaves_the_model_as_it_was(fresh):
    rows, words = len(fresh.text_encoder.get_input_embeddings().weight), len(fresh.tokenizer)
    with pytest.raises(ValueError): add_token(fresh, "puppy", vectors(2))
    assert (rows, words) == (len(fresh.text_encoder.get_input_embeddings().weight), len(fresh.tokenizer))


@pytest.mark.parametrize("n, ending", [(1, ".safetensors"), (3, ".bin")])
def test_the_library_reads_what_we_save_and_means_the_same(tmp_path, fresh, pipe, n, ending):
    token, file = f"<lib-{n}>", tmp_path / f"x{ending}"
    save_embedding(file, token, vectors(n))
    pipe.load_textual_inversion(str(file))
    word = add_token(fresh, token, load_embedding(file))
    assert len(word.split()) == n
    theirs = pipe.encode_prompt(f"a fox in the style of {token}", "cpu", 1, False)[0]
    assert torch.allclose(theirs, encode_prompt(fresh, f"a fox in the style of {word}"), atol=1e-6)


def test_several_vectors_are_a_phrase(fresh):
    table = fresh.text_encoder.get_input_embeddings().weight.detach()
    before = encode_prompt(fresh, ["a castle", "an oil painting of a fox"])
    word = add_token(fresh, "<oil>", table[fresh.tokenizer("oil painting").input_ids[1:-1]])
    assert torch.equal(encode_prompt(fresh, ["a castle", f"an {word} of a fox"]), before)


def test_the_shipped_vector_fits_and_matters(fresh):
    style = load_embedding(LEARNED["pocket-sd"], "<wash>")
    assert style.shape[1] == 128 and .05 < style.norm(dim=1).mean() < 20
    word = add_token(fresh, "<wash>", style)
    a, b = encode_prompt(fresh, ["a fox", f"a fox, {word}"])
    assert (a - b).abs().max() > .1
