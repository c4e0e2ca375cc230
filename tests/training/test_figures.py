"""Figures: the file is an image of what was given, appears whole, and bad input is refused."""

import sys

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from jaxface.errors import UserError
from jaxface.metrics import reliability_bins, roc
from jaxface.training import figures

rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (4, 10, 8, 3), np.uint8)
CELLS = {"normal": [("conv", 0), ("skip", 1), ("pool", 2), ("conv", 0)], "reduce": [("pool", 0), ("pool", 1)]}
SHARES = rng.dirichlet(np.ones(3), (20, 2))
GENUINE, IMPOSTOR = rng.normal(1, 0.5, 300), rng.normal(0, 0.5, 4000)


def draw_all(folder):
    curve = roc(GENUINE, IMPOSTOR)
    return [
        figures.save_roc(
            {"ours": curve, "theirs": (curve.far, curve.tar / 2)}, folder / "roc.png", title="ROC"
        ),
        figures.save_score_histogram(GENUINE, IMPOSTOR, folder / "scores.png", threshold=0.5),
        figures.save_training_curves({"loss": ([1, 2, 3], [2.0, 1.0, 0.5])}, folder / "loss.png", log_y=True),
        figures.save_intervals(
            ["a", "b"], [0.1, -0.2], [0.0, -0.3], [0.2, 0.1], folder / "effects.png", reference=0
        ),
        figures.save_image_rows({"clean": IMAGES, "few": IMAGES[:2, ..., :1]}, folder / "images.png"),
        figures.save_bars(
            {"ours": {"rank 1": 0.9, "rank 5": 0.7}, "theirs": {"rank 1": 0.5, "rank 5": 0.0}},
            folder / "bars.png",
        ),
        figures.save_accuracy_matrix([[0.9, 0.0], [0.5, 0.8]], folder / "tasks.png", title="by task"),
        figures.save_cells(CELLS, folder / "cells.png", title="cells"),
        figures.save_reliability(
            {
                "raw": reliability_bins(GENUINE, GENUINE > 0.8),
                "half": reliability_bins(GENUINE / 2, GENUINE > 0.8),
            },
            folder / "reliability.png",
        ),
        figures.save_shares(SHARES, ["0→2", "1→2"], ["conv", "skip", "none"], folder / "search.png"),
    ]


def test_every_figure_is_a_picture(tmp_path):
    paths = draw_all(tmp_path / "new" / "folder")
    assert sorted(p.name for p in paths) == sorted(p.name for p in (tmp_path / "new" / "folder").iterdir())
    for path in paths:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert min(pixels.shape[:2]) > 200
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_pyplot_is_not_touched(tmp_path):
    before = "matplotlib.pyplot" in sys.modules
    draw_all(tmp_path)
    assert ("matplotlib.pyplot" in sys.modules) == before


LONG = "the method of the paper, procedural people with a hundred classes each: verification/tar@1e-3"


@pytest.mark.parametrize("words", [LONG, LONG.replace(" ", "_"), "short"])
def test_no_text_is_cut_at_an_edge(tmp_path, monkeypatch, words):
    written, write = [], figures.Figure.savefig
    monkeypatch.setattr(
        figures.Figure,
        "savefig",
        lambda self, *rest, **named: written.append(self) or write(self, *rest, **named),
    )
    rows = [f"a condition of many words, minus a baseline {k}" for k in range(3)]
    figures.save_intervals(rows, *np.eye(3)[[0, 2, 0]] * 0, tmp_path / "x.png", xlabel=words, title=words)
    figures.save_training_curves({"a": ([1, 2], [1, 2])}, tmp_path / "x.png", title=words, ylabel=words)
    figures.save_image_rows({words: IMAGES[:1], "b": IMAGES[:2]}, tmp_path / "x.png", title=words)
    figures.save_bars({row: {"rank 1": 0.5} for row in rows}, tmp_path / "x.pdf", title=words)
    assert len(written) == 4
    for figure in written:
        figure.draw_without_rendering()
        shown = [text for text in figure.findobj(Text) if words[:5] in text.get_text()]
        assert shown
        for text in shown:
            box = text.get_window_extent()
            assert (
                box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0 and box.y1 <= figure.bbox.height
            )
            assert " ".join(text.get_text().split()) == words  # nothing is left out
            assert words != "short" or (text.get_text() == words and text.get_fontsize() >= 8)


@pytest.fixture
def drawn(monkeypatch):
    """The axes of what was drawn last, with nothing written."""
    kept = []
    monkeypatch.setattr(figures, "_write", lambda figure, path: kept.append(figure.axes[0]) or path)
    return kept


def test_roc_lines_carry_the_curve(drawn):
    curve = roc(GENUINE, IMPOSTOR)
    figures.save_roc({"ours": curve}, "x.png")
    axes = drawn[0]
    x, y = axes.lines[0].get_data()
    assert axes.get_xscale() == "log"
    assert x[0] == pytest.approx(1 / 4000)
    # Every point drawn is the top of its step.
    np.testing.assert_array_equal(y, [curve.tar[curve.far == far].max() for far in x])
    assert (x[-1], y[-1]) == (1, 1)
    assert len(x) <= figures.MOST_POINTS + 2
    assert axes.get_legend().get_texts()[0].get_text() == "ours"


def test_roc_without_a_point_between_the_corners(drawn):
    figures.save_roc({"nothing": roc(np.ones(4), np.ones(4))}, "x.png")
    assert drawn[0].get_xlim() == (0.1, 1)


def area(patch):
    heights, edges, baseline = patch.get_data()
    assert baseline == 0
    return np.sum(heights * np.diff(edges))


def test_histogram_has_unit_area_and_its_threshold(drawn):
    figures.save_score_histogram(GENUINE, IMPOSTOR, "x.png", threshold=0.4, bins=30)
    axes = drawn[0]
    assert [area(patch) for patch in axes.patches] == pytest.approx([1, 1])
    assert axes.lines[0].get_xdata()[0] == 0.4
    figures.save_score_histogram(np.ones(3), np.ones(5), "x.png")
    assert [area(patch) for patch in drawn[1].patches] == pytest.approx([1, 1])


def test_training_curves_leave_gaps(drawn):
    steps, values = [0, 1, 2, 3], [1.0, np.nan, -1.0, 2.0]
    figures.save_training_curves(
        {"a": (steps, values), "b": ([5], [1.0])}, "x.png", ylabel="loss", log_y=True
    )
    np.testing.assert_array_equal(drawn[0].lines[0].get_ydata(), [1, np.nan, np.nan, 2])
    assert drawn[0].lines[1].get_marker() == "o"
    figures.save_training_curves({"a": (steps, values)}, "x.png")
    np.testing.assert_array_equal(drawn[1].lines[0].get_ydata(), [1, np.nan, -1, 2])


def test_long_curves_are_thinned_and_keep_their_ends(drawn):
    steps = np.arange(100_000.0)
    figures.save_training_curves({"loss": (steps, steps)}, "x.png")
    x = drawn[0].lines[0].get_xdata()
    assert x.size <= figures.MOST_POINTS + 2
    assert (x[0], x[-1]) == (0, 99_999)


def test_the_first_interval_is_at_the_top(drawn):
    figures.save_intervals(
        ["first", "last"], [1.0, 2.0], [0.5, 1.0], [1.5, 4.0], "x.png", xlabel="gain", reference=0
    )
    axes = drawn[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["first", "last"]
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[1, 1], [2, 0]])
    ends = [sorted(segment[:, 0]) for segment in axes.collections[0].get_segments()]
    np.testing.assert_allclose(ends, [[0.5, 1.5], [1, 4]])


def test_a_failed_drawing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "scores.png"
    figures.save_score_histogram(GENUINE, IMPOSTOR, path)
    before = path.read_bytes()

    def fail(self, name, **_):
        with open(name, "wb") as file:
            file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figures.Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        figures.save_score_histogram(IMPOSTOR, GENUINE, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["scores.png"]


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda p: figures.save_roc({}, p), UserError, "curves: nothing"),
        (lambda p: figures.save_roc({"a": ([0.0, 2.0], [0.0, 1.0])}, p), UserError, "rates in"),
        (lambda p: figures.save_roc({"a": ([0.0, 0.0], [0.0, 1.0])}, p), UserError, "rising to more than 0"),
        (lambda p: figures.save_roc({"a": ([1.0, 0.0], [1.0, 0.0])}, p), UserError, "far rising"),
        (lambda p: figures.save_roc({"a": ([0.0, 1.0], [1.0])}, p), ValueError, "one shape"),
        (lambda p: figures.save_score_histogram([], [1.0], p), UserError, "genuine"),
        (lambda p: figures.save_score_histogram([1.0], [np.nan], p), UserError, "impostor"),
        (lambda p: figures.save_training_curves({}, p), UserError, "series"),
        (lambda p: figures.save_training_curves({"a": ([], [])}, p), UserError, "at least one point"),
        (lambda p: figures.save_intervals([], [], [], [], p), UserError, "names"),
        (lambda p: figures.save_intervals(["a"], [1.0], [2.0], [3.0], p), UserError, "interval"),
        (
            lambda p: figures.save_intervals(["a"], [1.0, 2.0], [0.0, 0.0], [3.0, 3.0], p),
            ValueError,
            "one length",
        ),
        (lambda p: figures.save_score_histogram([1.0], [0.0], p.with_suffix(".txt")), UserError, "suffix"),
    ],
)
def test_bad_input_is_refused(tmp_path, call, kind, message):
    with pytest.raises(kind, match=message):
        call(tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_curves_over_something_else_have_a_tick_at_every_point(drawn):
    series = {"a": ([7, 14, 112], [0.9, 0.95, 0.99]), "b": ([7, 28], [0.5, 0.9])}
    figures.save_training_curves(series, "x.png", xlabel="pixels", log_x=True)
    axes = drawn[0]
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "pixels"
    np.testing.assert_array_equal(axes.get_xticks(), [7, 14, 28, 112])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["7", "14", "28", "112"]
    assert {line.get_marker() for line in axes.lines} == {"o"}


def test_images_are_shown_in_their_rows(tmp_path):
    red, blue = (np.tile(np.uint8(color), (1, 10, 10, 1)) for color in ([200, 0, 0], [0, 0, 200]))
    path = figures.save_image_rows({"red": red, "blue": blue}, tmp_path / "rows.png")
    with Image.open(path) as image:
        shown = np.asarray(image.convert("RGB")).astype(int)
    rows = [np.flatnonzero((shown == color).all(-1).any(1)) for color in ([200, 0, 0], [0, 0, 200])]
    assert rows[0].size > 50 < rows[1].size and rows[0].max() < rows[1].min()


def test_rows_and_bars_refuse_what_they_cannot_show(tmp_path):
    path = tmp_path / "none.png"
    with pytest.raises(UserError, match="rows: nothing to draw"):
        figures.save_image_rows({}, path)
    with pytest.raises(ValueError, match="needs uint8"):
        figures.save_image_rows({"a": IMAGES.astype(float)}, path)
    with pytest.raises(ValueError, match="of one size"):
        figures.save_image_rows({"a": IMAGES, "b": IMAGES[:, :5]}, path)
    with pytest.raises(UserError, match="groups: nothing to draw"):
        figures.save_bars({}, path)
    with pytest.raises(UserError, match="groups: 'a' needs values in"):
        figures.save_bars({"a": {"x": 1.2}}, path)
    with pytest.raises(ValueError, match="b: needs"):
        figures.save_bars({"a": {"x": 0.2}, "b": {"y": 0.2}}, path)
    with pytest.raises(UserError, match="panels: nothing to draw"):
        figures.save_layers({}, path)
    with pytest.raises(UserError, match="panels: 'cycles' needs values from 0"):
        figures.save_layers({"cycles": {"a": np.array([1.0, -1.0])}}, path)
    with pytest.raises(ValueError, match="panels: need one number of layers"):
        figures.save_layers({"cycles": {"a": np.ones(2), "b": np.ones(3)}}, path)
    assert not path.exists()


def test_the_matrix_of_tasks_is_drawn_below_its_diagonal(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(figures, "_write", lambda figure, path: drawn.append(figure))
    figures.save_accuracy_matrix([[0.9, 0.3, 0.1], [0.7, 0.8, 0.2], [0.6, 0.85, 0.95]], tmp_path / "x.png")
    table, lines = drawn[0].axes
    shown = np.asarray(table.images[0].get_array().filled(np.nan))
    assert np.isnan(shown[np.triu_indices(3, 1)]).all() and shown[2, 0] == 0.6
    assert len(table.texts) == 6
    values = {line.get_label(): line.get_ydata() for line in lines.lines}
    np.testing.assert_allclose(values["tasks seen"], [0.9, 0.75, 0.8])
    np.testing.assert_allclose(values["newest task"], [0.9, 0.8, 0.95])
    np.testing.assert_allclose(values["forgotten of earlier ones"], [np.nan, 0.2, (0.3 - 0.05) / 2])


def test_layers_stand_side_by_side_in_panels(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(figures, "_write", lambda figure, path: drawn.append(figure) or path)
    panels = {
        "cycles": {"a": np.array([3, 1]), "b": np.array([2, 2])},
        "weights": {"weights": np.array([5, 0])},
    }
    figures.save_layers(panels, tmp_path / "layers.png")
    cycles, weights = drawn[0].axes
    assert [patch.get_data().values.tolist() for patch in cycles.patches] == [[3, 1], [2, 2]]
    assert cycles.patches[0].get_data().edges.tolist() == [0.5, 1.5, 2.5]
    assert (cycles.get_ylabel(), weights.get_ylabel(), weights.get_xlabel()) == ("cycles", "weights", "layer")


def test_cells_and_shares_show_what_they_are_given(monkeypatch, tmp_path):
    written = []
    monkeypatch.setattr(figures, "_write", lambda figure, path: written.append(figure) or path)
    figures.save_cells(CELLS, tmp_path / "c.png")
    normal, reduce = written[0].axes
    texts = [text.get_text() for text in normal.texts]
    assert [texts.count(name) for name in ("conv", "skip", "pool")] == [2, 1, 1]
    assert {"c-2", "c-1", "2", "3", "out"} <= set(texts)
    assert "3" not in [text.get_text() for text in reduce.texts]
    figures.save_shares(SHARES, ["a", "b"], ["x", "y", "z"], tmp_path / "s.png")
    panel = written[1].axes[1]
    assert panel.get_title() == "b" and len(panel.collections) == 3
    top = panel.collections[0].get_paths()[0].vertices[:, 1].max()  # the lowest band ends at its share
    assert top == pytest.approx(SHARES[:, 1, 0].max())
    with pytest.raises(UserError, match="cells: normal node 2 needs an earlier node, got 2"):
        figures.save_cells({"normal": [("conv", 2), ("conv", 0)]}, tmp_path / "c.png")
    with pytest.raises(UserError, match="cells: nothing to draw"):
        figures.save_cells({}, tmp_path / "c.png")
    with pytest.raises(UserError, match=r"shares: needs values in \[0, 1\]"):
        figures.save_shares(2 * SHARES, ["a", "b"], ["x", "y", "z"], tmp_path / "s.png")
    with pytest.raises(ValueError, match=r"shares: needs \[T, 1, 3\]"):
        figures.save_shares(SHARES, ["a"], ["x", "y", "z"], tmp_path / "s.png")
