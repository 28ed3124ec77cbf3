"""The Lua scripts: a file each, which begins with its contract."""

from importlib.resources import files

from celery_durable.lua import Script


def _script(name: str) -> Script:
    return Script((files(__name__) / f"{name}.lua").read_text("utf-8"))


FETCH = _script("fetch")
GIVE_BACK = _script("give_back")
LAPSED = _script("lapsed")
RENEW = _script("renew")
DELAY = _script("delay")
DUE = _script("due")
MOVE = _script("move")
