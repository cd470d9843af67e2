"""The figures as a page of Markdown."""

from typing import Any

from tools.builtin_model.evaluation.frechet import DIRECTIONS
from tools.builtin_model.icons.captions import STYLES

# Name of a figure → what it is, and the least that is wanted of it, if anything.
BARS: dict[str, tuple[str, float | None]] = {
    "object": ("object recognised, top 1 of all nouns", None),  # OF_CEILING of that of real icons
    "object_top5": ("… among the top 5", None),
    "synonym": ("… asked for by another word", None),
    "colour": ("colour as asked", 0.9),
    "colour_by_pixels": ("… by the pixels alone", None),
    "colour_by_classifier": ("… by the classifier alone", None),
    "object_and_colour": ("object and colour, pairs of training captions", None),
    "new_object_and_colour": ("object and colour, pairs never in training", 0.7),
    "both": ("both objects, pairs never together in training", 0.6),
    "both_of_forty": ("… by the choice among the forty", None),
    "both_coloured": ("… and each in its colour", None),
    "count": ("count, one to four", 0.7),
    "count_1": ("… one", None),
    "count_2": ("… two", None),
    "count_3": ("… three", None),
    "count_4": ("… four", None),
    "count_and_object": ("… and each of them recognised", None),
    "background": ("background as asked", None),
    "place": ("place as asked", None),
    "size": ("size as asked", None),
    "style": ("style as asked, of five", None),
    **{f"style_{style}": (f"… {style}", None) for style in STYLES.values()},
    "near_copies": ("near-copies of training icons, where a colour or composition is asked", None),
    "frechet": (
        f"Fréchet distance to held-out icons, classifier's features ({DIRECTIONS} directions)",
        None,
    ),
}
OF_CEILING = 0.85
SHOWN = ("right", "recognised")
NOTHING = dict.fromkeys(SHOWN)


def shown(value: float | None, name: str = "") -> str:
    """Shares as per cent, distances as they are, nothing as a dash."""
    if value is None:
        return "–"
    return f"{value:.2f}" if name == "frechet" else f"{value:.1%}"


def bars(drawn: dict[str, Any], real: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each of BARS: what, drawn, real, aim (None without one), reached."""
    rows = []
    for name, (what, aim) in BARS.items():
        if name == "object" and real[name] is not None:
            aim = OF_CEILING * real[name]
        reached = None if aim is None or drawn[name] is None else drawn[name] >= aim
        found = {"drawn": drawn[name], "real": real[name], "aim": aim, "reached": reached}
        rows.append({"name": name, "what": what, **found})
    return rows


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def vae_line(vae: dict[str, Any]) -> str:
    """Describe what the VAE keeps, in one sentence."""
    return (
        f"VAE on {vae['images']} held-out icons: PSNR {vae['psnr_mean']:.2f} dB (mean of the "
        f"pictures'), {vae['psnr_of_mean_error']:.2f} dB (of the mean error); range -1..1."
    )


def judge_line(judge: dict[str, Any]) -> str:
    """How the pictures are judged, and how well."""
    return (
        f"Judge: a classifier of {judge['classes']} things trained on real icons; of "
        f"{judge['held_out']} held-out icons it names {judge['top1']:.1%} right at once and "
        f"{judge['top5']:.1%} within five guesses. Things are what stands apart on the plain "
        "background. The data builder's code measures colours by the pixels; where these lie "
        "between two words, the classifier decides. Styles are told apart by a second network, "
        "which learnt from training's icons. The real column is of held-out icons, repainted and "
        "put together as the prompts ask (unless their many colours leave nothing to repaint): no "
        "model can be expected to do better."
    )


def markdown(report: dict[str, Any]) -> str:
    """`report.md` of what `evaluate.py` writes to `report.json`."""
    s = report["settings"]
    recognised = sum(row["majority"] for row in report["objects"].values())
    reached = {None: "", True: "yes", False: "**no**"}
    figures = [
        [
            row["what"],
            *(shown(row[column], row["name"]) for column in ("drawn", "real")),
            "" if row["aim"] is None else f"≥ {row['aim']:.1%}",
            reached[row["reached"]],
        ]
        for row in report["bars"]
    ]
    kinds = [
        [kind, str(row["pictures"]), *(shown(part[key]) for part in parts for key in SHOWN)]
        for kind, row in report["kinds"].items()
        for parts in [(row, report["real_kinds"].get(kind, NOTHING))]
    ]
    objects = [
        [noun, f"{row['recognised']}/{row['pictures']}", "yes" if row["majority"] else "no"]
        for noun, row in report["objects"].items()
    ]
    lines = [
        f"# {s['model']}: {len(report['pictures'])} prompts",
        "",
        f"{s['sampler']}, {s['num_inference_steps']} steps, guidance {s['guidance_scale']:g}, "
        f"{s['dtype']}, seeds from {s['seed']}; {report['seconds_per_picture']:.2f} s a picture on "
        f"{s['threads']} threads in batches of {s['batch_size']}.",
        "",
        vae_line(report["vae"]),
        "",
        judge_line(report["classifier"]),
        "",
        *table(["", "drawn", "real", "aim", "reached"], figures),
        "",
        *table(["kind", "pictures", "right", "recognised", "real: right", "recognised"], kinds),
        "",
        f"**{recognised} of {len(report['objects'])} objects are recognised** in more than half "
        "of their pictures of one thing.",
        "",
        *table(["object", "recognised", "more than half"], objects),
    ]
    return "\n".join(lines) + "\n"
