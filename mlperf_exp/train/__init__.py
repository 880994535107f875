"""MLPerf Training on Lightning: a job's ranks, their data, optimizers, checkpoints and MLPerf log."""
