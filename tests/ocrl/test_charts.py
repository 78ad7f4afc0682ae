"""Charts lie where their values say."""

import math
import re

from ocrl.charts import (
    Band,
    Line,
    Spread,
    _ticks,
    band_chart,
    dot_chart,
    interval_chart,
    line_chart,
    scatter_chart,
)
from ocrl.discovery import MODEL


def test_the_curve_has_a_gap_where_there_is_no_value():
    chart = line_chart({MODEL: [0.0, 1.0, math.nan, 1.0]})
    path = re.search(r"d='([^']*)'", chart).group(1)
    # Heights: 0 at the bottom (168), 1 at the top (10).
    assert path == "M34.0 168.0L153.3 10.0M392.0 10.0"
    assert chart.count("<circle") == 3
    assert ">-0.5<" in line_chart({MODEL: [-0.3]})


def test_dots_lie_at_their_values():
    chart = dot_chart({MODEL: [0.0, 1.0, math.nan], "grid": []})
    assert [float(x) for x in re.findall(r"cx='([0-9.]+)'", chart)] == [64.0, 388.0]
    assert "x1='226.0' x2='226.0' y1='17' y2='43'" in chart


def test_a_band_lies_around_its_curve():
    band = Band([0.0, 50_000.0, 100_000.0], [0.0, 5.0, 20.0], [0.0, 2.5, 9], [0, 10, 10], "red")
    options = {"limits": (0.0, 10.0), "levels": {"floor": 5.0}, "x_name": "steps & more"}
    chart = band_chart({"<a>": band}, **options)
    edge, curve = re.findall(r" d='([^']*)'", chart)
    # Heights: 0 at the bottom (168), 10 at the top (10), where the last point is cut off.
    assert curve == "M44.0 168.0L198.0 89.0L352.0 10.0"
    assert edge == "M44.0 168.0L198.0 10.0L352.0 10.0L352.0 25.8L198.0 128.5L44.0 168.0Z"
    assert "class='level' x1='44.0' x2='352.0' y1='89.0' y2='89.0'" in chart
    assert "&lt;a&gt;, 50,000: 5" in chart and "steps &amp; more" in chart
    ticks = re.findall(r"text-anchor='middle'>([^<]*)<", chart)
    assert ticks == ["0", "25k", "50k", "75k", "100k"]
    alone = band_chart({"a": Band([0.0, 1e6], [0.0, 1.0], None, None, "red")}, **options)
    assert alone.count("<path") == 1 and ">1M<" in alone


def test_an_interval_lies_around_its_mean():
    rows = {"a": Spread([0.0, 1.0], 0.5, (0.25, 0.75), "red"), "b": Spread([2.0], 2.0, None, "red")}
    chart = interval_chart(rows, levels={"floor": 0.25}, limits=(0.0, 1.0))
    assert re.findall(r"cx='([0-9.]+)' cy='([0-9]+)'", chart) == [
        *(("12.0", "46"), ("388.0", "46"), ("388.0", "84"))
    ]
    assert "x1='106.0' x2='294.0' y1='46' y2='46'" in chart
    assert "x1='200.0' x2='200.0' y1='38' y2='54'" in chart
    assert "class='level' x1='106.0' x2='106.0' y1='16'" in chart
    assert chart.count("stroke-linecap") == 1


def test_ticks_are_round():
    assert _ticks(0.0, 1.0) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert _ticks(0.0, 200_000.0) == [0, 50_000, 100_000, 150_000, 200_000]
    assert _ticks(-0.3, 0.9) == [-0.25, 0.0, 0.25, 0.5, 0.75]
    assert _ticks(0.0, 14.5) == [0.0, 2.5, 5.0, 7.5, 10.0, 12.5]


def test_points_lie_where_they_say_and_the_line_ends_at_the_edge():
    options = {"axes": ("<x>", "y"), "limits": ((0.0, 1.0), (0.0, 2.0)), "color": "red"}
    points = {"a": (0.0, 0.0), "b & c": (1.0, 2.0), "d": (0.5, 0.5)}
    chart = scatter_chart(points, line=Line(4.0, 0.0), **options)
    dots = re.findall(r"<circle cx='([0-9.]+)' cy='([0-9.]+)'", chart)
    assert dots == [("44.0", "200.0"), ("388.0", "22.0"), ("216.0", "155.5")]
    # It leaves the chart at the top, half way.
    assert "x1='44.0' y1='200.0' x2='216.0' y2='22.0'" in chart
    assert "b &amp; c: 1.000, 2.000" in chart and "&lt;x&gt;" in chart
    without = scatter_chart(points, line=None, **options)
    outside = scatter_chart(points, line=Line(0.0, 3.0), **options)
    assert "class='level'" not in without and "class='level'" not in outside
