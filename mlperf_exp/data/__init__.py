"""Data sets: samples for the load, references for the score."""
