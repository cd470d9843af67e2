"""The optimizers against their references, their options, and learning rates of parts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ldm.errors import ArgumentError, CheckpointError
from ldm.training import optimizer as building
from ldm.training.adafactor import Adafactor
from ldm.training.checkpoint import checkpoints
from ldm.training.config import TrainConfig
from ldm.training.loop import Trainer
from ldm.training.optimizer import build_optimizer
from tests.helpers.toy_training import Toy, toy_config, toy_run


def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(24, 40), (16, 8, 3, 3), (7,), ()]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def assert_same_path(ours: Any, theirs: Any, a: list, b: list, bound: float) -> None:
    """Move both twenty steps by the same gradients."""
    generator = torch.Generator().manual_seed(1)
    begun = [weight.detach().clone() for weight in a]
    for _ in range(20):
        for one, other in zip(a, b, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        ours.step()
        theirs.step()
    for one, other, was in zip(a, b, begun, strict=True):
        assert (one - other).abs().max() < bound < (one - was).abs().max()


SCRIPT = """
import sys, torch
from ldm.training.config import TrainConfig
from ldm.training.loop import train_steps
from ldm.training.optimizer import build_optimizer
layer = torch.nn.Linear(2, 2)
optimizer = build_optimizer(layer, TrainConfig("", "", "", 1, 1, 0.1))
layer(torch.ones(1, 2)).sum().backward()
optimizer.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
print(*sorted({"torch._dynamo", "sympy", "torch.distributed.fsdp"} & sys.modules.keys()))
"""


def test_adamw_does_not_import_what_compiles_and_shards() -> None:
    """These would be 90 MB of each run."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("\n", 0), done.stderr


def test_adamw_is_pytorchs() -> None:
    config = TrainConfig("", "", "", 1, 1, 0.1, betas=(0.8, 0.9), weight_decay=0.3)
    ours, theirs = (nn.ParameterList(weights()) for _ in range(2))
    plain = torch.optim.AdamW(theirs, lr=0.1, betas=(0.8, 0.9), weight_decay=0.3, fused=True)
    assert_same_path(build_optimizer(ours, config), plain, list(ours), list(theirs), 1e-9)


@pytest.mark.parity
@pytest.mark.parametrize(
    "options",
    [
        {"scale_parameter": False, "relative_step": False},  # as sd-scripts' users have it
        {"scale_parameter": True, "relative_step": True, "warmup_init": True},
        {"scale_parameter": True, "relative_step": True, "beta1": 0.9, "clip_threshold": 0.5},
    ],
)
def test_adafactor_moves_as_that_of_transformers(options: dict[str, Any]) -> None:
    optimization = pytest.importorskip("transformers.optimization")
    ours, theirs = weights(), weights()
    relative = options["relative_step"]
    reference = optimization.Adafactor(
        theirs, lr=None if relative else 0.01, weight_decay=0.1, **options
    )
    own = Adafactor(ours, lr=1.0 if relative else 0.01, weight_decay=0.1, **options)
    assert_same_path(own, reference, ours, theirs, 1e-6)


@pytest.mark.parity
def test_adamw8bit_is_that_of_bitsandbytes_and_near_adamw() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    ours, theirs, exact = (nn.Linear(80, 80) for _ in range(3))  # 6,400 weights: in 8 bits
    for other in (theirs, exact):
        other.load_state_dict(ours.state_dict())
    config = toy_config(Path(), optimizer="adamw8bit")
    settings = {"lr": 0.01, "betas": config.betas, "weight_decay": config.weight_decay}
    reference = bitsandbytes.optim.AdamW8bit(theirs.parameters(), **settings)
    whole = torch.optim.AdamW(exact.parameters(), **settings)
    own = build_optimizer(ours, config)
    assert own.param_groups[0]["lr"] == 0.01
    for _ in range(20):
        x = torch.randn(16, 80)
        for model, optimizer in ((ours, own), (theirs, reference), (exact, whole)):
            optimizer.zero_grad()
            (model(x) - x).square().mean().backward()
            optimizer.step()
    assert torch.equal(ours.weight, theirs.weight)
    assert own.state[ours.weight]["state1"].dtype == torch.uint8
    assert 0 < (ours.weight - exact.weight).abs().max() < 0.02  # of about 0.15 that it moves


def test_prodigy_is_that_of_prodigyopt_and_finds_a_rate(capsys: pytest.CaptureFixture) -> None:
    prodigyopt = pytest.importorskip("prodigyopt")
    torch.manual_seed(0)
    ours, theirs = nn.Linear(8, 8), nn.Linear(8, 8)
    theirs.load_state_dict(ours.state_dict())
    options = {"d_coef": 2.0, "safeguard_warmup": True, "use_bias_correction": True}
    config = toy_config(Path(), optimizer="prodigy", learning_rate=1.0, optimizer_options=options)
    reference = prodigyopt.Prodigy(theirs.parameters(), betas=(0.9, 0.99), weight_decay=0.01,
                                   **options)  # fmt: skip
    capsys.readouterr()
    own = build_optimizer(ours, config)
    assert capsys.readouterr().out == ""
    for _ in range(20):
        x = torch.randn(16, 8)
        for model, optimizer in ((ours, own), (theirs, reference)):
            optimizer.zero_grad()
            (model(x) - x).square().mean().backward()
            optimizer.step()
    assert torch.equal(ours.weight, theirs.weight)
    assert own.param_groups[0]["d"] > 1e-4


@pytest.mark.parametrize(("name", "package"), sorted(building.PACKAGES.items()))
def test_a_missing_package_is_named(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is computed, not after hours of encoding pictures."""
    monkeypatch.setattr(building, "find_spec", lambda name: None)
    config = toy_config(tmp_path, optimizer=name, learning_rate=1.0)
    with pytest.raises(ArgumentError, match=f"optimizer is '{name}', .* pip install {package}"):
        Trainer(config, Toy(config))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer_options": {"momentum": 0.9}}, "unknown setting optimizer_options.momentum"),
        (
            {"optimizer": "adafactor", "optimizer_options": {"warmup_init": True}},
            "warmup_init is the start of relative steps; set",
        ),
        (
            {"optimizer": "prodigy", "optimizer_options": {"slice_p": 0}},
            r"optimizer_options.slice_p is 0; it must be in \[1, inf\)",
        ),
        ({"learning_rates": {"unet": 0}}, "learning_rates.unet is 0; expected a number above 0"),
        (
            {"schedule": "polynomial"},
            "schedule is 'polynomial'; expected 'linear' or 'cosine' or",
        ),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        toy_config(Path(), **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "prodigy", "learning_rate": 1e-4},
        {"optimizer": "adafactor", "optimizer_options": {"relative_step": True}},
    ],
)
def test_a_rate_for_adamw_that_would_multiply_the_found_one(settings: dict[str, Any]) -> None:
    pytest.importorskip("prodigyopt")
    with pytest.warns(UserWarning, match="finds the rate itself, and this multiplies it: 1.0"):
        build_optimizer(nn.Linear(2, 2), toy_config(Path(), **settings))


class Parts(nn.Module):
    """A model of three parts, as fine-tunings train."""

    def __init__(self) -> None:
        super().__init__()
        names = ("unet", "text_encoder", "text_encoder_2")
        self.parts = nn.ModuleDict({name: nn.Linear(8, 8) for name in names})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts.values():
            x = torch.tanh(part(x))
        return x


class PartsToy(Toy):
    """The toy with such a model."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.model = Parts()


def test_parts_move_at_their_own_rates_along_one_schedule(tmp_path: Path) -> None:
    rates = {"text_encoder": 1e-3, "unet": 2e-2}
    config = toy_config(tmp_path, learning_rates=rates, warmup=4, steps=10)
    trainer = Trainer(config, PartsToy(config))
    trainer.start()
    groups = trainer.learner.optimizer.param_groups
    for step, factor in enumerate((0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5)):
        assert trainer.train_step(step).rate == pytest.approx(factor * 1e-2)
        found = {
            part: group["lr"] for part, group in zip(parts_of_groups(trainer), groups, strict=True)
        }
        expected = {"unet": 2e-2, "text_encoder": 1e-3, "text_encoder_2": 1e-2}
        assert found == pytest.approx({part: factor * rate for part, rate in expected.items()})
    trainer.end()


def parts_of_groups(trainer: Trainer) -> list[str]:
    """The part of each group, by its first parameter."""
    names = {id(p): name for name, p in trainer.learner.model.named_parameters()}
    groups = trainer.learner.optimizer.param_groups
    return [names[id(group["params"][0])].split(".")[1] for group in groups]


def test_the_first_update_of_a_part_is_as_large_as_its_rate() -> None:
    """AdamW's first step is the rate times the gradient's sign."""
    torch.manual_seed(0)
    model, rates = Parts(), {"text_encoder": 1e-3, "unet": 2e-2}
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = build_optimizer(model, toy_config(Path(), learning_rates=rates, weight_decay=0.0))
    for group in optimizer.param_groups:
        group["lr"] = group["peak"]
    model(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    for name, value in model.named_parameters():
        moved = float((value.detach() - before[name]).abs().max())
        assert moved == pytest.approx(rates.get(name.split(".")[1], 1e-2), rel=1e-3)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (Parts, {"learning_rates": {"unett": 1}}, r"of no part .* did you mean 'unet'\?"),
        (nn.Identity, {"learning_rates": {"unet": 1}}, "recipe 'toy' trains one network; set"),
        (
            Parts,
            {"learning_rates": {"unet": 0.5}, "optimizer": "prodigy", "learning_rate": 1.0},
            "Prodigy finds one for all parts; leave",
        ),
    ],
)
def test_rates_of_parts_that_cannot_be(
    model: type[nn.Module], settings: dict[str, Any], message: str
) -> None:
    pytest.importorskip("prodigyopt")
    with pytest.raises(ArgumentError, match=message):
        build_optimizer(model(), toy_config(Path(), **settings))


def test_schedules() -> None:
    rates = {
        name: [
            toy_config(Path(), steps=100, warmup=10, schedule=name).learning_rate_at(step)
            for step in (0, 4, 9, 50, 60, 80, 90, 99)
        ]
        for name in ("linear", "cosine", "constant")
    }
    rise = [1e-3, 5e-3, 1e-2, 1e-2, 1e-2]  # to the peak in 10 steps, a plateau to step 60
    assert rates["linear"] == pytest.approx([*rise, 5e-3, 2.5e-3, 2.5e-4])
    assert rates["cosine"] == pytest.approx([*rise, 5e-3, 1.4645e-3, 1.541e-5], rel=1e-3)
    assert rates["constant"] == pytest.approx([*rise, 1e-2, 1e-2, 1e-2])


@pytest.mark.filterwarnings("ignore:the run goes on")
def test_rates_and_schedules_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    config = toy_config(tmp_path, steps=2, learning_rates={"unet": 1e-3})
    for change in ({}, {"steps": 3, "learning_rates": {}, "schedule": "cosine"}):
        config = toy_config(tmp_path, **({"steps": 2, "learning_rates": {"unet": 1e-3}} | change))
        trainer = Trainer(config, PartsToy(config))
        trainer.is_finished(False)
        for step in range(trainer.start(), config.steps):
            trainer.after_step(trainer.train_step(step))
        trainer.end()
    assert [path.name for path in checkpoints(tmp_path)] == ["00000002", "00000003"]


@pytest.mark.parametrize("damage", ["lost", "infinite", "word"])
def test_a_damaged_estimate_of_prodigy_is_refused(tmp_path: Path, damage: str) -> None:
    pytest.importorskip("prodigyopt")
    config = {"optimizer": "prodigy", "learning_rate": 1.0}
    toy_run(toy_config(tmp_path, steps=2, **config))
    path = checkpoints(tmp_path)[-1] / "state.json"
    state = json.loads(path.read_text())
    assert state["optimizer"].keys() == {"d", "d_max", "d_numerator", "k"}
    if damage == "lost":
        del state["optimizer"]
    else:
        state["optimizer"]["d"] = {"infinite": float("inf"), "word": "1"}[damage]
    path.write_text(json.dumps(state))
    with (
        pytest.warns(UserWarning, match="goes on with other settings"),
        pytest.raises(CheckpointError, match=r"state\.json does not fit this run"),
    ):
        toy_run(toy_config(tmp_path, steps=3, **config))
