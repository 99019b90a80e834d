"""The parts of a page that say what a network gets right and wrong: by class, by pair of classes, by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from torch import Tensor

from fastcifar.cli.display.chart import Element, Plot, draw
from fastcifar.cli.display.confusion import MOST_CLASSES, most_confused
from fastcifar.cli.display.html import Cell, Part, inline, table
from fastcifar.cli.display.pixels import figure, figures, image
from fastcifar.cli.display.screen import percent
from fastcifar.data.coarse import COARSE_NAMES, coarse_labels
from fastcifar.model import predict
from fastcifar.stats import wilson_interval

LISTED_PAIRS = 25
MISTAKES = 24  # images
UNLABELLED = 60  # images
LIKELIEST = 3  # classes of an image
CELL, LETTER = 38, 7.5  # pixels: side of a cell of the matrix, width of a letter
MOST_LETTERS = 18  # of a class beside the matrix


@dataclass(frozen=True)
class Evaluated:
    """Images that a network gave logits, float32 (N, classes); labels, int64 (N,), and pixels, uint8 (N, 3, 32, 32),
    where they are known, and what the images are called, where they have names."""

    classes: Sequence[str]
    logits: Tensor
    labels: Tensor | None = None
    images: Tensor | None = None
    names: Sequence[str] = ()

    def likeliest(self, row: int) -> list[tuple[str, float]]:
        """The likeliest classes of one image with their probabilities."""
        best = self.logits[row].softmax(0).topk(min(LIKELIEST, len(self.classes)))
        numbers: list[int] = best.indices.tolist()
        return [(self.classes[i], p) for i, p in zip(numbers, best.values.tolist(), strict=True)]


def evaluation_parts(found: Evaluated) -> list[Part]:
    """All parts for images with labels, or for images without."""
    if found.labels is None:
        return unlabelled_part(found)
    matrix = predict.confusion(found.logits, found.labels)
    return [confusion_part(matrix, found.classes), class_part(matrix, found.classes), *mistakes_part(found)]


def superclass_parts(found: Evaluated) -> list[Part]:
    """The same of the superclasses of CIFAR-100, without the images, for images with labels."""
    assert found.labels is not None
    groups = coarse_labels(found.classes)
    return evaluation_parts(Evaluated(COARSE_NAMES, predict.group_logits(found.logits, groups), groups[found.labels]))


def confusion_part(matrix: list[list[int]], classes: Sequence[str]) -> Part:
    """The confusion matrix, and the pairs of classes confused most; of many classes the pairs alone."""
    pairs = most_confused(matrix, classes)
    title = "No image is taken for one of another class"
    if pairs:
        worst = pairs[0]
        title = f"Most often {worst.true} is taken for {worst.taken_for}: {worst.images:,} images"
    rows: list[list[Cell]] = [
        [pair.true, pair.taken_for, (f"{pair.images:,}", pair.images), (percent(pair.share), pair.share)]
        for pair in pairs[:LISTED_PAIRS]
    ]
    listed = table(["true class", "taken for", "images", "share of the class"], rows) if rows else Markup("")
    if len(classes) > MOST_CLASSES:
        note = (
            f"The {len(rows)} pairs of {len(pairs):,} that are confused at all; {len(classes)} classes make no matrix."
        )
        return Part(title, listed, note)
    picture = inline(confusion_picture(matrix, classes))
    note = (
        "A row for each true class, a column for what its images were taken for; numbers count images. Blue: the share "
        "of the class; vermilion: the share, relative to that of the worst mistake."
    )
    return Part(title, picture + Markup("<h3>The pairs confused most</h3>\n") + listed, note)


def confusion_picture(matrix: list[list[int]], classes: Sequence[str]) -> Element:
    """A confusion matrix as a picture."""
    margin = 12 + LETTER * min(MOST_LETTERS, max(map(len, classes)))
    width = margin + CELL * len(classes) + margin * 0.7  # the last heading leans to the right
    height = margin + CELL * len(classes) + 4
    size = {"viewBox": f"0 0 {width:g} {height:g}", "width": f"{width:g}", "height": f"{height:g}"}
    svg = Element("svg", {**size, "role": "img", "aria-label": "confusion matrix"})
    worst = max((pair.share for pair in most_confused(matrix, classes)), default=1.0)
    groups = [draw(svg, "g", {"class": series}) for series in ("s0", "s1")]
    for i, (name, row) in enumerate(zip(classes, matrix, strict=True)):
        middle = margin + CELL * (i + 0.5)
        shown = name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…"
        heading = {"transform": f"translate({middle:g} {margin - 8:g}) rotate(-45)"}
        draw(svg, "text", {"x": margin - 8, "y": middle + 4, "text-anchor": "end"}, shown)
        draw(svg, "text", {**heading}, shown)
        for j, count in enumerate(row):
            share = count / max(1, sum(row))
            corner = {"x": margin + CELL * j, "y": margin + CELL * i, "width": CELL, "height": CELL}
            depth = 0.6 * share / (1 if i == j else worst)  # no deeper: the figures stay legible
            box = draw(groups[i != j], "rect", {"class": "bar", **corner, "fill-opacity": depth})
            tip = f"{name} taken for {classes[j]}: {count:,} of {sum(row):,} images ({100 * share:.1f} %)"
            draw(box, "title", text=tip)
            if count:
                place: dict[str, str | float] = {
                    "x": margin + CELL * (j + 0.5),
                    "y": middle + 4,
                    "pointer-events": "none",
                }
                draw(svg, "text", {**place, "text-anchor": "middle"}, str(count))
    return svg


def class_part(matrix: list[list[int]], classes: Sequence[str]) -> Part:
    """The accuracy of each class with its interval, the worst first."""
    order = sorted((i for i, row in enumerate(matrix) if any(row)), key=lambda i: matrix[i][i] / sum(matrix[i]))
    worst, best = order[0], order[-1]
    shares = {i: matrix[i][i] / sum(matrix[i]) for i in order}
    title = f"{classes[worst]} is recognised least often ({percent(shares[worst])}), {classes[best]} most often"
    if len(order) == 1 or shares[worst] == shares[best]:
        title = f"All classes are recognised equally often: {percent(shares[best])}"
    shown = order[:MOST_CLASSES]
    intervals = {i: wilson_interval(matrix[i][i], sum(matrix[i])) for i in order}
    ends = [100 * end for i in shown for end in intervals[i]]
    picture = Plot(
        "accuracy by class", ("accuracy, %", ends), height=70 + 36 * len(shown), rows=[classes[i] for i in shown]
    )
    group = picture.group(0)
    for row, i in enumerate(shown):
        low, high = (100 * end for end in intervals[i])
        tip = (
            f"{classes[i]}: {percent(shares[i])} of {sum(matrix[i]):,} images, 95 % interval {low:.1f} to {high:.1f} %"
        )
        picture.point(group, (100 * shares[i], row), tip, "mean")
        picture.line(group, [(low, row), (high, row)], tip)
    rows = [class_row(matrix, classes, i, intervals[i]) for i in order]
    columns = ["class", "accuracy", "95 % interval", "images", "most often taken for", "of these"]
    note = "Lines are 95 % intervals (Wilson's), which say how much of a difference between classes may be chance."
    if len(shown) < len(order):
        note = f"The picture has the {len(shown)} classes recognised least often, the table all. {note}"
    return Part(title, inline(picture.svg) + table(columns, rows), note)


def class_row(matrix: list[list[int]], classes: Sequence[str], i: int, interval: tuple[float, float]) -> list[Cell]:
    """One class in the table."""
    row, share = matrix[i], matrix[i][i] / sum(matrix[i])
    wrong = [0 if j == i else count for j, count in enumerate(row)]
    most = max(wrong)
    return [
        classes[i],
        (percent(share), share),
        " … ".join(f"{100 * end:.1f}" for end in interval),
        (f"{sum(row):,}", sum(row)),
        classes[wrong.index(most)] if most else "",
        (f"{most:,}", most),
    ]


def mistakes_part(found: Evaluated) -> list[Part]:
    """The images whose wrong class was likeliest; nothing where no pixels are known or nothing is wrong."""
    assert found.labels is not None
    confidence, taken_for = found.logits.softmax(1).max(1)
    wrong = (taken_for != found.labels).nonzero().flatten()
    if found.images is None or not len(wrong):
        return []
    rows: list[int] = wrong[confidence[wrong].argsort(descending=True)][:MISTAKES].tolist()
    shown = [mistake(found, row) for row in rows]
    surest, p = found.likeliest(rows[0])[0]
    title = f"The surest mistake: {found.classes[int(found.labels[rows[0]])]} taken for {surest} with {100 * p:.1f} %"
    note = (
        f"The {len(rows)} of {len(wrong):,} mistakes whose wrong class had the highest probability: in bold the label, "
        "below it the classes that the network found likeliest. Sometimes the label is what is wrong."
    )
    return [Part(title, figures(shown), note)]


def mistake(found: Evaluated, row: int) -> Markup:
    """One image with its label and its likeliest classes."""
    assert found.labels is not None and found.images is not None
    true = found.classes[int(found.labels[row])]
    likely = found.likeliest(row)
    words = f"{true}, taken for {likely[0][0]}"
    return figure([image(found.images[row], 96, words, name_of(found, row))], true, probabilities(likely))


def name_of(found: Evaluated, row: int) -> str:
    """What an image is called: its file, else its number."""
    return found.names[row] if found.names else f"image {row}"


def probabilities(likely: Sequence[tuple[str, float]]) -> list[str]:
    """Classes with their probabilities."""
    return [f"{name} {100 * p:.1f} %" for name, p in likely]


def unlabelled_part(found: Evaluated) -> list[Part]:
    """Images without labels, the least certain first."""
    if found.images is None:
        return []
    confidence = found.logits.softmax(1).amax(1)
    rows: list[int] = confidence.argsort()[:UNLABELLED].tolist()
    shown = []
    for row in rows:
        likely = found.likeliest(row)
        picture = image(found.images[row], 96, f"taken for {likely[0][0]}", name_of(found, row))
        shown.append(figure([picture], likely[0][0], [*probabilities(likely), name_of(found, row)]))
    which = f"{len(rows)} least certain of {len(confidence):,} images" if len(rows) < len(confidence) else "all images"
    title = f"{found.likeliest(rows[0])[0][0]} is the least certain answer: {percent(float(confidence[rows[0]]))}"
    return [Part(title, figures(shown), f"The {which}, the least certain first, with their likeliest classes.")]
