"""Classes that put the library's behaviour before the user's own class."""

from typing import Any

_made: dict[tuple[Any, Any], Any] = {}


def in_front(mixin: Any, base: Any) -> Any:
    """A cached subclass of `mixin` and `base`; `base` itself if it already has the mixin."""
    if issubclass(base, mixin):
        return base
    if (mixin, base) not in _made:
        attributes = {"__module__": base.__module__, "__doc__": base.__doc__}
        _made[mixin, base] = type(base.__name__, (mixin, base), attributes)
    return _made[mixin, base]
