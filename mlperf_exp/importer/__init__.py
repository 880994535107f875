"""Results of other benchmarks in the same experiment and comparison: marked as foreign, and without a verdict.

``python -m mlperf_exp.importer FILE...`` reads what ``vllm bench serve``, GuideLLM, AIPerf and MLCommons' endpoints
write; ``formats`` knows their files, ``record`` makes a run's folder of each result.
"""
