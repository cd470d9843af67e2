"""The figures as a page of Markdown."""

from typing import Any

from tools.builtin_model.evaluation import names
from tools.builtin_model.evaluation.frechet import DIRECTIONS
from tools.builtin_model.icons.captions import STYLES

# Name of a figure → what it is, and the least (of AT_MOST: the most) that is wanted, if anything.
BARS: dict[str, tuple[str, float | None]] = {
    "object": ("object recognised, top 1 of all nouns", 0.93),
    "object_top5": ("… among the top 5", None),
    "synonym": ("… asked for by another word", None),
    "names": ("every noun that the judge knows, twice, top 1; real: held-out icons", 0.75),
    "names_top5": ("… among the top 5", None),
    "names_held_out": ("… those with a held-out icon, top 1", None),
    "names_learnt": ("… top 1 of plain icons that the judge learnt from", None),
    "colour": ("colour as asked", 0.9),
    "colour_by_pixels": ("… by the pixels alone", None),
    "colour_by_classifier": ("… by the classifier alone", None),
    "object_and_colour": ("object and colour, pairs of training captions", None),
    "new_object_and_colour": ("object and colour, pairs never in training", 0.85),
    "both": ("both objects, pairs never together in training", 0.82),
    "both_of_forty": ("… by the choice among the forty", None),
    "both_coloured": ("… and each in its colour", 0.72),
    "count": ("count, one to four", 0.7),
    "count_1": ("… one", None),
    "count_2": ("… two", None),
    "count_3": ("… three", None),
    "count_4": ("… four", None),
    "count_and_object": ("… and each of them recognised", 0.85),
    "background": ("background as asked", None),
    "place": ("place as asked", None),
    "size": ("size as asked", None),
    "style": ("style as asked, of five", 0.68),
    **{f"style_{style}": (f"… {style}", None) for style in STYLES.values()},
    "style_worst": ("… the worst of them", 0.5),
    "eyes": ("faces and animals: both eyes there", None),
    "recall": ("recall: real icons among the drawn; real: among as many others", None),
    "precision": ("precision: drawn pictures among real icons; real: others", None),
    "near_copies": ("near-copies of training icons, where a colour or composition is asked", 0.01),
    "frechet": (
        f"Fréchet distance to held-out icons, classifier's features ({DIRECTIONS} directions)",
        0.5,
    ),
}
AT_MOST = ("frechet", "near_copies")
OF_REAL = {"eyes": 0.9, "recall": 0.9}  # the aim, as a share of what real icons have
SHOWN = ("right", "recognised")
NOTHING = dict.fromkeys(SHOWN)


def shown(value: float | None, name: str = "") -> str:
    """Shares as per cent, distances as they are, nothing as a dash."""
    if value is None:
        return "–"
    return f"{value:.2f}" if name == "frechet" else f"{value:.1%}"


def with_interval(row: dict[str, Any], column: str) -> str:
    """Write a figure of a row of ``bars`` and its interval: "88.6% (84–92)"."""
    text, interval = shown(row[column], row["name"]), row[f"{column}_interval"]
    if interval is None:
        return text
    low, high = interval
    if row["name"] == "frechet":
        return f"{text} ({low:.2f}–{high:.2f})"
    return f"{text} ({100 * low:.1f}–{100 * high:.1f})"


def bars(drawn: dict[str, Any], real: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each of BARS: what, drawn, real, aim (None without one), reached.

    Both dictionaries have the figures by their names and, by `NAME_interval`, their intervals.
    """
    rows = []
    for name, (what, aim) in BARS.items():
        ours, theirs = drawn.get(name), real.get(name)
        if name in OF_REAL and theirs is not None:
            aim = OF_REAL[name] * theirs
        reached = None
        if aim is not None and ours is not None:
            reached = ours <= aim if name in AT_MOST else ours >= aim
        found = {"drawn": ours, "real": theirs, "aim": aim, "reached": reached}
        for column, figures in (("drawn", drawn), ("real", real)):
            found[f"{column}_interval"] = figures.get(f"{name}_interval")
        rows.append({"name": name, "what": what, **found})
    return rows


def aim_of(row: dict[str, Any]) -> str:
    """Write what is wanted of a row of ``bars``: "≥ 93.0%"."""
    if row["aim"] is None:
        return ""
    return ("≤ " if row["name"] in AT_MOST else "≥ ") + shown(row["aim"], row["name"])


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


def seconds_text(report: dict[str, Any]) -> str:
    """Write how long a picture took; nothing where all were drawn before."""
    seconds = report["seconds_per_picture"]
    if seconds is None:
        return ""
    return f"; {seconds:.2f} s a picture on {report['settings']['threads']} threads"


def eyes_lines(eyes: dict[str, Any] | None) -> list[str]:
    """How well eyes are judged; nothing where they were not."""
    if eyes is None:
        return []
    shares = {key: "{} of {}".format(*eyes[key]) for key in ("both", "missing")}
    return [
        "Eyes are judged by a third network, which learnt from real icons as they are and with "
        "one or both eyes left out of the drawing; of held-out icons it finds both eyes in "
        f"{shares['both']} that have them, and misses one or both in {shares['missing']} that do "
        f"not. It is asked about {len(eyes['nouns'])} faces and animals that icons mostly show "
        "with two.",
        "",
    ]


def markdown(report: dict[str, Any]) -> str:
    """`report.md` of what `evaluate.py` writes to `report.json`."""
    s = report["settings"]
    recognised = sum(row["majority"] for row in report["objects"].values())
    reached = {None: "", True: "yes", False: "**no**"}
    figures = [
        [
            row["what"],
            *(with_interval(row, column) for column in ("drawn", "real")),
            aim_of(row),
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
        f"{s['dtype']}, seeds from {s['seed']}, batches of {s['batch_size']}"
        f"{seconds_text(report)}.",
        "",
        vae_line(report["vae"]),
        "",
        judge_line(report["classifier"]),
        "",
        *eyes_lines(report.get("eyes")),
        "In brackets: 95 % intervals, of shares by Wilson's formula, of others by resampling.",
        "",
        *table(["", "drawn", "real", "aim", "reached"], figures),
        "",
        *names.lines(report.get("names", {})),
        "",
        *table(["kind", "pictures", "right", "recognised", "real: right", "recognised"], kinds),
        "",
        f"**{recognised} of {len(report['objects'])} objects are recognised** in more than half "
        "of their pictures of one thing.",
        "",
        *table(["object", "recognised", "more than half"], objects),
    ]
    return "\n".join(lines) + "\n"
