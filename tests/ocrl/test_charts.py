"""Charts lie where their values say."""

import math
import re

from ocrl.charts import dot_chart, line_chart
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
