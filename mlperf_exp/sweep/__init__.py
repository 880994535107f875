"""What a sweep leaves beside its runs, and what another start of it makes of that.

``record`` is ``sweep.json``; ``earlier`` finds what an earlier start finished or left; ``identity`` says which jobs are
the same and which can share an engine; ``__main__`` shows a sweep and continues it.
"""
