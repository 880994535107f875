"""The pieces of ``backend=openai``: one query out, its streamed answer in, over several servers.

``endpoints`` addresses and keys, ``request`` bodies, ``sse`` streams, ``answer`` what a stream says, ``completions``
the client (the one import of aiohttp), ``dispatcher`` each query to its end, ``probe`` the checks at the start. Which
server is the router's: ``sut/routing``.
"""
