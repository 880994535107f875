"""What MLCommons' submission checker says, in readable words.

Source of the messages: mlcommons/inference, ``tools/submission/submission_checker``, round v6.1.
"""

from __future__ import annotations

from typing import NamedTuple


class Message(NamedTuple):
    """A message of the checker: its expression, our words with its groups as {0}, {1}, ..., and what to do."""

    pattern: str
    words: str
    remedy: str


MESSAGES = (
    Message(
        r"(\S+) does not have all required scenarios, missing (.+)",
        "scenarios are missing: {1}",
        "Run them too",
    ),
    Message(
        r"(\S+) has all unknown scenarios for this benchmark (.+)",
        "scenarios that the benchmark has not: {1}",
        "Take them out",
    ),
    Message(
        r"(\S+) has loadgen errors, number of errors: (\d+)",
        "LoadGen logged {1} errors",
        "See mlperf_log_summary.txt",
    ),
    Message(
        r"(\S+) performance_sample_count, found (\d+), needs to be >= (\d+)",
        "the load drew from {1} samples, {2} are asked for",
        "Leave out dataset.samples and scenario.samples",
    ),
    Message(
        r"(\S+) (\w+_rng_seed) is wrong, expected=(\d+), found=(\d+)",
        "the log is of another round: {1} is {3} and not {2}",
        "Run it again with this round's LoadGen",
    ),
    Message(
        "Early stopping condition was not met, msg=(.*)",
        "LoadGen's early stopping was not met: {0}",
        "Lower the load",
    ),
    Message(
        r"(\S+) Required minimum Query Count not met by user config, Expected=(\d+), Found=(\d+)",
        "{2} queries were asked for, the round wants {1}",
        "Leave out scenario.min_query_count",
    ),
    Message(
        r"(\S+) Required minimum samples per query not met by user config, Expected=(\d+), Found=(\d+)",
        "the load was {2} samples, the round wants {1}",
        "Leave out scenario.min_query_count",
    ),
    Message(
        r"(\S+) Test duration less than 600s in user config. expected=(\d+), found=(\d+)",
        "a short run: min_duration is {2} ms, the round wants {1} ms",
        "Leave out scenario.min_duration_s",
    ),
    Message(
        r"(\S+) incorrect network mode.*",
        "the system's network mode does not suit the division",
        "Leave out is_network",
    ),
    Message(
        "use_token_latencies flag needs to be enabled for LLM benchmark",
        "LoadGen did not time tokens",
        "Run it with the benchmark's own name (model.benchmark)",
    ),
    Message(
        (
            r"Failed extra check for TTFT and TPOT\. Obtained: TTFT 99-tile: ([\d.]+), TPOT 99-tile: ([\d.]+)\. "
            r"Required: TTFT 99-tile: ([\d.]+), TPOT 99-tile: ([\d.]+)"
        ),
        "TTFT p99 {0} ns and TPOT p99 {1} ns, allowed are {2} and {3} ns",
        "Lower scenario.target_qps",
    ),
    Message(
        r"(\S+) accuracy not met: expected=([\d.]+), found=([\d.]+)",
        "accuracy {2} is below {1}",
        "Use the open division, or mend the model",
    ),
    Message(
        r"(\S+) accuracy not met: upper limit=([\d.]+), found=([\d.]+)",
        "accuracy {2} is above {1}",
        "Use the open division, or mend the model",
    ),
    Message(
        r"(\S+) not hash value for accuracy\.txt",
        "accuracy.txt has no hash of the accuracy log",
        "Build the package again",
    ),
    Message(
        r"(\S+) is not truncated",
        "the accuracy log is over 10 KiB",
        "Build the package again",
    ),
    Message(
        r"(\S+) accurcy run does not cover all dataset, accuracy samples: (\d+), dataset size: (\d+)",
        "accuracy covers {1} samples, the data set has {2}",
        "Use the whole data set",
    ),
    Message(
        r"(\S+) src directory does not exist",
        "src/ is missing",
        "Build the package again",
    ),
    Message(
        r"(\S+) is (?:missing|having empty) (\S+)",
        "{1} is missing or empty",
        "Build the package again",
    ),
    Message(
        r"(\S+), field (\S+) is missing(?: meaningful value)?",
        "field {1} says nothing",
        "Fill it in (--system)",
    ),
    Message(
        r"(\S+), field (\S+) requires a meaningful response but is empty",
        "field {1} says nothing",
        "Fill it in (--system)",
    ),
    Message(
        r"(\S+) has invalid status \((.*)\)",
        "status is '{1}'",
        "Allowed: available, preview, rdi",
    ),
    Message(
        r"(\S+) has invalid system type \((.*)\)",
        "system_type is '{1}'",
        "Allowed: datacenter, edge, or both",
    ),
    Message(
        r"(\S+) has (submitter|division) (.*), directory has (.*)",
        "{1} is '{2}', the folder says '{3}'",
        "Build the package again",
    ),
    Message(
        r"(\S+) system json file not found",
        "the system's JSON is missing",
        "Build the package again",
    ),
    Message(
        r"(\S+) measurements json file not found",
        "measurements.json is missing",
        "Build the package again",
    ),
    Message(
        r"Performance log missing at (\S+)",
        "the performance log is missing",
        "Build the package again",
    ),
    Message(
        r"Missing (TEST\d+) in compliance dir (\S+)",
        "{0} was not run",
        "Run with division=closed",
    ),
    Message(
        r"Missing \w+ file in compliance dir. Needs file (\S+)",
        "{0} is missing",
        "Run with division=closed",
    ),
    Message(
        r"(TEST06) accuracy check failed\. (.*)",
        "{0} failed: {1}",
        "See verdict.compliance in the run's result.json",
    ),
    Message(
        r"Compliance test performance check in (\S+) failed",
        "the compliance test's speed differs",
        "Run the scenario again",
    ),
    Message(
        r"(\S+) is missing",
        "{0} is missing",
        "Build the package again",
    ),
    Message(
        r"Execution occurred in running check (\S+)\. Running (\w+) in (\w+)",
        "its check {2}.{1} broke",
        "A file that it reads is missing or broken: see the other findings",
    ),
)

SILENT = (  # said again by the lines before or after them
    r"Some .* Checks failed for: .*",
    r"Execution of check \S+ skipped for .*",
    r"NoResults .*",
    r"SUMMARY: .*",
    r"\S+ contains errors:",
    r"",
)
