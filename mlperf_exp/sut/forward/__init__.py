"""Forward passes on a device for the ``torch`` backend: what a batch is, how it gets there, what comes back."""
