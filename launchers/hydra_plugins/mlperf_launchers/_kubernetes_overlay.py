"""A strategic merge patch, as ``kubectl patch`` has it, for a pod's template: lists of named things merge by name."""

from __future__ import annotations

import copy
from typing import Any

# Lists whose elements are merged by a key, of those in a pod's template; all others are replaced. Source: patchMergeKey
# in Kubernetes' API types (core/v1).
_MERGE_KEYS = {
    "containers": "name", "initContainers": "name", "volumes": "name", "env": "name", "volumeMounts": "mountPath",
    "imagePullSecrets": "name", "ports": "containerPort", "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
}  # fmt: skip


def merged(base: Any, patch: Any, key: str = "") -> Any:
    """``base`` with ``patch`` over it; both stay as they are. None removes; in a list, ``$patch: delete`` does."""
    if isinstance(base, dict) and isinstance(patch, dict):
        if patch.get("$patch") == "replace":
            return copy.deepcopy({name: value for name, value in patch.items() if name != "$patch"})
        result = copy.deepcopy(base)
        for name, value in patch.items():
            if value is None:
                result.pop(name, None)
            else:
                result[name] = merged(result.get(name), value, name)
        return result
    if isinstance(base, list) and isinstance(patch, list) and key in _MERGE_KEYS:
        return _merged_by(_MERGE_KEYS[key], base, patch)
    if isinstance(patch, dict):  # over nothing: what it removes is not there
        given = {name: value for name, value in patch.items() if value is not None and name != "$patch"}
        return {name: merged(None, value, name) for name, value in given.items()}
    return copy.deepcopy(patch)


def _merged_by(name: str, base: list[Any], patch: list[Any]) -> list[Any]:
    result = {item[name]: copy.deepcopy(item) for item in base}
    for item in patch:
        if item.get("$patch") == "delete":
            result.pop(item[name], None)
        else:
            result[item[name]] = merged(result.get(item[name]), item)
    return list(result.values())
