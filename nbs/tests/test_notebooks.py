"""Every notebook runs top to bottom in a kernel of its own; its exercises say `not yet` to the stub and `right` to the folded answer,
which can be run twice, and answer typical mistakes with what is wrong."""
import re

import nbformat
import pytest

from execute import execute, notebooks


LOOP = """def mended(prompt):
    scheduler, (uncond, cond) = prepared(models, None, 10), encode_prompt(models, ["", prompt]).split(1)
    latents = initial_latents(models) * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            scheduler.scale_model_input(latents, t)
            u, c = (models.unet(latents, t, encoder_hidden_states=e).sample for e in (uncond, cond))
            latents = scheduler.step(u + 7.5 * (c - u), t, latents).prev_sample
    return latents_to_pil(models.vae, latents)[0]
"""
BY_HAND = """def guided_by_hand(latents, t, scale):
    both = torch.cat([uncond_embeddings, text_embeddings])
    scaled = scheduler.scale_model_input(torch.cat([latents] * 2), t)
    with torch.no_grad(): uncond, cond = unet(scaled, t, encoder_hidden_states=both).sample.chunk(2)
    return uncond + scale * (cond - uncond)
"""
MISTAKES = {  # notebook: [(a wrong solution, a part of the reply)]
    "00_sampling_loop": [
        ("def generate(prompt, negative_prompt, seed=32): return library(prompt)\n", "changes nothing yet"),
        ("def generate(prompt, negative_prompt, seed=32): return library(negative_prompt, prompt)\n", "exchanged"),
        (LOOP, "now nothing is scaled")],
    "01_autoencoder": [
        ("def blanked(latents, n): return torch.cat([0 * latents[:, :, :n], latents[:, :, n:]], 2)\n", "upper rows"),
        ("def blanked(latents, n): return torch.cat([latents[..., :-n], 0 * latents[..., -n:]], -1)\n", "at the right"),
        ("def factor_for(vae, images): return 1 / pil_to_latents(vae, images).std().item()\n", "scaled already"),
        ("def factor_for(vae, images): return pil_to_latents(vae, images).std().item() / vae.config.scaling_factor\n", "the deviation itself"),
        ("def factor_for(vae, images): return vae.config.scaling_factor**2 / pil_to_latents(vae, images).var().item()\n", "over the variance")],
    "02_image_to_image": [
        ("def strength_for(start_step, n): return 1 - start_step / n\ngot = [strength_for(i, 50) for i in range(50)]\n", "see the hint"),
        ("def mixture(latents, noise, t): return a * latents + (1 - a) * noise\n", "without the roots"),
        ("def mixture(latents, noise, t): return latents + ((1 - a) / a)**.5 * noise\n", "its variance grows"),
        ("def mixture(latents, noise, t): return (1 - a)**.5 * latents + a**.5 * noise\n", "are exchanged")],
    "03_text_encoder": [
        ("def blend(prompts, weights): return encode_prompt(models, prompts).mean(0, keepdim=True)\n", "the weights are not used"),
        ("def blend(prompts, weights): return text_embeddings_from(models, (mix * looked_up).sum(0, keepdim=True))\n", "before the encoder"),
        ("def words_near(vectors): return torch.cdist(vectors, table).argmin(1).tolist()\n", "the nearest in distance"),
        ("def words_near(vectors): return F.cosine_similarity(vectors[:, None], table[None], dim=-1).argmin(1).tolist()\n", "the largest angle")],
    "04_textual_inversion": [
        ("def between(models, token, a, b): return add_token(models, token, table[[models.tokenizer(w).input_ids[0] for w in (a, b)]].mean(0))\n"
         "got = between(models, '<skuppy>', 'skunk', 'puppy')\n", "the start token"),
        ("def between(models, token, a, b): return add_token(models, token, table[[models.tokenizer(w).input_ids[1] for w in (a, b)]].sum(0))\n"
         "got = between(models, '<skuppy>', 'skunk', 'puppy')\n", "half-way is half"),
        ("def as_a_word(vector, table): return vector / vector.norm()\n", "of length one"),
        ("def as_a_word(vector, table): return vector / vector.norm() * table.mean(0).norm()\n", "as long as the mean row"),
        ("def as_a_word(vector, table): return vector / vector.norm() * table.norm()\n", "all rows in one")],
    "05_unet": [
        ("def fading(step, steps, start): return start + (1 - start) * step / steps\n", "only after the last step"),
        ("def fading(step, steps, start): return start - start * step / (steps - 1)\n", "ends at 0"),
        (BY_HAND.replace("uncond, cond =", "cond, uncond ="), "which half comes first"),
        (BY_HAND.replace("uncond + scale * (cond - uncond)", "(uncond + scale * cond) / (1 + scale)"), "the two averaged"),
        (BY_HAND.replace("return uncond", "return cond"), "one length too far"),
        (BY_HAND.replace("scheduler.scale_model_input(torch.cat([latents] * 2), t)", "torch.cat([latents] * 2)"), "unscaled latents")],
    "06_schedulers": [
        ("def expected_end(x, sigma, noise): return x - noise\ngot = expected_end(x, sigma, known)\n", "sigma times as much"),
        ("def expected_end(x, sigma, noise): return x + sigma * noise\ngot = expected_end(x, sigma, known)\n", "it is to go"),
        ("def euler_step(x, x0, sigma, next_sigma): return x0\n", "the end itself"),
        ("def euler_step(x, x0, sigma, next_sigma): return torch.lerp(x, x0, next_sigma / sigma)\n", "exchanged"),
        ("def euler_step(x, x0, sigma, next_sigma): return x + (x0 - x) * (sigma - next_sigma)\n", "divide by sigma")],
    "07_guidance": [
        ("def contrast(images): return images.std()\ngot = contrast(x)\n", "goes *down*"),
        ("def contrast(images): return -images.var()\ngot = contrast(x)\n", "take its root"),
        ("def contrast(images): return -images.mean((2, 3)).std()\ngot = contrast(x)\n", "own differences are gone"),
        ("def sky(images): return (images[:, 2] - .9).abs().mean()\n", "of the whole picture"),
        ("def sky(images): return (images[:, 2, :, :2] - .9).abs().mean()\n", "rows come before"),
        ("def sky(images): return (images[:, 2, 2:] - .9).abs().mean()\n", "row 0 is on top"),
        ("def sky(images): return (images[:, 2, :2] - .9).abs().sum()\n", "picture's size")],
    "08_playground": [
        ("def stop_after(k):\n    def callback(i, *_):\n        if i >= k: raise Stopped\n    return callback\n", "one step late"),
        ("def stop_after(k):\n    def callback(i, *_):\n        if i + 2 >= k: raise Stopped\n    return callback\n", "one step early"),
        ("def stop_after(k): return lambda *_: None\n", "it never stops"),
        ("def white_frame(images): return (images - 1).abs().mean()\n", "the whole picture"),
        ("def white_frame(images): return (images - 1).abs()[..., 8:-8, 8:-8].mean()\n", "all but the frame"),
        ("def white_frame(images):\n    inner = images[..., 8:-8, 8:-8]\n"
         "    return (images.sum() - inner.sum()) / (images.numel() - inner.numel())\n", "the distance to 0"),
        ("def white_frame(images):\n    far = (images - 1).abs()\n"
         "    return sum(s.mean() for s in (far[..., :8, :], far[..., -8:, :], far[..., :8], far[..., -8:])) / 4\n", "the corners count twice")],
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
        ("def yes_or_no(table, scale, bias): return -F.logsigmoid((scale * table + bias).diag()).mean()\n", "only the diagonal"),
        ("def yes_or_no(table, scale, bias): return -F.logsigmoid(scale * table + bias).mean()\n", "every cell was asked for a yes"),
        ("def yes_or_no(table, scale, bias): return -F.logsigmoid((2 * torch.eye(8) - 1) * scale * table).mean()\n", "the bias is missing"),
        ("def yes_or_no(table, scale, bias): return -F.logsigmoid((2 * torch.eye(8) - 1) * scale * (table + bias)).mean()\n", "scaled, too"),
        ("def yes_or_no(table, scale, bias): return -F.logsigmoid((2 * torch.eye(8) - 1) * (scale * table + bias)).sum() / 8\n",
         "take the mean over")],
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
    "15_finetuning": [
        ("def lora_numbers(unet, rank): return sum(m.weight.numel() for m in layers)\n", "stand still"),
        ("def lora_numbers(unet, rank): return sum(rank * m.in_features for m in layers)\n", "count both"),
        ("def lora_numbers(unet, rank): return sum(rank * rank * (m.in_features + m.out_features) for m in layers)\n", "once in each matrix"),
        ("def blend(before, after, share): return copy.deepcopy(before if share < .5 else after)\n", "the first grade"),
        ("def blend(before, after, share):\n    new, goal = copy.deepcopy(after), before.state_dict()\n"
         "    new.load_state_dict({k: torch.lerp(v, goal[k], share) for k, v in after.state_dict().items()})\n    return new\n", "share 0 is to be"),
        ("def blend(before, after, share):\n    goal = after.state_dict()\n"
         "    before.load_state_dict({k: torch.lerp(v, goal[k], share) for k, v in before.state_dict().items()})\n    return before\n",
         "`before` itself was changed")],
    "16_speed": [
        ("def pays_after(setup, plain, compiled): return None if compiled >= plain else int(setup // (plain - compiled))\n", "rounded down"),
        ("def pays_after(setup, plain, compiled): return int(-(-setup // (plain - compiled)))\n", "it never pays"),
        ("def pays_after(setup, plain, compiled): return int(-(-setup // compiled))\n", "the seconds saved count"),
        ("def next_point(end, fresh, abar): return abar * end + (1 - abar) * fresh\n", "take their roots"),
        ("def next_point(end, fresh, abar): return (1 - abar)**.5 * end + abar**.5 * fresh\n", "exchanged"),
        ("def next_point(end, fresh, abar): return end + ((1 - abar) / abar)**.5 * fresh\n", "its variance grows")],
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
