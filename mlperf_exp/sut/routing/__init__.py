"""Which of several replicas answers which query, for servers (``sut/http``) and Ray actors (``sut/replicas``) alike.

``policy`` whose turn it is, ``router`` each query from its coming to its one end, ``rules`` what the scenario allows,
``figures`` what a test showed.
"""
