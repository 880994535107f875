"""The names of what an attempt leaves in its folder; apart, since a node imports nothing that takes time."""

REQUEST = "request.json"  # what the node is to run
STATUS = "status.json"  # what came of it, by the node itself
RETURN = "return.json"  # the task function's return value, where it is plain data
