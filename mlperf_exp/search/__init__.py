"""The highest valid rate (``search=max_qps``): short probes on one engine start, then a full run that confirms.

rates.py     which rate to try next, from what was tried; pure
probe.py     one short test at a rate, and whether it was valid
replay.py    what a short test says of a full run
session.py   the search on a started system
state.py     what it knows so far, in search.json
"""
