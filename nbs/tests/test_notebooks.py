"""Every notebook runs top to bottom in a kernel of its own; its exercises say `not yet` to the stub and `right` to the folded answer,
which can be run twice, and answer typical mistakes with what is wrong."""
import re

import nbformat
import pytest

from execute import execute, notebooks


MISTAKES = {  # notebook: [(a wrong solution, a part of the reply)]
    "09_denoising": [
        ("def slope(x, y, lr=.5): return (2 * x * y).mean().item() * lr\n", "one step only"),
        ("def flow_velocity(x, noise, t): return noise - x\n", "still has noise in it"),
        ("def flow_velocity(x, noise, t): return images[:5] - noise\n", "leads *to* noise"),
        ("def flow_velocity(x, noise, t): return mix(noise, -images[:5], t)\n", "the other velocity")],
    "10_pictures": [
        ("def steady(judge, pictures, subject, style): return expected - 1\n", "white itself"),
        ("def surprise(logits, answers): return -sum(l.log_softmax(0)[a] for l, a in zip(logits, answers))\n", "the sum over the pictures"),
        ("def surprise(logits, answers): return -logits[range(len(logits)), answers].mean()\n", "minus the logit"),
        ("def surprise(logits, answers): return -logits.log_softmax(0)[range(len(logits)), answers].mean()\n", "over the pictures, not"),
        ("def surprise(logits, answers): return -logits.softmax(1)[range(len(logits)), answers].mean()\n", "without its logarithm")],
    "11_contrastive": [
        ("def which(image, subjects): return int(similarity_table(text_encoder, image_encoder, tokenizer, subjects, [image])[:, 0].argmin())\n",
         "the worst of the captions"),
        ("def contrast(table, scale): return F.cross_entropy(scale * table, torch.arange(8))\n", "belongs to the caption"),
        ("def contrast(table, scale): return F.cross_entropy(scale * table.T, torch.arange(8))\n", "belongs to the picture"),
        ("def contrast(table, scale): return -sum((scale * table).log_softmax(d).diag().mean() for d in (0, 1))\n", "both directions added"),
        ("def contrast(table, scale): return -sum(table.log_softmax(d).diag().mean() for d in (0, 1)) / 2\n", "without the scale")],
    "12_autoencoder_training": [
        ("def colour_distance(): return far / shipped.config.scaling_factor\n", "the loop sees latents times"),
        ("def divergence(mean, logvar): return (mean**2 + logvar.exp() - 1 - logvar).mean()\n", "without the half"),
        ("def divergence(mean, logvar): return .5 * (mean**2 + logvar.exp() - 1 - logvar).sum()\n", "a sum, not a mean"),
        ("def divergence(mean, logvar): return .5 * (mean**2 + logvar.exp()**2 - 1 - logvar).mean()\n", "not its square")],
    "13_latent_diffusion": [
        ("def balance(): return int((alphas_cumprod.sqrt() < .5).nonzero()[0])\n", "no root"),
        ("def balance(): return int((alphas_cumprod > .5).nonzero()[-1])\n", "the last t above"),
        ("def loss_weights(a, floor=.05, cap=5.): return (a / (1 - a)).clamp(floor, cap)\n", "divided by the SNR"),
        ("def loss_weights(a, floor=.05, cap=5.): return (a / (1 - a)).clamp(max=cap) / (a / (1 - a))\n", "without the floor"),
        ("def loss_weights(a, floor=.05, cap=5.): return a.clamp(floor, cap) / a\n", "is not the SNR")],
    "14_evaluation": [
        ("def doubt(share, n): return share * (1 - share) / n\n", "take its root"),
        ("def doubt(share, n): return (share * (1 - share)) ** .5\n", "for one picture"),
        ("def doubt(share, n): return (share * (1 - share)) ** .5 / n\n", "divide the variance"),
        ("def luck(a, b, n=200): return float((np.subtract(*np.random.default_rng(2).binomial(n, .845, (2, 100_000))) >= 6).mean())\n",
         "either direction"),
        ("def luck(a, b, n=200): return float((abs(np.subtract(*np.random.default_rng(2).binomial(n, .845, (2, 100_000)))) > 6).mean())\n",
         "or more")],
}


def with_answers(file, folder):
    """Write the notebook with each folded answer run and checked, twice, right after its stub, and then what is known to go wrong.

    Returns the new file, and what all checks should say, in order."""
    nb = nbformat.read(file, as_version=4)
    expected, mistakes = [], MISTAKES.get(file.stem, [])
    answers = [a for c in nb.cells if c.cell_type == "markdown" for a in re.findall(r"<details>.*?```python\n(.*?)```", c.source, flags=re.S)]
    for answer in answers:
        name = re.match(r"def (\w+)\(", answer)[1]
        at = next(i for i, c in enumerate(nb.cells) if c.cell_type == "code" and "Your lines here" in c.source and f"def {name}(" in c.source)
        check = re.search(r"^check_answer\(.*", nb.cells[at].source, flags=re.M | re.S)[0]
        wrong = [(code, reply) for code, reply in mistakes if code.startswith(f"def {name}(")]
        expected += ["not yet", "right", "right", *(reply for _, reply in wrong)]
        nb.cells[at + 1:at + 1] = [nbformat.v4.new_code_cell(code + check) for code in (answer, answer, *(code for code, _ in wrong))]
    assert len(expected) == 3 * len(answers) + len(mistakes)  # each mistake is one of an exercise of this notebook
    out = folder / file.name
    nbformat.write(nb, out)
    return out, expected


@pytest.mark.parametrize("file", notebooks(), ids=lambda f: f.stem)
def test_notebook(file, tmp_path):
    copy, expected = with_answers(file, tmp_path)
    nb = execute(copy)
    outputs = [o for c in nb.cells if c.cell_type == "code" for o in c.outputs]
    assert not [o for o in outputs if o.get("name") == "stderr"]
    said = [o.text for c in nb.cells if c.cell_type == "code" and re.search(r"^check_answer\(", c.source, flags=re.M)
            for o in c.outputs if o.output_type == "stream"]
    assert expected and len(said) == len(expected)
    assert [pair for pair in zip(said, expected) if pair[1] not in pair[0] or ("right" == pair[1]) != (pair[0] == "right\n")] == []
