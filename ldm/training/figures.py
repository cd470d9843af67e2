"""Figures of a pixel model, as PNG: noising, predictions at each level, drawing in time."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ldm.likelihood import Predict
from ldm.scheduler import DDPMScheduler

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 8  # noise levels, or moments of a run, side by side
POINTS = 16  # of the error's curve


def draw_noising(path: Path, x0: Tensor, schedulers: Mapping[str, DDPMScheduler]) -> None:
    """Draw a picture (C, H, W) on its way to noise under each schedule, and ᾱ against time.

    As figures 3 and 5 of Nichol & Dhariwal 2021: the linear schedule destroys a picture early.
    """
    figure = new_figure(COLUMNS + 3, 1.2 * len(schedulers) + 0.4)
    images, curve = figure.subfigures(1, 2, width_ratios=[COLUMNS, 3])  # type: ignore[misc]
    grid = images.subplots(len(schedulers), COLUMNS, squeeze=False)
    axes = curve.subplots()
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    for row, (name, scheduler) in enumerate(schedulers.items()):
        for column, t in enumerate(evenly(len(scheduler.ratios), COLUMNS)):
            x_t = scheduler.add_noise(x0[None], noise[None], torch.tensor([t]))[0]
            draw_picture(grid[row][column], x_t, f"t = {t}")
        name_row(grid[row][0], name)
        total = len(scheduler.alphas_cumprod)
        axes.plot(torch.arange(total) / total, scheduler.alphas_cumprod, label=name)
    axes.set(xlabel="t/T", title="ᾱ")
    axes.legend()
    save_figure(figure, path)


@torch.no_grad()
def draw_denoising(
    path: Path, scheduler: DDPMScheduler, predict: Predict, x0: Tensor, shown: int = 2
) -> None:
    """Draw the network's predictions at rising noise levels, and their error against t.

    Of the first ``shown`` pictures of x0 (B, C, H, W): x_t, ε̂ and x̂₀. The error is the mean
    square over all B, of ε̂ and of x̂₀. Outputs with a learned variance will do too.
    """
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(x0)

    def denoised(t: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        times = torch.full((count,), t, device=x0.device)
        x_t = scheduler.add_noise(x0[:count], noise[:count], times)
        prediction, _ = scheduler.split(predict(x_t, times))
        levels = scheduler.levels(times, x_t)
        eps = scheduler.to_eps(prediction, x_t, levels)
        return x_t, eps, scheduler.to_x0(prediction, x_t, levels)

    shown = min(shown, len(x0))
    figure = new_figure(COLUMNS, 3 * shown + 3)
    images, curve = figure.subfigures(2, 1, height_ratios=[3 * shown, 3])  # type: ignore[misc]
    grid = images.subplots(3 * shown, COLUMNS, squeeze=False)
    for column, t in enumerate(evenly(len(scheduler.ratios), COLUMNS)):
        for row, (name, values) in enumerate(
            zip(("x_t", "ε̂", "x̂₀"), denoised(t, shown), strict=True)
        ):
            for picture in range(shown):
                axes = grid[3 * picture + row][column]
                draw_picture(
                    axes, values[picture] / (3 if name == "ε̂" else 1), "" if row else f"t = {t}"
                )
                if not column:
                    name_row(axes, name)
    times = evenly(len(scheduler.ratios), POINTS)
    errors = []
    for t in times:
        _, eps, predicted = denoised(t, len(x0))
        errors.append(
            [float((eps - noise).square().mean()), float((predicted - x0).square().mean())]
        )
    axes = curve.subplots()
    for name, curve_values in zip(("ε̂", "x̂₀"), zip(*errors, strict=True), strict=True):
        axes.plot(times, curve_values, marker=".", label=f"mean square error of {name}")
    axes.set(xlabel="t", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def draw_through_time(path: Path, moments: Sequence[tuple[str, Tensor]]) -> None:
    """Draw pictures through sampling: a column (B, C, H, W) for each moment, with its title."""
    rows = len(moments[0][1])
    figure = new_figure(len(moments), rows + 0.3)
    grid = figure.subplots(rows, len(moments), squeeze=False)
    for column, (title, pictures) in enumerate(moments):
        for row, picture in enumerate(pictures):
            draw_picture(grid[row][column], picture, "" if row else title)
    save_figure(figure, path)


def evenly(total: int, count: int) -> list[int]:
    """Pick at most ``count`` of 0 … total − 1, evenly, both ends included."""
    return sorted({round(i * (total - 1) / max(count - 1, 1)) for i in range(count)})


def matplotlib_available(drawing: str) -> bool:
    """Whether matplotlib is installed. Warns, once for each kind of ``drawing``, if it is not."""
    if find_spec("matplotlib"):
        return True
    warnings.warn(
        f"matplotlib is not installed, so the run draws no {drawing}; pip install 'ldm[train]'",
        stacklevel=2,
    )
    return False


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure; sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="compressed")


def draw_picture(axes: Axes, picture: Tensor, title: str = "") -> None:
    """Draw a picture (C, H, W) in [-1, 1], grey where it has one channel."""
    values = (picture.detach().float().cpu() / 2 + 0.5).clamp(0, 1).permute(1, 2, 0)
    axes.imshow(values.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=8)


def name_row(axes: Axes, text: str) -> None:
    """Name a row by its first picture."""
    axes.set_ylabel(text, fontsize=9)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, dpi=120, format="png")
    partial.replace(path)
