"""MLPerf experiments composed by Hydra, driven by LoadGen, judged by MLPerf's rules and kept in MLflow."""

__version__ = "0.1.0"
