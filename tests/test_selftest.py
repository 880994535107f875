"""The self-test's steps: it stops where the bound is broken, and reports what it saw."""

from __future__ import annotations

from mlperf_exp.selftest import selftest


def test_it_stops_at_the_first_rate_beyond_the_bound() -> None:
    answer = selftest(bound_ms=0.0, seconds=0.3, rates=(500, 1000, 2000))
    for mode in ("tokens", "no_tokens"):
        assert answer[mode]["trusted_qps"] is None
        assert [step["target_qps"] for step in answer[mode]["steps"]] == [500]
        assert answer[mode]["steps"][0]["added_p99_ms"] > 0


def test_it_names_the_highest_rate_within_the_bound() -> None:
    answer = selftest(bound_ms=1e6, seconds=0.3, rates=(500, 1000))
    for mode in ("tokens", "no_tokens"):
        assert answer[mode]["trusted_qps"] == 1000
        assert [step["errors"] for step in answer[mode]["steps"]] == [0, 0]
