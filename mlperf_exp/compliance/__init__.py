"""MLPerf's compliance tests: further LoadGen tests on the same system that show that it does not cheat.

TEST01: what the system answers while its speed is measured is what it answered in the accuracy test.
TEST04: it keeps no answers: the same sample again and again is not faster than samples that differ.
TEST06: a language model's first token, end of text and token count are what it says they are.

``rules`` says which benchmark needs which test (light); ``audit`` writes LoadGen's ``audit.config``; ``outputs``
(TEST06), ``accuracy`` (TEST01) and ``caching`` (TEST04) verify the logs; ``session`` runs a test on a started system.
Source: mlcommons/inference, ``compliance/``, for round v6.1. The checks here ask for at least as much as those there.
"""
