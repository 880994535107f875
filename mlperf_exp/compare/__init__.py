"""Many runs side by side: one self-contained page, the same as Markdown and CSV, and regressions against a baseline.

    find.py         folders, or a filter for MLflow -> runs, and what was left out and why
    runs.py         result.json -> a run as it is compared
    metrics.py      the figures that are compared: names, units, which way is better
    groups.py       runs of one configuration: means and confidence intervals; labels from what differs
    curves.py       Pareto fronts, knees, scaling
    baseline.py     what is worse than a baseline beyond the noise
    differences.py  what differs between any two runs
    svg.py          plots and bars as SVG whose text is text
    drawings.py     the page's charts
    findings.py     the sentences at its end
    view.py         all of that as the page shows it
    page.py         compare.html, compare.md, compare.csv

``python -m mlperf_exp.compare FOLDER...`` is the command.
"""
