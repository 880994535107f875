"""Several engines of this program's own behind one LoadGen (``backend.replicas``).

``fleet`` the system under test, ``roster`` who its replicas are, ``muster`` what it awaits of them at a start, ``room``
how much each is given, ``delivery`` what they answer, ``links`` its side of the connections, ``wire`` what travels over
them, ``replica`` the other side with an engine on it, ``placement`` the process that speaks to Ray (its only import,
with ``own_ray``, a Ray for one run alone), ``placer`` this side of that process.

Ray places, starts, watches and removes the actors. Queries and answers do not pass through it: each actor connects to
this process and they speak directly, two batched messages a query.
"""
