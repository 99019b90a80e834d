"""Pictures as SVG that need nothing else: they open in a browser and in an image viewer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastcifar.profiler import Layer, Profile

WIDTH, MARGIN, HEAD = 1400, 12, 64  # pixels
ROWS = (26, 26, 150, 180)  # heights of step, phase, layer and kernel, pixels
LETTER, LINE = 6.9, 13  # width and height of a letter of the labels, pixels
NARROWEST = 0.25  # a box below this width would not be seen, pixels
COLORS = {"arithmetic": "#8fc98f", "memory": "#8fb4e3", "launches": "#f0d37a"}
PLAIN, IDLE = "#d9d9d9", "#f5f5f5"
BOUNDS = {
    "arithmetic": "bound by arithmetic",
    "memory": "bound by memory",
    "launches": "bound by launches",
}


@dataclass
class Box:
    """A rectangle of the icicle with those below it, whose widths add up to no more than its own."""

    name: str
    ms: float
    color: str
    tip: str
    below: list[Box] = field(default_factory=list)


def icicle(profile: Profile, device: str) -> str:
    """Step, phase, layer, kernel, from top to bottom: width is time, colour what bounds the layer."""
    root = boxes(profile)
    body = list(drawn(root, MARGIN, 0, (WIDTH - 2 * MARGIN) / root.ms))
    height = HEAD + sum(ROWS) + 44
    title = f"{profile.recipe}: one step of {profile.batch} images, {profile.engine} engine, {device}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
            'font-family="DejaVu Sans, Verdana, sans-serif" font-size="11">',
            f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
            f'<text x="{MARGIN}" y="22" font-size="15">{escape(title)}</text>',
            f'<text x="{MARGIN}" y="42" fill="#555">step, phase, layer, kernel: width is time; '
            f"{profile.step_ms:.2f} ms a step, kernels {profile.kernel_ms:.2f} ms</text>",
            *body,
            *legend(HEAD + sum(ROWS) + 14),
            "</svg>\n",
        ]
    )


def boxes(profile: Profile) -> Box:
    """The tree of a profile: phases and layers in the order of their work, kernels largest first, idle time last."""
    layers = {layer.name: layer for layer in profile.layers}
    whole = profile.kernel_ms + profile.idle_ms
    parts: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(float)))
    for item in profile.items:
        parts[item.phase or "unattributed"][item.layer or item.phase or "unattributed"][item.kernel] += item.ms
    order = [*profile.phases, "unattributed"]
    root = Box("step", whole, PLAIN, f"step: {whole:.3f} ms")
    for phase in sorted(parts, key=order.index):
        below = [layer_box(name, kernels, layers.get(name), phase, whole) for name, kernels in parts[phase].items()]
        root.below.append(parent_box(phase, below, PLAIN, whole, ""))
    if profile.idle_ms > 0:
        root.below.append(Box("idle", profile.idle_ms, IDLE, tip("idle", profile.idle_ms, whole)))
    return root


def layer_box(name: str, kernels: dict[str, float], layer: Layer | None, phase: str, whole: float) -> Box:
    """One layer in one phase, with its kernels."""
    passes = phase in ("forward", "backward")
    color = COLORS[layer.bound] if layer and passes else PLAIN
    below = [Box(kernel, ms, color, tip(f"{name}: {kernel}", ms, whole)) for kernel, ms in kernels.items()]
    below.sort(key=lambda box: -box.ms)
    return parent_box(name, below, color, whole, details(layer) if layer and passes else "")


def parent_box(name: str, below: list[Box], color: str, whole: float, more: str) -> Box:
    """A box around others, as wide as all of them."""
    ms = sum(box.ms for box in below)
    return Box(name, ms, color, tip(name, ms, whole) + more, below)


def tip(name: str, ms: float, whole: float) -> str:
    return f"{name}: {ms:.3f} ms, {100 * ms / whole:.1f} % of the step"


def details(layer: Layer) -> str:
    """The figures of a layer, for its tooltip."""
    shape = "×".join(map(str, layer.output or ())) or "unknown"
    return (
        f"\n{layer.kind}, output {shape}, {layer.parameters:,} parameters\nforward {layer.forward_ms:.3f} ms, "
        f"backward {layer.backward_ms:.3f} ms, update {layer.optimizer_ms:.3f} ms\n{layer.flops / 1e9:.3g} GFLOP, "
        f"{layer.bytes / 1e6:.3g} MB; {layer.tflops:.3g} TFLOP/s, {layer.gb_per_s:.3g} GB/s\n"
        f"{BOUNDS[layer.bound]}, {100 * layer.roofline_share:.0f} % of the roofline"
    )


def drawn(box: Box, x: float, level: int, scale: float) -> Iterable[str]:
    """The box and all below it, as SVG elements."""
    width, height, y = box.ms * scale, ROWS[level], HEAD + sum(ROWS[:level])
    if width < NARROWEST:
        return
    yield f'<g><title>{escape(box.tip)}</title><rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{height - 1}" '
    yield f'fill="{box.color}" stroke="white" stroke-width="0.5"/>{label(box.name, x, y, width, height)}</g>'
    for child in box.below:
        yield from drawn(child, x, level + 1, scale)
        x += child.ms * scale


def label(name: str, x: float, y: float, width: float, height: float) -> str:
    """A name inside its box: level where it fits, else upright, as much of it as there is room for; or nothing."""
    if len(name) * LETTER + 6 <= width:
        return f'<text x="{x + 3:.2f}" y="{y + 17}">{escape(name)}</text>'
    letters = int((height - 8) / LETTER)
    if width < LINE or letters < 5:
        return ""
    shown = name if len(name) <= letters else name[: letters - 1] + "…"
    across, down = x + width / 2 + 4, y + height - 5
    return f'<text transform="translate({across:.2f} {down}) rotate(-90)">{escape(shown)}</text>'


def legend(y: float) -> Iterable[str]:
    """What the colours mean."""
    x = float(MARGIN)
    for color, text in [*((COLORS[name], text) for name, text in BOUNDS.items()), (PLAIN, "other"), (IDLE, "idle")]:
        yield f'<rect x="{x:.0f}" y="{y}" width="14" height="14" fill="{color}" stroke="#999"/>'
        yield f'<text x="{x + 19:.0f}" y="{y + 11}">{text}</text>'
        x += 40 + LETTER * len(text)
