"""Figures: what is drawn can be read without colours, and names are text."""

import xml.etree.ElementTree as ElementTree

import numpy as np

from pipelines.report.feature_map import scatter
from pipelines.report.figures import Curve, curves, weighted

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg):
    return ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_curves__names_are_text_and_lines_differ_without_colour():
    names = ["<b>&one", "_two", "$x^2$"]
    svg = curves([Curve(name, [1, 2, 3], [0.1, 0.5, 0.3]) for name in names], "iteration", "mAP")
    assert {*names, "iteration", "mAP"} <= set(texts(svg))
    styles = [
        path.get("style", "") for path in ElementTree.fromstring(svg).iter(f"{SVG}path")
        if "var(--series" in path.get("style", "") and path.get("clip-path")
    ]  # fmt: skip
    dashes = [[part for part in style.split(";") if "dasharray" in part] for style in styles]
    assert len(styles) == 3 and dashes[0] == [] and dashes[1] != dashes[2] != []
    # Colours are the page's; none that a dark page would make unreadable is left.
    assert b"#0101" not in svg and b"#000000" not in svg


def test_scatter__groups_have_names__those_of_none_are_crosses():
    points = np.random.default_rng(0).standard_normal((40, 2))
    groups = np.arange(30) % 3 - 1
    svg = scatter(points, groups, ["first", "second"])
    assert texts(svg) == ["first", "second"]
    crosses = [line for line in svg.splitlines() if b"<use" in line and b"opacity: 0.4" in line]
    assert len(crosses) == 10 and b"#0101" not in svg
    # The last ten points are not drawn, but have their room.
    assert svg != scatter(points[:30], groups, ["first", "second"])
    assert texts(scatter(points, np.arange(40), [str(n) for n in range(40)])) == []


def test_weighted__the_highest_weight_is_the_image_and_the_lowest_an_eighth():
    image = np.full((40, 20, 3), 200, np.uint8)
    weights = np.array([[0.5001], [0.5002]])  # top, bottom
    seen = weighted(image, weights)
    assert seen.shape == image.shape and seen.dtype == np.uint8
    assert (seen[0] == 25).all() and (seen[-1] == 200).all()
    assert (np.diff(seen[:, 0, 0].astype(int)) >= 0).all()
    assert np.array_equal(weighted(image, np.full((2, 1), 0.5)), image)
