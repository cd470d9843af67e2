"""What a sampling loop itself costs, beside diffusers' schedulers; the network does nothing.

    python tools/benchmark_samplers.py

Both run the same number of steps on the same latents, Karras' levels where the sampler takes them;
the "network" returns its input, which counts as its ε̂ or, with `--prediction-type sample`, as its
x̂₀: then nothing but the sampler's own arithmetic is left. The two take turns of a few runs, and
the shortest run of each counts, so that a busy machine spoils both alike. The time includes laying
the levels (diffusers: `set_timesteps`) and all arithmetic on latents, and the noise that is drawn;
guidance is left out. Needs diffusers.
"""

import argparse
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from ldm.cli.common import EXIT_CODES, Parser, check_counts, run
from ldm.config import SchedulerConfig
from ldm.samplers import SAMPLERS, bind, first_noise_scale, plan, sample
from ldm.scheduler import DDPMScheduler, Level

TURN = 5  # runs; the first ones find the processor full of what the other one did
SHAPE = (1, 4, 64, 64)
SD: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}
MORE: dict[str, dict[str, Any]] = {
    "dpmpp_2m_sde": {"algorithm_type": "sde-dpmsolver++"},
    "dpmpp_3m_sde": {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
}


def settings(name: str, prediction_type: str) -> dict[str, Any]:
    """scheduler_config.json."""
    more = MORE.get(name, {}) | {"use_karras_sigmas": SAMPLERS[name].obeys_schedule}
    return {**SD, **more, "prediction_type": prediction_type}


def ours(name: str, prediction_type: str, steps: int) -> Callable[[], torch.Tensor]:
    """A run of our loop."""
    values = settings(name, prediction_type) | {"_class_name": SAMPLERS[name].class_name}
    scheduler = DDPMScheduler(SchedulerConfig.from_dict(values))
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))

    def once() -> torch.Tensor:
        levels = plan(scheduler, name, steps)
        step = bind(scheduler, name, steps=levels)
        first = start * first_noise_scale(scheduler, name, levels)
        generator = torch.Generator().manual_seed(1)

        def denoise(x: torch.Tensor, level: Level) -> torch.Tensor:
            return scheduler.to_x0(x, x, level)

        def noise() -> torch.Tensor:
            return torch.randn(SHAPE, generator=generator)

        *_, (last, _, _) = sample(step, denoise, first, levels, noise)
        return last

    return once


def theirs(name: str, prediction_type: str, steps: int) -> Callable[[], torch.Tensor]:
    """A run of diffusers' loop, as its pipelines write it."""
    import inspect

    import diffusers

    cls = getattr(diffusers, SAMPLERS[name].class_name)
    scheduler = cls.from_config(settings(name, prediction_type))
    draws = "generator" in inspect.signature(scheduler.step).parameters
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))

    def once() -> torch.Tensor:
        scheduler.set_timesteps(steps)
        x = start * scheduler.init_noise_sigma
        options = {"generator": torch.Generator().manual_seed(1)} if draws else {}
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t)
            x = scheduler.step(scaled, t, x, **options, return_dict=False)[0]
        return x

    return once


def shortest(runs: list[Callable[[], torch.Tensor]], rounds: int) -> list[float]:
    """Seconds of each run at its best; they take turns."""
    best = [float("inf")] * len(runs)
    for _ in range(rounds):
        for i, once in enumerate(runs):
            for _ in range(TURN):
                began = time.perf_counter()
                once()
                best[i] = min(best[i], time.perf_counter() - began)
    return best


def benchmark(arguments: argparse.Namespace) -> None:
    """Measure and print a table."""
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    check_counts(arguments, "steps", "rounds", "threads")
    torch.set_num_threads(arguments.threads)
    print(
        f"{arguments.steps} steps on latents {SHAPE}, {arguments.threads} thread(s), "
        f"shortest of {arguments.rounds}, milliseconds a step\n"
    )
    print("| sampler | diffusers | ldm | ratio |\n|---|---|---|---|")
    with torch.no_grad():
        for name in arguments.sampler or [n for n, row in SAMPLERS.items() if row.class_name]:
            what = name, arguments.prediction_type, arguments.steps
            runs = [theirs(*what), ours(*what)]
            slow, quick = (s / arguments.steps * 1e3 for s in shortest(runs, arguments.rounds))
            print(f"| {name} | {slow:.3f} | {quick:.3f} | 1/{slow / quick:.1f} |", flush=True)


def parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__.splitlines()[0], epilog=EXIT_CODES, allow_abbrev=False)
    add = parser.add_argument
    names = [name for name, row in SAMPLERS.items() if row.class_name]
    add("sampler", nargs="*", metavar="NAME", help=f"of {', '.join(names)} (default: all)")
    add("--steps", type=int, default=50, metavar="N", help="steps of a run (default: 50)")
    add(
        "--prediction-type",
        choices=("epsilon", "sample"),
        default="epsilon",
        help="what the network's output counts as (default: epsilon)",
    )
    add("--rounds", type=int, default=5, metavar="N", help="turns of each (default: 5)")
    add("--threads", type=int, default=1, metavar="N", help="of PyTorch (default: 1)")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main() -> int:
    """Entry point; returns the exit code."""
    arguments = parser().parse_args()
    return run(lambda: benchmark(arguments), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
