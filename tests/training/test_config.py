"""Settings: what is refused and what is offered instead; memory; the average; curves."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ldm.config.settings import choice, read_table, within
from ldm.errors import ArgumentError
from ldm.training.config import TrainConfig, read_config
from ldm.training.curves import points, smooth
from ldm.training.memory import describe_run, kept_activations
from ldm.training.metrics import Metrics, append_row, cut_log, read_log
from ldm.training.optimizer import build_optimizer
from ldm.training.optimizer_state import moments_size
from tests.helpers import toy_training
from tests.helpers.optimizers import OPTIMIZERS, settings_of
from tests.helpers.toy_training import WIDTH, Toy, toy_config

CONFIGS = Path(__file__).parents[2] / "configs" / "train"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("learning_rat=1", "unknown setting learning_rat; did you mean 'learning_rate'"),
        ("xyz=1", "unknown setting xyz; expected one of batch_size, betas"),
        ("batch_size=0", r"batch_size is 0; it must be in \[1, inf\)"),
        ("steps=1.5", "steps is 1.5; expected a whole number"),
        ("steps=true", "steps is True; expected a whole number"),
        ("steps=many", "steps is 'many'; expected a whole number"),
        ("learning_rate=0", r"learning_rate is 0; it must be in \(0, inf\)"),
        ("learning_rate=nan", r"learning_rate is nan; it must be in \(0, inf\)"),
        ("learning_rate=inf", r"learning_rate is inf; it must be in \(0, inf\)"),
        ("ema_decay=1", r"ema_decay is 1; it must be in \[0, 1\)"),
        ("decay_from=1.1", r"decay_from is 1.1; it must be in \[0, 1\]"),
        ("betas=[0.9, 1.0]", r"betas is \[0.9, 1.0\]; it must be in \[0, 1\)"),
        ("betas=[0.9]", r"betas is \[0.9\]; expected a list of 2 values"),
        ("betas=0.9", "betas is 0.9; expected a list of 2 values"),
        ("optimizer=adam", "optimizer is 'adam'; expected 'adamw' or 'muon' or 'adamw8bit'"),
        ("mixed_precision=fp8", "mixed_precision is 'fp8'; expected 'bf16' or 'fp16' or 'no'"),
        ("trackers=tensorboard", "trackers is 'tensorboard'; expected a list"),
        ("model=5", "model is 5; expected a table"),
        ("seed=-1", "seed is -1; it must be in"),
        ("steps.more=1", "'steps.more=1': steps is no table, so it has no more"),
    ],
)
def test_a_bad_setting_is_named_with_what_was_expected(setting: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        read_config(CONFIGS / "vae.toml", [setting])


def test_what_is_good_at_the_edges() -> None:
    edges = ["max_grad_norm=inf", "decay_from=1", "warmup=0", "seed=9223372036854775807"]
    config = read_config(CONFIGS / "vae.toml", [*edges, 'trackers=["tensorboard"]', "ema_decay=0"])
    assert config.trackers == ["tensorboard"] and config.seed == 2**63 - 1


def test_a_setting_that_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('recipe = "text"\ndata = "x"\n')
    with pytest.raises(ArgumentError, match=r"a\.toml: output is missing"):
        read_config(file)


@dataclass
class Options:
    """As a recipe has them."""

    kl_weight: float = within("[0, 1]")
    kind: str = choice("linear", "cosine")
    sizes: list[int] = within("[1, inf)", (1,))  # noqa: RUF009 (it returns a `field`)
    gamma: float | None = within("(0, inf)", None)
    data: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kl_wieght": 1.0}, "unknown setting options.kl_wieght; did you mean 'kl_weight'"),
        ({}, "options.kl_weight is missing"),
        ({"kl_weight": 2}, r"options.kl_weight is 2; it must be in \[0, 1\]"),
        ({"kl_weight": 1, "kind": "cos"}, "options.kind is 'cos'; expected 'linear' or 'cosine'"),
        ({"kl_weight": 1, "sizes": [8, 0]}, r"options.sizes is \[8, 0\]; it must be in"),
        ({"kl_weight": 1, "sizes": [8, "x"]}, "options.sizes is .*; expected a list"),
        ({"kl_weight": 1, "gamma": 0}, r"options.gamma is 0; it must be in \(0, inf\)"),
        ({"kl_weight": 1, "gamma": "5"}, "options.gamma is '5'; expected a number"),
    ],
)
def test_a_recipes_own_options(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        read_table(Options, values, "options.")


def test_options_get_their_defaults() -> None:
    options = read_table(Options, {"kl_weight": 0, "gamma": 5}, "options.")
    assert (options.kind, options.gamma, options.data) == ("linear", 5, {})


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_moments_foretold_are_those_of_the_optimizer(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy_training, "WIDTH", 70)  # 4,900 weights: enough for moments of 8 bits
    config = toy_config(Path(), **settings_of(optimizer))
    model = Toy(config).model
    made = build_optimizer(model, config)
    model(torch.randn(4, 8)).sum().backward()
    made.step()
    held = sum(
        value.nbytes
        for state in made.state.values()
        for value in state.values()
        if torch.is_tensor(value) and value.ndim and value.shape != (256,)  # not tables
    )
    assert moments_size(model, config) == held


def test_the_activations_foretold() -> None:
    """By hand: a linear layer keeps its input, SiLU too, dropout its mask and the MSE its error."""
    config = toy_config(Path(), options={"dropout": 0.0})
    recipe = Toy(config)
    one, many = (kept_activations(config, recipe, rows) for rows in (1, 10))
    per_row = (many - one) / 9
    # x and three hidden states before and after SiLU, in float32; the rest depends on PyTorch.
    assert 4 * (8 + 4 * WIDTH + 8) <= per_row <= 4 * (8 + 6 * WIDTH + 4 * 8)


def test_a_plan_counts_parts_and_processes() -> None:
    config = toy_config(Path(), batch_size=64, gradient_accumulation_steps=2)
    told = "\n".join(describe_run(config, Toy(config), processes=4))
    assert "100 examples to learn from, 100 held out" in told
    assert "activations of 8 examples" in told
    assert f"run: {8 * 64 / 100:.1f} times through the data" in told


def test_the_log_is_read_and_cut(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        append_row(tmp_path, {"step": step, "loss": step / 2})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # a kill
    assert [row["step"] for row in read_log(tmp_path)] == [1, 2, 3]
    cut_log(tmp_path, 2)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 1.0},
    ]


def test_curves_leave_out_steps_without_a_figure_and_smooth_without_bias() -> None:
    rows = [{"step": 1, "a": 2.0}, {"step": 2}, {"step": 3, "a": 4.0}]
    assert points(rows, "a") == ([1, 3], [2.0, 4.0])
    assert smooth([5.0] * 4) == pytest.approx([5.0] * 4)
    assert smooth([1.0, 3.0])[1] == pytest.approx((0.9 * 1 + 3) / 1.9)


def test_metrics_are_means_and_remember_the_first_failure() -> None:
    class One:
        def reduce(self, value: torch.Tensor, how: str) -> torch.Tensor:
            return value

    metrics = Metrics()
    for value in (1.0, 2.0, 6.0):
        metrics.add({"loss": torch.tensor(value), "grad_norm": torch.tensor(0.0)})
    means = metrics.take(One(), seconds=1.5)
    assert (means["loss"], means["steps_per_second"]) == (3.0, 2.0)
    metrics.check()
    for step, value in ((4, 1.0), (5, float("inf")), (6, float("nan"))):
        metrics.watch(step, torch.tensor(value))
    with pytest.raises(Exception, match="not finite at step 5"):
        metrics.check()


def test_the_config_reads_as_written() -> None:
    """A fresh TrainConfig checks its values, too."""
    with pytest.raises(ArgumentError, match="steps is 0"):
        TrainConfig("text", "", "", 0, 1, 1e-3)
    assert isinstance(Toy(toy_config(Path())).model, nn.Sequential)
