"""ComfyUI: the chunk `prompt` is the graph of nodes that drew the picture.

    {"3": {"class_type": "KSampler", "inputs": {"seed": 1, "positive": ["6", 0], …}}, …}

An input is a value, or a link [node, output]. What reached the saved picture is followed back from
its node to the first sampler, and from there to the texts, the model and the empty latents. Nodes
are told by their inputs, not by their names, so that most custom ones are read as well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from ldm.images.programs.json_settings import is_json, load, lora, scalar
from ldm.images.text_fields import COMMENT

NAME = "ComfyUI"
MOST_NODES = 20_000
MOST_NOTES = 10
TEXTS = ("text", "text_g", "text_l", "prompt", "positive_prompt", "t5xxl", "clip_l")
VALUES = (
    *("value", "Value", "text", "string", "String", "int", "float", "number"),
    *("seed", "noise_seed"),
)
# Inputs through which a sampler gets what stands in another node.
LINKS = ("noise", "guider", "sampler", "sigmas", "basic_pipe")
NUMBERS = {
    "Seed": ("seed", "noise_seed"),
    "Steps": ("steps",),
    "CFG scale": ("cfg",),
    "Sampler": ("sampler_name",),
    "Schedule type": ("scheduler",),
}
SCHEDULES = {  # of nodes for one schedule
    "KarrasScheduler": "karras",
    "ExponentialScheduler": "exponential",
    "PolyexponentialScheduler": "exponential",
    "AlignYourStepsScheduler": "ays",
    "BetaSamplingScheduler": "beta",
}
MODELS = ("ckpt_name", "unet_name", "model_name", "base_ckpt_name")
# Nodes that hand a conditioning on as it is here; others change it, and are named.
HANDS_ON = ("Reroute", "FluxGuidance", "CLIPTextEncodeSDXL", "PrimitiveNode")
JOINED = "ConditioningConcat"  # as BREAK does


class Graph:
    """The nodes of a graph, with their links followed."""

    def __init__(self, nodes: Mapping[str, Any]) -> None:
        if len(nodes) > MOST_NODES:
            raise ValueError(f"its graph, by {NAME}, has {len(nodes)} nodes; at most {MOST_NODES}")
        self.nodes = {
            key: node
            for key, node in nodes.items()
            if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
        }

    def kind(self, node: str) -> str:
        """Return the class of a node."""
        return str(self.nodes[node].get("class_type", ""))[:80]

    def inputs(self, node: str) -> dict[str, Any]:
        """Return all inputs of a node, by name."""
        return self.nodes[node]["inputs"]

    def link(self, node: str, name: str) -> str | None:
        """Return the node that an input is linked to."""
        value = self.inputs(node).get(name)
        if not isinstance(value, list) or len(value) != 2:
            return None
        linked = scalar(value[0])
        return linked if linked in self.nodes else None

    def value(self, node: str, name: str) -> str | None:
        """Return an input's value as text, through nodes that only hold or hand it on."""
        seen: set[str] = set()
        names: tuple[str, ...] = (name,)
        while node not in seen:
            seen.add(node)
            for name in names:
                if (text := scalar(self.inputs(node).get(name))) is not None:
                    return text
            linked = [to for name in names if (to := self.link(node, name)) is not None]
            if not linked:
                links = [to for name in self.inputs(node) if (to := self.link(node, name))]
                linked = links if len(links) == 1 and len(seen) > 1 else []
            if not linked:
                return None
            node, names = linked[0], (*names[:1], *VALUES)
        return None

    def upstream(self, node: str, name: str | None = None) -> Iterator[str]:
        """Yield all nodes that an input, or all inputs, depend on, the nearest first."""
        queue = deque([node])
        seen = {node}
        first = True
        while queue:
            current = queue.popleft()
            if current != node:
                yield current
            names = [name] if first and name is not None else list(self.inputs(current))
            first = False
            for linked in (self.link(current, each) for each in names):
                if linked is not None and linked not in seen:
                    seen.add(linked)
                    queue.append(linked)


def read(fields: Mapping[str, str]) -> dict[str, str] | None:
    """Read the graph in the texts of a file; None if ComfyUI wrote none."""
    text = _graph_text(fields)
    if text is None:
        if is_json(layout := fields.get("workflow", "")) and '"nodes"' in layout:
            raise ValueError(f"it has only the layout of a graph by {NAME}, not what was drawn")
        return None
    nodes = load(text, NAME)
    if isinstance(inner := nodes.get("prompt"), dict) and "class_type" not in inner:
        nodes = inner  # beside the layout, in one text
    graph = Graph(nodes)
    sampler = _sampler(graph)
    found = _numbers(graph, sampler) | _texts(graph, sampler)
    found |= _model(graph, sampler) | _latents(graph, sampler)
    others = sum(_is_sampler(graph, node) for node in graph.nodes) - 1
    return {"RNG": "CPU"} | found | ({"further samplers:": str(others)} if others else {})


def _graph_text(fields: Mapping[str, str]) -> str | None:
    """Find the graph: in PNG files a chunk, in WebP files behind "prompt:" in EXIF fields."""
    for name in ("prompt", "Model", "Make", "ImageDescription", COMMENT, "parameters"):
        text = fields.get(name, "").removeprefix("prompt:").removeprefix("Prompt:")
        if is_json(text) and '"class_type"' in text:
            return text
    return None


def _is_sampler(graph: Graph, node: str) -> bool:
    inputs = graph.inputs(node)
    latents = any(name.startswith("latent") for name in inputs)
    return latents and bool({"positive", "guider", "basic_pipe"} & set(inputs))


def _sampler(graph: Graph) -> str:
    """Find the sampler whose latents no other sampler made, from the node that saves."""
    saves = [node for node in graph.nodes if "save" in graph.kind(node).casefold()]
    saves += [node for node in graph.nodes if "preview" in graph.kind(node).casefold()]
    for end in [*saves[:100], None]:
        nodes = graph.upstream(end) if end is not None else iter(graph.nodes)
        current = next((node for node in nodes if _is_sampler(graph, node)), None)
        if current is not None:
            break
    else:
        kinds = sorted({graph.kind(node) for node in graph.nodes})
        raise ValueError(
            f"its graph, by {NAME}, has no sampler that is known here, but {', '.join(kinds)[:200]}"
        )
    seen = {current}
    while True:
        names = [name for name in graph.inputs(current) if name.startswith("latent")]
        before = (n for name in names for n in graph.upstream(current, name))
        earlier = next((n for n in before if _is_sampler(graph, n) and n not in seen), None)
        if earlier is None:
            return current
        seen.add(earlier)
        current = earlier


def _numbers(graph: Graph, sampler: str) -> dict[str, str]:
    near = [sampler, *(to for name in LINKS if (to := graph.link(sampler, name)) is not None)]
    found: dict[str, str] = {}
    for label, names in NUMBERS.items():
        values = (graph.value(n, name) for n in near for name in names if name in graph.inputs(n))
        if (value := next((value for value in values if value is not None), None)) is not None:
            found[label] = value
    kinds = [SCHEDULES[graph.kind(node)] for node in near if graph.kind(node) in SCHEDULES]
    return found | ({"Schedule type": kinds[0]} if kinds else {})


def _texts(graph: Graph, sampler: str) -> dict[str, str]:
    """Return both prompts, and the nodes on the way to them that change what they say."""
    found: dict[str, str] = {}
    at = sampler
    guider = graph.link(sampler, "guider") or graph.link(sampler, "basic_pipe")
    if "positive" not in graph.inputs(sampler) and guider is not None:
        at = guider
    inputs = graph.inputs(at)
    for label, names in {
        "Prompt": ("positive", "conditioning"),
        "Negative prompt": ("negative",),
    }.items():
        name = next((name for name in names if name in inputs), None)
        if name is None:
            continue
        texts, passed = _conditioning(graph, at, name)
        if len(texts) > 1 and set(passed) != {JOINED}:
            raise ValueError(
                f"its graph, by {NAME}, joins {len(texts)} prompts with "
                f"{', '.join(sorted(set(passed)))[:200]}, which is not done here"
            )
        if texts or label != "Prompt":
            found[label] = " BREAK ".join(text.strip() for text in texts)
        if changed := ", ".join(kind for kind in passed[:MOST_NOTES] if kind != JOINED):
            found[f"nodes of the {label.casefold()}:"] = changed
    if "Prompt" not in found:
        raise ValueError(f"its graph, by {NAME}, has no text that leads to the sampler")
    return found


def _conditioning(graph: Graph, node: str, name: str) -> tuple[list[str], list[str]]:
    """Return the texts that an input is made of, and the kinds of nodes that change them."""
    texts: list[str] = []
    passed: list[str] = []
    first = graph.link(node, name)
    if first is None:
        return [value for value in [graph.value(node, name)] if value is not None], []
    seen, stack = {first}, [(first, name)]
    while stack:
        current, want = stack.pop()
        inputs = graph.inputs(current)
        own = [text for key in TEXTS if key in inputs and (text := graph.value(current, key))]
        if (named := scalar(inputs.get(want))) is not None:  # a loader that holds both texts
            texts.append(named)
            continue
        if any(key in inputs for key in TEXTS):
            texts.append(own[0] if own else "")
            passed += [f"another text for {graph.kind(current)}"] * (len(set(own)) > 1)
            continue
        names = [want] if graph.link(current, want) is not None else list(inputs)
        links = [
            to
            for key in names
            if (to := graph.link(current, key)) is not None and _conditions(graph, to, key)
        ]
        if graph.kind(current) not in HANDS_ON:
            passed.append(graph.kind(current))
        for to in reversed(links):
            if to not in seen:
                seen.add(to)
                stack.append((to, want))
    return texts, list(dict.fromkeys(passed))


def _conditions(graph: Graph, node: str, name: str) -> bool:
    """Whether a link carries a conditioning, by the name of the input or of its node."""
    if name.startswith(("conditioning", "positive", "negative")) or name in ("", "any"):
        return True
    return graph.kind(node).startswith(("CLIPTextEncode", "Conditioning"))


def _model(graph: Graph, sampler: str) -> dict[str, str]:
    """Return the model, its LoRAs, the VAE and the layer of the text encoder."""
    found: dict[str, str] = {}
    for node in graph.upstream(sampler):
        inputs = graph.inputs(node)
        for key in MODELS:
            if key in inputs and (model := graph.value(node, key)):
                found.setdefault("Model", model)
        if "lora_name" in inputs and (name := graph.value(node, "lora_name")):
            weight = graph.value(node, "strength_model")
            found |= lora(name.rpartition(".")[0] or name, weight)
        layer = graph.value(node, "stop_at_clip_layer") if "stop_at_clip_layer" in inputs else None
        if layer and layer.removeprefix("-").isdecimal():
            found["Clip skip"] = layer.removeprefix("-")
    vaes = (graph.value(n, "vae_name") for n in graph.nodes if "vae_name" in graph.inputs(n))
    vae = next(vaes, None)
    return found | ({"VAE": vae} if vae else {})


def _latents(graph: Graph, sampler: str) -> dict[str, str]:
    """Return the size of empty latents, or the strength for those of a picture."""
    names = [name for name in graph.inputs(sampler) if name.startswith("latent")]
    for node in (n for name in names for n in graph.upstream(sampler, name)):
        inputs = graph.inputs(node)
        if "pixels" in inputs or "image" in inputs:
            near = [sampler, graph.link(sampler, "sigmas") or sampler]
            values = [graph.value(n, "denoise") for n in near if "denoise" in graph.inputs(n)]
            return {"Denoising strength": next((v for v in values if v is not None), "1")}
        if "width" in inputs and "height" in inputs:
            width, height = graph.value(node, "width"), graph.value(node, "height")
            return {"Width": width, "Height": height} if width and height else {}
    return {}
