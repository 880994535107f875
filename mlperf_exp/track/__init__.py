"""MLflow's side of a run, in a process of its own: ``python -m mlperf_exp.track RUN_DIR``.

``tracker`` is what the measured process imports (light); ``__main__`` is the process; ``mirror`` is the only import of
mlflow; ``content`` says what of a run goes there, as plain values.
"""
