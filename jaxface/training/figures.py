"""Figures of a run: ROC curves, score histograms, training curves, intervals.

Every function takes arrays and a path, draws without a display or any global state, and returns the path. The
suffix picks the format (.png, .pdf, .svg). The file appears whole or not at all.
"""

import os
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from jaxface.checks import real_array
from jaxface.errors import UserError

GENUINE, IMPOSTOR = "tab:blue", "tab:orange"
MOST_POINTS = 2000  # per curve; more cannot be seen, and an SVG of a million points cannot be opened


def save_roc(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]], path: str | os.PathLike, *, title: str = ""
) -> Path:
    """ROC curves over a logarithmic false accept rate.

    Args:
      curves: name -> (far [K], tar [K], ...) with far rising in [0, 1], e.g. the result of
        `jaxface.metrics.roc`. FAR 0 lies outside a logarithmic axis: the curve starts at the smallest
        positive rate.
      path: file to write. title: above the axes.

    Raises:
      UserError: no curve, rates outside [0, 1], or a FAR that falls or is 0 throughout.
      ValueError: far and tar differ in shape.
    """
    _some("curves", curves)
    figure, axes = _axes(title, "false accept rate", "true accept rate")
    lowest = 1.0
    for name, (far, tar, *_) in curves.items():
        far, tar = _same_length(name, far, tar)
        inside = (far >= 0) & (far <= 1) & (tar >= 0) & (tar <= 1)
        if not inside.all() or (np.diff(far) < 0).any() or not far.any():
            raise UserError(f"curves: {name!r} needs rates in [0, 1], far rising to more than 0")
        # Of the points with one FAR the last has the largest TAR: that is the height of the step.
        kept = np.flatnonzero((far > 0) & (np.append(far[1:], np.inf) > far))
        far, tar = far[kept], tar[kept]
        lowest = min(lowest, float(far[0]))
        shown = _thin(np.log(far))
        axes.plot(far[shown], tar[shown], label=name, drawstyle="steps-post")
    axes.set_xscale("log")
    axes.set_xlim(lowest if lowest < 1 else 0.1, 1)
    axes.set_ylim(0, 1.01)
    axes.legend(loc="lower right")
    return _write(figure, path)


def save_score_histogram(
    genuine: np.ndarray,
    impostor: np.ndarray,
    path: str | os.PathLike,
    *,
    threshold: float | None = None,
    bins: int = 80,
    names: tuple[str, str] = ("genuine", "impostor"),
    xlabel: str = "similarity",
    title: str = "",
) -> Path:
    """Distributions of genuine and impostor similarities, each of unit area, with the decision threshold.

    Args:
      genuine: [G] float. impostor: [I] float. bins: common bins over both.
      names, xlabel: what the two sets and the scores are called.
      threshold: drawn as a dashed line where given.

    Raises:
      UserError: an empty set or a value that is not finite.
    """
    genuine, impostor = _values("genuine", genuine), _values("impostor", impostor)
    figure, axes = _axes(title, xlabel, "density")
    low, high = min(genuine.min(), impostor.min()), max(genuine.max(), impostor.max())
    margin = 0.0 if high > low else 0.5  # identical scores still need a bin of some width
    edges = np.linspace(low - margin, high + margin, bins + 1)
    for name, values, color in ((names[1], impostor, IMPOSTOR), (names[0], genuine, GENUINE)):
        density, _ = np.histogram(values, edges, density=True)
        axes.stairs(density, edges, fill=True, alpha=0.6, color=color, label=f"{name} ({values.size:,})")
    if threshold is not None:
        axes.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:.3f}")
    axes.legend()
    return _write(figure, path)


def save_training_curves(
    series: Mapping[str, tuple[np.ndarray, np.ndarray]],
    path: str | os.PathLike,
    *,
    xlabel: str = "step",
    ylabel: str = "",
    log_x: bool = False,
    log_y: bool = False,
    title: str = "",
) -> Path:
    """Values over steps, one line per name; gaps where a value is not finite.

    Args:
      series: name -> (steps [K], values [K]); with another `xlabel` over something else, rising.
      xlabel, ylabel, title: texts. log_x: logarithmic steps, each of which gets a tick: for a dozen of them.
      log_y: logarithmic values; those <= 0 become gaps.

    Raises:
      UserError: nothing to draw. ValueError: steps and values differ in shape.
    """
    _some("series", series)
    figure, axes = _axes(title, xlabel, ylabel)
    ticks = set()
    for name, (steps, values) in series.items():
        steps, values = _same_length(name, steps, values)
        values = np.where(np.isfinite(values) & ((values > 0) | (not log_y)), values, np.nan)
        shown = _thin(steps)
        # A single evaluation is a point, which a line alone would not show.
        axes.plot(steps[shown], values[shown], label=name, marker="o" if log_x or shown.size == 1 else None)
        ticks.update(steps[shown])
    if log_x:
        axes.set_xscale("log")
        axes.set_xticks(sorted(ticks), [f"{tick:g}" for tick in sorted(ticks)])
        axes.set_xticks([], minor=True)
    if log_y:
        axes.set_yscale("log")
    axes.legend()
    return _write(figure, path)


def save_intervals(
    names: Sequence[str],
    means: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    path: str | os.PathLike,
    *,
    xlabel: str = "",
    reference: float | None = None,
    title: str = "",
) -> Path:
    """Means with their intervals, one row per comparison, the first at the top.

    Args:
      names: [K] texts. means, lower, upper: [K] float with lower <= mean <= upper, e.g. the ends of 95 %
        intervals.
      xlabel: what the means are, and of which interval. reference: drawn as a dashed line, e.g. 0 for
        differences.

    Raises:
      UserError: nothing to draw, a value that is not finite, or a mean outside its interval.
      ValueError: lengths differ.
    """
    _some("names", names)
    means, lower, upper = (_values(n, v) for n, v in (("means", means), ("lower", lower), ("upper", upper)))
    if not len(names) == means.size == lower.size == upper.size:
        raise ValueError(
            "names, means, lower, upper: need one length, "
            f"got {len(names)}, {means.size}, {lower.size}, {upper.size}"
        )
    if not ((lower <= means) & (means <= upper)).all():
        raise UserError("means: each needs to lie in its interval [lower, upper]")
    figure, axes = _axes(title, xlabel, "", height=1.4 + 0.4 * len(names))
    rows = np.arange(len(names))[::-1]
    axes.errorbar(means, rows, xerr=[means - lower, upper - means], fmt="o", capsize=4, color=GENUINE)
    if reference is not None:
        axes.axvline(reference, color="black", linestyle="--", linewidth=1)
    axes.set_yticks(rows, names)
    axes.set_ylim(-0.5, len(names) - 0.5)
    return _write(figure, path)


def save_image_rows(rows: Mapping[str, np.ndarray], path: str | os.PathLike, *, title: str = "") -> Path:
    """Rows of images of one size, each row with its name above.

    Args:
      rows: name -> [K, H, W, C] uint8, C 1 or 3; the rows may differ in length.
      path: file to write. title: above all.

    Raises:
      UserError: nothing to draw. ValueError: images that are not uint8 [K, H, W, 1 or 3], or of different sizes.
    """
    _some("rows", rows)
    shapes = set()
    for name, images in rows.items():
        if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
            raise ValueError(f"{name}: needs uint8 [K, H, W, 1 or 3], got {images.dtype} {images.shape}")
        _some("rows", images)
        shapes.add(images.shape[1:3])
    if len(shapes) > 1:
        raise ValueError(f"rows: need images of one size, got {sorted(shapes)}")
    height, width = shapes.pop()
    longest = max(map(len, rows.values()))
    figure = Figure(figsize=(1.2 * longest, len(rows) * (1.2 * height / width + 0.3)), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title)
    for axes, (name, images) in zip(
        figure.subplots(len(rows), squeeze=False)[:, 0], rows.items(), strict=True
    ):
        gaps = np.full((height, longest * (width + 1) - 1, 3), 255, np.uint8)
        for k, image in enumerate(images):
            gaps[:, k * (width + 1) : k * (width + 1) + width] = image
        axes.imshow(gaps, interpolation="nearest")
        axes.set_title(name, fontsize="small", loc="left")
        axes.set_axis_off()
    return _write(figure, path)


def save_bars(
    groups: Mapping[str, Mapping[str, float]], path: str | os.PathLike, *, xlabel: str = "", title: str = ""
) -> Path:
    """Shares as horizontal bars, a group of them for every method, the first at the top.

    Args:
      groups: method -> quantity -> value in [0, 1]; the same quantities for all, one color each.
      path: file to write. xlabel, title: texts.

    Raises:
      UserError: nothing to draw or a value outside [0, 1]. ValueError: methods with other quantities than the first.
    """
    _some("groups", groups)
    quantities = list(next(iter(groups.values())))
    _some("groups", quantities)
    for name, values in groups.items():
        if list(values) != quantities:
            raise ValueError(f"{name}: needs {quantities}, got {list(values)}")
        if not all(0 <= value <= 1 for value in values.values()):
            raise UserError(f"groups: {name!r} needs values in [0, 1]")
    figure, axes = _axes(title, xlabel, "", height=1.4 + 0.22 * len(groups) * (len(quantities) + 0.5))
    rows, thick = np.arange(len(groups))[::-1], 0.8 / len(quantities)
    for k, quantity in enumerate(quantities):
        offset = 0.4 - thick * (k + 0.5)
        axes.barh(rows + offset, [values[quantity] for values in groups.values()], thick, label=quantity)
    axes.set_yticks(rows, list(groups))
    axes.set_xlim(0, 1)
    figure.legend(loc="outside lower center", ncols=len(quantities))
    return _write(figure, path)


def save_class_sizes(
    counts: np.ndarray, accuracy: np.ndarray, path: str | os.PathLike, *, title: str = ""
) -> Path:
    """The accuracy of each class over the number of its training images, on a logarithmic axis.

    Args:
      counts: [C] > 0. accuracy: [C] in [0, 1]; NaN for a class that was not tested.
      path: file to write. title: text.

    Raises:
      UserError: no class, or a count that is not positive. ValueError: lengths that differ.
    """
    counts, accuracy = _same_length("accuracy", counts, accuracy)
    if not (counts > 0).all():
        raise UserError(f"counts: needs positive numbers, got {counts.min():g}")
    figure, axes = _axes(title, "training images of the class", "accuracy")
    axes.plot(counts, accuracy, "o")
    axes.set_xscale("log")
    axes.set_ylim(-0.02, 1.02)
    return _write(figure, path)


def save_confusion(
    counts: np.ndarray, class_names: Sequence[str], path: str | os.PathLike, *, title: str = ""
) -> Path:
    """A confusion matrix as shares of each true class, with the numbers in the cells, and beside it the share that is right.

    Args:
      counts: [C, C] integers ≥ 0, row = true class, column = answer (`jaxface.metrics.confusion_matrix`); a row of zeros is a
        class that does not occur.
      class_names: [C] texts.
      path: file to write. title: above all.

    Raises:
      UserError: nothing to draw or a negative count. ValueError: another shape than [C, C] for the names.
    """
    counts = np.asarray(counts)
    _some("class_names", class_names)
    if counts.shape != (len(class_names),) * 2:
        raise ValueError(f"counts: needs {(len(class_names),) * 2}, got {counts.shape}")
    if (counts < 0).any() or not counts.any():
        raise UserError("counts: needs counts from 0, some of them above it")
    total = counts.sum(axis=1, keepdims=True)
    shares = np.where(total > 0, counts / np.maximum(total, 1), 0.0)
    side = 2.0 + 0.55 * len(class_names)
    figure = Figure(figsize=(1.5 * side, side), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title)
    table, bars = figure.subplots(1, 2, width_ratios=(2, 1))
    table.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks, names = range(len(class_names)), list(class_names)
    table.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor")
    table.set_yticks(ticks, names)
    table.set(xlabel="answer", ylabel="truth")
    if len(names) <= 20:  # more numbers cannot be read
        for (row, column), share in np.ndenumerate(shares):
            color = "white" if share > 0.5 else "black"
            table.text(column, row, f"{share:.2f}", ha="center", va="center", color=color, fontsize="small")
    bars.barh(ticks, np.diag(shares), color=GENUINE)
    bars.set_yticks(ticks, names)
    bars.invert_yaxis()
    bars.set_xlim(0, 1)
    bars.set_xlabel("accuracy of each class")
    bars.grid(alpha=0.3, axis="x")
    return _write(figure, path)


def save_accuracy_matrix(accuracy: np.ndarray, path: str | os.PathLike, *, title: str = "") -> Path:
    """What is known of every task after each session, with the numbers in the cells, and beside it how that goes on.

    The right part has the mean over the tasks seen so far, the accuracy on the newest of them, and the most that was ever known
    of the earlier ones less what is left of it.

    Args:
      accuracy: [T, T] in [0, 1], A[i, j] on task j after session i; what is above the diagonal is not drawn.
      path: file to write. title: above all.

    Raises:
      UserError: nothing to draw, or an accuracy outside [0, 1]. ValueError: no square matrix.
    """
    matrix = real_array("accuracy", accuracy, ndim=2)
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"accuracy: needs one row and one column for each task, got shape {matrix.shape}")
    if (matrix < 0).any() or (matrix > 1).any():
        raise UserError("accuracy: needs values in [0, 1]")
    count = len(matrix)
    side = 2.5 + 0.4 * count
    figure = Figure(figsize=(2 * side, side), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title)
    table, lines = figure.subplots(1, 2)
    shown = np.where(np.tri(count, dtype=bool), matrix, np.nan)
    table.imshow(shown, cmap="Blues", vmin=0, vmax=1)
    ticks, names = np.arange(count), [str(i + 1) for i in range(count)]
    table.set_xticks(ticks, names)
    table.set_yticks(ticks, names)
    table.set(xlabel="task", ylabel="after session")
    if count <= 20:  # more numbers cannot be read
        for (row, column), value in np.ndenumerate(shown):
            if column <= row:
                color = "white" if value > 0.5 else "black"
                table.text(
                    column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize="small"
                )
    parts = [matrix[: i + 1, : i + 1] for i in range(count)]
    series = {
        "tasks seen": [part[-1].mean() for part in parts],
        "newest task": [part[-1, -1] for part in parts],
        "forgotten of earlier ones": [np.nan] + [_forgotten(part) for part in parts[1:]],
    }
    for name, values in series.items():
        lines.plot(ticks, values, marker="o", label=name)
    lines.set_xticks(ticks, names)
    lines.set_ylim(0, 1.02)
    lines.set_xlabel("after session")
    lines.grid(alpha=0.3)
    lines.legend(fontsize="small")
    return _write(figure, path)


def save_cells(
    cells: Mapping[str, Sequence[tuple[str, int]]],
    path: str | os.PathLike,
    *,
    inputs: int = 2,
    title: str = "",
) -> Path:
    """Cells as graphs, one above the other: inputs at the left, nodes in their order, the output at the right.

    Args:
      cells: name -> (operation, node that it reads), two for each node; nodes are counted from the inputs on.
      path: file to write. inputs: of a cell. title: above all.

    Raises:
      UserError: nothing to draw, or an operation that reads no earlier node.
    """
    _some("cells", cells)
    nodes = max(len(genes) for genes in cells.values()) // 2
    figure = Figure(figsize=(2.4 + 2.2 * nodes, 2.9 * len(cells)), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title)
    for axes, (name, genes) in zip(
        figure.subplots(len(cells), squeeze=False)[:, 0], cells.items(), strict=True
    ):
        _some(name, genes)
        count = inputs + len(genes) // 2
        places = [(0.0, 1.0 - 2.0 * i / max(inputs - 1, 1)) for i in range(inputs)]
        places += [(float(i + 1), 0.55 * (-1) ** i) for i in range(count - inputs)]
        end = (float(count - inputs + 1), 0.0)
        for index, (operation, source) in enumerate(genes):
            node = inputs + index // 2
            if not 0 <= source < node:
                raise UserError(f"cells: {name} node {node} needs an earlier node, got {source}")
            bend = 0.18 if index % 2 else -0.18
            _arrow(axes, places[source], places[node], operation.replace("_", " "), bend)
        for node in range(inputs, count):
            _arrow(axes, places[node], end, "", 0.0)
        labels = [f"c{i - inputs}" for i in range(inputs)] + [str(i) for i in range(inputs, count)] + ["out"]
        for label, (x, y) in zip(labels, [*places, end], strict=True):
            box = {"boxstyle": "round", "facecolor": "white", "edgecolor": GENUINE}
            axes.text(x, y, label, ha="center", va="center", bbox=box)
        axes.set(xlim=(-0.3, end[0] + 0.3), ylim=(-1.4, 1.4))
        axes.set_title(name, fontsize="small", loc="left")
        axes.set_axis_off()
    return _write(figure, path)


def _arrow(axes: Axes, start, end, text: str, bend: float) -> None:
    style = {"arrowstyle": "->", "color": "gray", "shrinkA": 12, "shrinkB": 12}
    style["connectionstyle"] = f"arc3,rad={bend}"
    axes.annotate("", end, start, arrowprops=style)
    if text:
        across = np.array([end[1] - start[1], start[0] - end[0]])
        x, y = 0.45 * np.array(start) + 0.55 * np.array(end) + 0.5 * bend * across
        axes.text(x, y, text, ha="center", va="center", fontsize="x-small", color=IMPOSTOR)


def save_shares(
    shares: np.ndarray, rows: Sequence[str], names: Sequence[str], path: str | os.PathLike, *, title: str = ""
) -> Path:
    """How shares that sum to 1 move over a search, a panel for each row.

    Args:
      shares: [T, R, K] in [0, 1], at T points of the search. rows: [R] texts. names: [K] texts.
      path: file to write. title: above all.

    Raises:
      UserError: nothing to draw, or values outside [0, 1]. ValueError: shapes that do not fit.
    """
    shares = np.asarray(shares, np.float64)
    if shares.ndim != 3 or shares.shape[1:] != (len(rows), len(names)):
        raise ValueError(f"shares: needs [T, {len(rows)}, {len(names)}], got {shares.shape}")
    _some("shares", shares)
    if not ((shares >= 0) & (shares <= 1 + 1e-5)).all():
        raise UserError("shares: needs values in [0, 1]")
    columns = min(5, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(2.0 * columns + 1.6, 1.7 * lines + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title)
    every = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    time = np.linspace(0, 1, len(shares))
    for axes, row, values in zip(every, rows, shares.swapaxes(0, 1), strict=False):
        drawn = axes.stackplot(time, values.T, labels=names)
        axes.set_title(row, fontsize="x-small")
        axes.set(xlim=(0, 1), ylim=(0, 1))
    for axes in every[len(rows) :]:
        axes.set_axis_off()
    figure.legend(drawn, names, loc="outside right upper", fontsize="x-small")
    figure.supxlabel("part of the search", fontsize="small")
    return _write(figure, path)


def save_layers(
    panels: Mapping[str, Mapping[str, np.ndarray]], path: str | os.PathLike, *, title: str = ""
) -> Path:
    """Quantities of a network layer by layer, from the first at the left, one above the other.

    Args:
      panels: quantity -> series -> [L] ≥ 0, one series per machine or form; the quantities may have other series, of one length.
      path: file to write. title: above all.

    Raises:
      UserError: nothing to draw, or a value below 0. ValueError: series that differ in length.
    """
    _some("panels", panels)
    lengths = set()
    for quantity, series in panels.items():
        _some(quantity, series)
        for values in series.values():
            values = _values(quantity, values)
            lengths.add(values.size)
            if (values < 0).any():
                raise UserError(f"panels: {quantity!r} needs values from 0")
    if len(lengths) > 1:
        raise ValueError(f"panels: need one number of layers, got {sorted(lengths)}")
    figure = Figure(figsize=(7.5, 2.2 * len(panels) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title)
    edges = np.arange(lengths.pop() + 1) + 0.5
    every = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, (quantity, series) in zip(every, panels.items(), strict=True):
        for name, values in series.items():
            axes.stairs(
                np.asarray(values, np.float64), edges, label=name, fill=len(series) == 1, linewidth=1.5
            )
        axes.set_ylabel(quantity)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if len(series) > 1:
            axes.legend()
    every[-1].set_xlabel("layer")
    return _write(figure, path)


def save_reliability(
    tables: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]],
    path: str | os.PathLike,
    *,
    title: str = "",
) -> Path:
    """Reliability diagram: how often it is so over the probability that was said, and below how many said so.

    Args:
      tables: name -> (edges [K + 1], confidence [K], frequency [K], counts [K]), of `jaxface.metrics.reliability_bins`;
        NaN where a bin is empty.
      path: file to write. title: above all.

    Raises:
      UserError: nothing to draw, or a probability outside [0, 1]. ValueError: lengths that differ.
    """
    _some("tables", tables)
    figure = Figure(figsize=(5.0, 6.0), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title)
    axes, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    axes.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1)
    for name, (edges, confidence, frequency, counts) in tables.items():
        if not len(confidence) == len(frequency) == len(counts) == len(edges) - 1:
            raise ValueError(
                f"{name}: needs K values for K + 1 edges, got {len(confidence)} and {len(edges)}"
            )
        full = np.asarray(counts) > 0
        values = np.concatenate([np.asarray(confidence)[full], np.asarray(frequency)[full]])
        if not full.any() or not ((values >= 0) & (values <= 1)).all():
            raise UserError(f"tables: {name!r} needs probabilities in [0, 1]")
        axes.plot(np.asarray(confidence)[full], np.asarray(frequency)[full], marker="o", label=name)
        below.stairs(np.asarray(counts) / np.sum(counts), edges, label=name)
    axes.set(ylabel="share that is live", xlim=(0, 1), ylim=(-0.02, 1.02))
    axes.legend()
    below.set(xlabel="probability of live", ylabel="share of tests")
    for part in (axes, below):
        part.grid(alpha=0.3)
    return _write(figure, path)


def _forgotten(part: np.ndarray) -> float:
    """The mean over earlier tasks of the most that was known before the last session less what is left."""
    last = len(part) - 1
    return float(np.mean([part[j:last, j].max() - part[last, j] for j in range(last)]))


def _axes(title: str, xlabel: str, ylabel: str, *, height: float = 4.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.0, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if title:
        figure.suptitle(title)  # over the figure: beside long names of rows, axes are too narrow for it
    axes.grid(alpha=0.3)
    return figure, axes


def _titles(figure: Figure) -> list[Text]:
    """All texts but the ticks': titles, labels and names of rows."""
    ticks = {id(tick) for axes in figure.axes for tick in (*axes.get_xticklabels(), *axes.get_yticklabels())}
    return [text for text in figure.findobj(Text) if text.get_text().strip() and id(text) not in ticks]


def _fit_texts(figure: Figure) -> None:
    """Breaks titles and labels that are cut at an edge into lines; sets them smaller where there is no place to break."""
    for _ in range(8):
        figure.draw_without_rendering()
        fits = True
        for text in _titles(figure):
            box, frame = text.get_window_extent(), figure.bbox
            sides = (box.x0, frame.width - box.x1), (box.y0, frame.height - box.y1)
            upright = text.get_rotation() != 0
            over, size = -min(sides[upright]), (box.height if upright else box.width)
            if over <= 0:
                continue
            fits = False
            share = max(1 - 2 * over / size, 0.3) * 0.98  # a centered text is cut on both sides
            words = " ".join(text.get_text().split())
            longest = max(map(len, text.get_text().splitlines()))
            lines = textwrap.wrap(
                words, max(int(longest * share), 1), break_long_words=False, break_on_hyphens=False
            )
            if max(map(len, lines)) < longest:
                text.set_text("\n".join(lines))
            else:
                text.set_fontsize(text.get_fontsize() * share)
        if fits:
            return


def _write(figure: Figure, path: str | os.PathLike) -> Path:
    path = Path(path)
    supported = figure.canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in supported:
        raise UserError(f"path: needs a suffix among {', '.join(sorted(supported))}, got {path.name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same directory, because a rename is atomic only within one file system.
    handle, temporary = tempfile.mkstemp(suffix=path.suffix, prefix=f".{path.stem}-", dir=path.parent)
    os.close(handle)
    try:
        _fit_texts(figure)
        figure.savefig(temporary, dpi=120)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp's file is private, a result is not
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _thin(position: np.ndarray) -> np.ndarray:
    """Indices of at most about `MOST_POINTS` points, evenly over the drawn axis; both ends stay."""
    if position.size <= MOST_POINTS:
        return np.arange(position.size)
    places = np.searchsorted(position, np.linspace(position[0], position[-1], MOST_POINTS))
    return np.unique(np.concatenate([[0], np.minimum(places, position.size - 1), [position.size - 1]]))


def _some(name: str, values) -> None:
    if len(values) == 0:
        raise UserError(f"{name}: nothing to draw")


def _values(name: str, values) -> np.ndarray:
    return real_array(name, np.ravel(np.asarray(values, np.float64)), ndim=1)


def _same_length(name: str, first, second) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"{name}: needs two arrays of one shape [K], got {first.shape} and {second.shape}")
    if first.size == 0:
        raise UserError(f"{name}: needs at least one point")
    return first, second
