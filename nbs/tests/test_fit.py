"Notebook 09: the training loop, its checkpoints, its optimizers, and what it says when things go wrong."
import inspect
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from deepdive import denoising
from deepdive.contrastive import train_text
from deepdive.denoising import (
    Muon, choose_precision, earlier_runs, fit, learning_rate, load_checkpoint, orthogonal, record, save_checkpoint, save_fp16, thinned,
    training_record)


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(2))

    def forward(self, x): return (x @ self.a - x.sum(1)).square().mean()


def line_batch(seed): return (torch.randn(8, 2, generator=torch.Generator().manual_seed(seed)),)


def test_fit_learns_and_goes_on_from_its_checkpoint(tmp_path):
    whole, broken = Line(), Line()
    settings = dict(lr=.05, warmup=5, ema_decay=.9, report_every=100)
    losses = fit(whole, line_batch, 60, **settings)
    assert losses[-1] < .1 * losses[0] and torch.allclose(whole.a, torch.ones(2), atol=.2)
    file = tmp_path / "checkpoint.pt"
    class Stop(Exception): pass
    def stop_at_30(seed, calls=[]):
        calls.append(seed)
        if len(calls) == 31: raise Stop
        return line_batch(seed)
    with pytest.raises(Stop): fit(broken, stop_at_30, 60, checkpoint=file, save_every=10, **settings)
    assert len(load_checkpoint(file)["losses"]) == 30
    again = Line()
    assert fit(again, line_batch, 60, checkpoint=file, **settings) == losses
    assert torch.equal(again.a, whole.a)


# A network that draws random numbers of its own, and a run of it that may break off in the middle.
RUN = """
import os, signal, sys
from pathlib import Path
import torch
from torch import nn
from deepdive.denoising import fit
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Dropout(.3), nn.Conv2d(6, 6, 3), nn.SiLU(), nn.Conv2d(6, 2, 1))
    def forward(self, x): return (self.net(x + torch.randn_like(x)) - x[..., 2:-2, 2:-2]).square().mean()
def run(folder, stop=None, how=None):
    calls = []
    def make_batch(seed):
        calls.append(seed)
        if len(calls) == stop: how()
        return (torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(seed)),)
    net = Net()
    losses = fit(net, make_batch, 12, lr=.01, warmup=5, ema_decay=.9, checkpoint=Path(folder) / "checkpoint.pt", save_every=4,
                 optimizer="muon", report_every=None)
    return losses, net
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9")
def test_killed_with_9_it_ends_where_an_unbroken_run_ends(tmp_path):
    exec(RUN, names := {})
    losses, whole = names["run"](tmp_path / "whole")
    drawn = torch.rand(3)
    kill = RUN + f"run({str(tmp_path / 'broken')!r}, 11, lambda: os.kill(os.getpid(), signal.SIGKILL))"
    done = subprocess.run([sys.executable, "-c", kill], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert len(load_checkpoint(tmp_path / "broken" / "checkpoint.pt")["losses"]) == 8
    again, broken = names["run"](tmp_path / "broken")
    assert again == losses and len(losses) == 12
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), broken.parameters()))
    assert torch.equal(drawn, torch.rand(3))  # what is drawn after the run


# Two processes: unbroken; broken off in both; gone on with; and a command. Each process says whether all weights agree.
TOGETHER = RUN + """
from accelerate.utils import gather_object
from deepdive.contrastive import train_text
from deepdive.denoising import main_process
out = Path(sys.argv[1])
def stop(): raise KeyboardInterrupt
losses, whole = run(out / "whole")
try: run(out / "broken", stop=7, how=stop)
except KeyboardInterrupt: pass
again, net = run(out / "broken")
assert again == losses and len(losses) == 12
assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), net.parameters()))
flat = torch.cat([p.detach().flatten() for p in net.parameters()]).tolist()
both = gather_object([(flat, main_process())])
assert len(both) == 2 and both[0][0] == both[1][0] and [main for _, main in both] == [True, False]
train_text(steps=2, batch_size=4, work=str(out / "work"), out=str(out / "model"))
"""


def test_two_processes_train_go_on_and_write_what_one_would(tmp_path):
    (tmp_path / "together.py").write_text(TOGETHER, encoding="utf-8")
    # `accelerate launch --cpu --num_processes 2` would start one process, without a word (it wants mpirun for more)
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone",
                           str(tmp_path / "together.py"), str(tmp_path / "two")], capture_output=True, text=True, timeout=600,
                          env={**os.environ, "ACCELERATE_USE_CPU": "true"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("step     2 of 2") == 1 and done.stdout.count("retrieval accuracy") == 1  # the main process alone speaks
    train_text(steps=2, batch_size=4, work=str(tmp_path / "one" / "work"), out=str(tmp_path / "one" / "model"))
    def files(folder): return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    ours = {f for f in files(tmp_path / "two") if f.startswith(("work", "model"))}
    assert ours == files(tmp_path / "one") and "model/text_encoder/model.safetensors" in ours
    assert files(tmp_path / "two") - ours == {"whole/checkpoint.pt", "broken/checkpoint.pt"}


def test_no_other_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(denoising, "main_process", lambda: False)
    save_checkpoint(tmp_path / "a.pt", losses=[]), record("b", tmp_path, runs=[])
    save_fp16(nn.Linear(1, 1), tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_no_number_stops_the_run_before_any_weight_is_spoilt(tmp_path):
    def make_batch(seed):
        x, = line_batch(seed)
        return (x * math.nan if seed == 6 else x,)
    line = Line()
    with pytest.raises(FloatingPointError, match=r"stopped at step 7: the loss is nan\. Lower lr.*checkpoint.pt holds an earlier step"):
        fit(line, make_batch, 20, checkpoint=tmp_path / "checkpoint.pt", save_every=2, report_every=None)
    assert line.a.isfinite().all() and len(load_checkpoint(tmp_path / "checkpoint.pt")["losses"]) == 6


def test_a_gradient_that_is_no_number_stops_the_run():
    class Root(Line):
        def forward(self, x): return (self.a * x.abs().sum()).abs().sqrt().sum()  # at 0 the slope is 0 / 0
    root = Root()
    with pytest.raises(FloatingPointError, match="stopped at step 1: the gradient has the length nan"):
        fit(root, line_batch, 20, report_every=None)
    assert torch.equal(root.a, torch.zeros(2))


def test_a_diverging_run_stops():
    with pytest.raises(FloatingPointError, match=r"stopped at step \d: the loss is"): fit(Line(), line_batch, 20, lr=1e5, report_every=None)


def test_speed_is_printed_where_asked_for(capsys):
    fit(Line(), line_batch, 4, report_every=2, show_speed=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(float(line.split()[-2]) > 0 and line.endswith("samples/s") for line in lines)


@pytest.mark.parametrize("device, cuda, cpu, expected", [
    ("cuda", True, False, "bf16"), ("cuda", False, True, "no"), ("cpu", True, False, "no"), ("cpu", False, True, "bf16"), ("mps", True, True, "no")])
def test_bf16_only_where_the_machine_has_it(monkeypatch, device, cuda, cpu, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: cuda)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: cpu)
    assert choose_precision(device) == expected


def test_commands_and_fit_take_the_machines_precision_unless_told(monkeypatch):
    asked = []
    class Spy(denoising.Accelerator):
        def __init__(self, mixed_precision, **more): asked.append(mixed_precision), super().__init__(mixed_precision=mixed_precision, **more)
    monkeypatch.setattr(denoising, "Accelerator", Spy)
    for machine in "bf16", "no":  # one after the other, in one process
        monkeypatch.setattr(denoising, "choose_precision", lambda: machine)
        fit(Line(), line_batch, 1, mixed_precision=None, report_every=None)
    fit(Line(), line_batch, 1, report_every=None)
    assert asked == ["bf16", "no", "no"] and inspect.signature(train_text).parameters["mixed_precision"].default is None


def test_muon_is_torchs_for_matrices_and_takes_kernels_as_matrices():
    torch.manual_seed(0)
    shapes = (5, 4), (6, 4), (9, 3), (7,), (6, 2, 3, 3), (5, 5)
    ours = [nn.Parameter(torch.randn(s)) for s in shapes]
    theirs = [nn.Parameter(p.detach().flatten(1).clone() if p.ndim > 1 else p.detach().clone()) for p in ours]
    inner, rest = [theirs[i] for i in (1, 2, 4)], [theirs[i] for i in (0, 3, 5)]
    settings = dict(lr=.01, weight_decay=.1)
    mine = Muon(ours, **settings)
    others = (torch.optim.Muon(inner, momentum=.95, adjust_lr_fn="match_rms_adamw", **settings),
              torch.optim.AdamW(rest, betas=(.9, .99), **settings))
    for _ in range(3):
        for p, q in zip(ours, theirs):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.view_as(q).clone()
        for optimizer in mine, *others: optimizer.step()
    for i, (p, q) in enumerate(zip(ours, theirs)):  # bfloat16 inside, where the machine has it
        assert torch.allclose(p.view_as(q), q, atol=2e-3 if i in (1, 2, 4) else 1e-6), i


def test_orthogonal_keeps_directions_and_evens_out_lengths():
    for shape in (12, 30), (30, 12):
        m = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        u, s, v = torch.linalg.svd(m, full_matrices=False)
        even = u.T @ orthogonal(m) @ v.T  # in m's own directions
        assert .6 < even.diagonal().min() and even.diagonal().max() < 1.3 and (even - even.diagonal().diag()).abs().max() < .1


def test_muon_takes_weights_of_one_shape_together_as_it_would_one_by_one():
    together = [nn.Parameter(torch.randn(6, 8, generator=torch.Generator().manual_seed(i))) for i in range(4)]
    apart = [nn.Parameter(p.detach().clone()) for p in together]
    optimizer = Muon(together, lr=.1, weight_decay=.01)
    for step in range(2):
        for i, (p, q) in enumerate(zip(together, apart)): p.grad = q.grad = torch.randn(6, 8, generator=torch.Generator().manual_seed(9 * step + i))
        optimizer.step()
        for i in 1, 2:  # the first and the last are AdamW's
            own = optimizer.state[together[i]]["mean"]
            direction = orthogonal(apart[i].grad.lerp(own, .95))
            apart[i].data.mul_(1 - .001).sub_(.1 * .2 * 8**.5 * direction)
            assert torch.allclose(together[i], apart[i], atol=2e-3 if choose_precision() == "bf16" else 1e-6)


def test_checkpoints_hold_no_code(tmp_path):
    torch.save(dict(module=Line()), tmp_path / "bad.pt")
    with pytest.raises(Exception, match="weights_only|Weights only"): load_checkpoint(tmp_path / "bad.pt")
    assert load_checkpoint(tmp_path / "none.pt") is None
    save_checkpoint(tmp_path / "sub" / "good.pt", losses=[1.])
    assert load_checkpoint(tmp_path / "sub" / "good.pt") == dict(losses=[1.])
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["good.pt"]


class Wide(Line):
    def __init__(self):
        super().__init__()
        self.b = nn.Parameter(torch.zeros(3))


@pytest.mark.parametrize("module, settings", [(Wide, {}), (Line, dict(ema_decay=.9))])
def test_another_runs_checkpoint_is_refused(tmp_path, module, settings):
    file = tmp_path / "checkpoint.pt"
    fit(Line(), line_batch, 2, checkpoint=file, report_every=None)
    with pytest.raises(ValueError, match="checkpoint of another network, or of another kind of run: move it away"):
        fit(module(), line_batch, 4, checkpoint=file, report_every=None, **settings)


@pytest.mark.parametrize("settings, error, message", [
    (dict(steps=-1), ValueError, "steps"), (dict(steps=2.5), TypeError, "steps"), (dict(steps="3"), TypeError, "steps"),
    (dict(steps=True), TypeError, "steps"), (dict(steps=None), TypeError, "steps"), (dict(lr=-1.), ValueError, "lr"),
    (dict(lr=math.nan), ValueError, "lr"), (dict(ema_decay=2), ValueError, "ema_decay"), (dict(optimizer="adam"), ValueError, "'adamw' or 'muon'"),
    (dict(mixed_precision="fp8"), ValueError, "'no', 'bf16' or 'fp16', not 'fp8'"), (dict(report_every=-1), ValueError, "report_every"),
    (dict(save_every=0), ValueError, "save_every"),
])
def test_settings_that_cannot_be_are_named(settings, error, message):
    with pytest.raises(error, match=message): fit(Line(), line_batch, **{**dict(steps=1), **settings})


def test_half_precision_weights_are_not_trained():
    with pytest.raises(ValueError, match="must be float32, not torch.float16"): fit(Line().half(), line_batch, 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_fp16_needs_a_gpu():
    with pytest.raises(ValueError, match="fp16' needs a CUDA GPU"): fit(Line(), line_batch, 1, mixed_precision="fp16")


def test_learning_rate_warms_up_and_decays():
    rates = [learning_rate(i, 100, 1., warmup=10) for i in range(100)]
    assert rates[0] < .11 and max(rates) == max(rates[8:13]) and rates[-1] < .03
    assert learning_rate(0, 10, 1., warmup=0) == 1


def test_records_are_kept_and_thinned(tmp_path):
    record("vae", tmp_path / "model", runs=[dict(steps=3)])
    assert training_record("vae", tmp_path / "model")["runs"] == earlier_runs("vae", tmp_path / "model" / "vae") == [dict(steps=3)]
    assert earlier_runs("vae") == [] and thinned([]) == [] and thinned([1, 2, 3]) == [1, 2, 3]
    assert thinned(range(1000), 4) == [124.5, 374.5, 624.5, 874.5]
    with pytest.raises(FileNotFoundError, match="no record of the training: .*unet.json is missing"):
        earlier_runs("unet", tmp_path / "model" / "unet")


def test_fp16_on_disk_float32_when_loaded(tmp_path, models):
    save_fp16(models.text_encoder, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"
    again = type(models.text_encoder).from_pretrained(tmp_path)
    assert again.dtype == torch.float32 and models.text_encoder.dtype == torch.float32
