"""LoadGen's ``audit.config`` of each compliance test: settings that override those of the run.

Source of the values: mlcommons/inference, ``compliance/TEST0X/**/audit.config``, round v6.1.
"""

from __future__ import annotations

from typing import Any

_SEED = 720381539243781796  # of the choice of samples whose answers are logged
_SETTINGS: dict[str, dict[str, int]] = {
    "TEST01": {"mode": 2, "accuracy_log_rng_seed": _SEED, "accuracy_log_sampling_target": 4096},
    "TEST04": {
        "mode": 2,
        "performance_issue_unique": 0,
        "performance_issue_same": 1,
        "performance_issue_same_index": 3,
    },
    "TEST06": {
        "mode": 2,
        "accuracy_log_rng_seed": _SEED,
        "accuracy_log_sampling_target": 100,
        "min_query_count": 100,
        "min_duration": 0,
        "sample_concatenate_permutation": 0,
    },
}


def audit_config(test: str) -> str:
    """The text of ``audit.config`` for ``TEST01``, ``TEST04`` or ``TEST06``, for every model and scenario.

    ``mode = 2`` is LoadGen's performance mode. TEST01's sampling target is that of ResNet-50 and BERT.
    """
    return "".join(f"*.*.{key} = {value}\n" for key, value in _SETTINGS[test].items())


_SEEN = {  # what of it LoadGen's detail log repeats under its own name in every scenario
    "mode": "effective_test_mode",
    "accuracy_log_rng_seed": "effective_accuracy_log_rng_seed",
    "accuracy_log_sampling_target": "effective_accuracy_log_sampling_target",
    "sample_concatenate_permutation": "effective_sample_concatenate_permutation",
    "performance_issue_same": "effective_performance_issue_same",
    "performance_issue_same_index": "effective_performance_issue_same_index",
}


def contradictions(test: str, logged: dict[str, Any]) -> list[str]:
    """Settings of the test that LoadGen's detail log shows with another value, so that it was not this test."""
    wrong = []
    for key, value in _SETTINGS[test].items():
        name = _SEEN.get(key)
        wanted = "PerformanceOnly" if key == "mode" else value
        if name is not None and logged.get(name) != wanted:  # true and 1 are equal
            wrong.append(f"{name} is {logged.get(name)} and not {wanted}")
    return wrong
