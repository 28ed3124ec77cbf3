"""Classes with the library's behaviour in front of whatever the user has."""

from typing import Any

_made: dict[tuple[Any, Any], Any] = {}


def in_front(mixin: Any, base: Any) -> Any:
    """A class that is `base` with `mixin` before it, the same one each time; `base` where it has the mixin already."""
    if issubclass(base, mixin):
        return base
    if (mixin, base) not in _made:
        attributes = {"__module__": base.__module__, "__doc__": base.__doc__}
        _made[mixin, base] = type(base.__name__, (mixin, base), attributes)
    return _made[mixin, base]
