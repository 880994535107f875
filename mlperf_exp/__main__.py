"""``python -m mlperf_exp``: Hydra composes the configuration, :func:`mlperf_exp.run.run` does the rest."""

from mlperf_exp.cli import main

if __name__ == "__main__":
    main()
