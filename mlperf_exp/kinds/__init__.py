"""What is particular to a kind of model: one file each finds the model and its samples, and scores its answers."""
