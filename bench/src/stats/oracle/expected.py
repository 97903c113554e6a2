"""Answers of SciPy and statsmodels that bench/src/stats is held against (oracle/mod.rs).

    pip install scipy==1.17.1 statsmodels==0.15.0
    python3 bench/src/stats/oracle/expected.py > bench/src/stats/oracle/expected.json
"""

import itertools
import json
import math
import sys

import numpy as np
import scipy
from scipy import stats
from statsmodels.stats.multitest import multipletests
import statsmodels

rng = np.random.default_rng(20260101)


def tied(values, grid=0.5):
    """On a grid, so that ties and zeros occur."""
    return (np.round(np.asarray(values) / grid) * grid).tolist()


def wilcoxon():
    cases = []
    for n in [3, 5, 6, 7, 8, 9, 10, 12, 15, 20, 25, 40, 50]:
        effects = rng.normal(0.4, 1.0, n).tolist()
        p = stats.wilcoxon(effects, method="exact").pvalue
        cases.append({"effects": effects, "p": p})
    for n in [5, 6, 8, 9, 10, 11]:
        # With ties and zeros: every pattern of signs is counted.
        effects = tied(rng.normal(0.5, 1.0, n))
        some = [e for e in effects if e != 0.0]
        p = stats.wilcoxon(some, method=stats.PermutationMethod(n_resamples=np.inf)).pvalue
        cases.append({"effects": effects, "p": p})
    for n in [51, 80, 200]:
        effects = rng.normal(0.2, 1.0, n).tolist()
        p = stats.wilcoxon(effects, method="asymptotic", correction=True).pvalue
        cases.append({"effects": effects, "p": p})
    return cases


def mann_whitney():
    cases = []
    for m, n in [(1, 4), (3, 3), (4, 6), (6, 6), (5, 9), (12, 12), (12, 6), (20, 30)]:
        a, b = rng.normal(0, 1, m).tolist(), rng.normal(0.8, 1, n).tolist()
        p = stats.mannwhitneyu(a, b, method="exact").pvalue
        cases.append({"a": a, "b": b, "p": p})
    for m, n in [(3, 4), (5, 5), (6, 6), (4, 8)]:
        # With ties: every split is counted. SciPy doubles the smaller tail too.
        a, b = tied(rng.normal(0, 1, m)), tied(rng.normal(0.8, 1, n))
        if len(set(a + b)) == 1:
            continue
        p = stats.mannwhitneyu(a, b, method=stats.PermutationMethod(n_resamples=np.inf)).pvalue
        cases.append({"a": a, "b": b, "p": p})
    for m, n in [(31, 30), (60, 40)]:
        a, b = tied(rng.normal(0, 1, m), 0.1), tied(rng.normal(0.4, 1, n), 0.1)
        p = stats.mannwhitneyu(a, b, method="asymptotic", use_continuity=True).pvalue
        cases.append({"a": a, "b": b, "p": p})
    return cases


def hodges_lehmann():
    """The shift, and the interval that inverts the exact test: its ends are those pairwise shifts
    between which the test does not reject at 5 %."""
    cases = []
    for m, n in [(4, 4), (6, 6), (6, 12), (12, 12), (5, 9)]:
        a, b = rng.normal(0, 1, m), rng.normal(0.8, 1, n)
        shifts = sorted((y - x for x, y in itertools.product(a, b)))
        middles = [(low + high) / 2 for low, high in itertools.pairwise(shifts)]
        kept = [
            at
            for at, shift in enumerate(middles)
            if stats.mannwhitneyu(a + shift, b, method="exact").pvalue > 0.05
        ]
        cases.append({
            "a": a.tolist(), "b": b.tolist(), "shift": float(np.median(shifts)),
            "low": shifts[kept[0]], "high": shifts[kept[-1] + 1],
        })
    return cases


def proportions():
    cases = []
    for k, n in [(0, 1), (1, 1), (0, 4), (4, 4), (1, 10), (3, 30), (0, 30), (29, 30), (50, 100), (7, 1000), (999, 1000)]:
        interval = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
        none = stats.binomtest(0, n, alternative="less").proportion_ci(0.95, method="exact").high
        cases.append({"k": k, "n": n, "low": interval.low, "high": interval.high, "of_none": none})
    return cases


def fisher():
    cases = []
    for k1, n1, k2, n2 in [(0, 5, 5, 5), (1, 12, 6, 12), (3, 40, 0, 44), (7, 7, 3, 9), (20, 200, 45, 210), (2, 6, 2, 6)]:
        p = stats.fisher_exact([[k1, n1 - k1], [k2, n2 - k2]]).pvalue
        cases.append({"k1": k1, "n1": n1, "k2": k2, "n2": n2, "p": p})
    return cases


def holm():
    cases = []
    for n in [1, 2, 5, 12, 40]:
        p = (rng.uniform(0, 1, n) ** 3).tolist()
        cases.append({"p": p, "adjusted": multipletests(p, method="holm")[1].tolist()})
    return cases


def lines():
    cases = []
    for n in [2, 3, 4, 6, 20]:
        x = rng.uniform(0, 50, n)
        y = 12 + 1.4 * x + rng.normal(0, 3, n)
        fit = stats.linregress(x, y)
        points = [[float(a), float(b)] for a, b in zip(x, y)]
        cases.append({"points": points, "base": fit.intercept, "slope": fit.slope})
    return cases


def order_statistics():
    """Of n values, the k-th smallest and the k-th largest enclose the median with at least 95 %."""
    cases = []
    for n in range(1, 61):
        fitting = [k for k in range(1, n // 2 + 1) if 1 - 2 * stats.binom.cdf(k - 1, n, 0.5) >= 0.95]
        cases.append({"n": n, "k": max(fitting, default=0)})
    return cases


def spread():
    cases = []
    for n in [2, 3, 6, 12]:
        values = rng.normal(3, 2, n).tolist()
        usual = float(np.std(values, ddof=1))
        robust = 1.4826 * stats.median_abs_deviation(values)
        cases.append({"values": values, "median": float(np.median(values)), "deviation": max(usual, float(robust))})
    return cases


def planning():
    cases = []
    for deviation, size in [(1.0, 1.0), (0.06, 0.03), (0.2, 0.05), (0.05, 0.02)]:
        z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
        n = math.pi / 2 * (z * deviation / size) ** 2
        cases.append({"deviation": deviation, "size": size, "blocks": max(6, math.ceil(n))})
    return cases


answers = {
    "made_by": f"expected.py with SciPy {scipy.__version__} and statsmodels {statsmodels.__version__}",
    "wilcoxon": wilcoxon(),
    "mann_whitney": mann_whitney(),
    "hodges_lehmann": hodges_lehmann(),
    "proportions": proportions(),
    "fisher": fisher(),
    "holm": holm(),
    "lines": lines(),
    "order_statistics": order_statistics(),
    "spread": spread(),
    "planning": planning(),
}
# A case a line.
sections = [
    f'  {json.dumps(name)}: ' + (json.dumps(cases) if isinstance(cases, str) else "[\n    "
    + ",\n    ".join(json.dumps(case, default=float) for case in cases) + "\n  ]")
    for name, cases in answers.items()
]
sys.stdout.write("{\n" + ",\n".join(sections) + "\n}\n")
