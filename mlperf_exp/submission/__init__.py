"""From runs to a package that can be sent to MLPerf, and the round's rules applied to one.

``python -m mlperf_exp.submission build RUN... --submitter NAME --division open --system FILE --out DIR`` assembles the
tree of round v6.1; ``check DIR`` applies the rules in readable words, and with ``--official CHECKOUT`` runs MLCommons'
own checker as well; ``template RUN...`` writes the file in which a person fills in what no program knows.

``rules`` holds the round's facts, ``sources`` reads and verifies runs, ``system`` describes the system, ``tree`` writes
the files, ``build`` puts it together, ``check`` and ``scenario`` apply the rules, ``official`` translates the checker.
"""
