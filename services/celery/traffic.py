"""Traffic patterns, read from traffic.toml: which tasks the producer sends, and how many per second."""

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, field_validator
from pydantic_core import ErrorDetails

from celery_app import app
from queues import QUEUES

app.loader.import_default_modules()

UNITS = {"s": 1, "m": 60, "h": 3600}


class TrafficError(Exception):
    """A mistake in the patterns; the message names the file, the key, the value and the choices."""


def seconds(text: object) -> float:
    """The seconds in `60s`, `1.5m` or `1h`. Raises ValueError for anything else, including zero."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text) if isinstance(text, str) else None
    if match is None or float(match[1]) == 0:
        raise ValueError("must be a number and s, m or h, like 60s, 5m or 1h")
    return float(match[1]) * UNITS[match[2]]


class Sending(BaseModel):
    """One kind of message that a pattern sends."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    task: str
    rate: float = Field(gt=0, le=10_000)  # messages per second
    args: list[list[Any]] = Field([[]], validate_default=True)
    batch: int = Field(1, ge=1, le=100_000)
    queue: str | None = None
    priority: int | None = Field(None, ge=0, le=9)

    @field_validator("task")
    @classmethod
    def _registered(cls, name: str) -> str:
        if name not in app.tasks or name.startswith("celery."):
            known = sorted(task for task in app.tasks if not task.startswith("celery."))
            raise ValueError(f"no such task; choose one of {', '.join(known)}")
        return name

    @field_validator("args", mode="before")
    @classmethod
    def _lists(cls, choices: object) -> object:
        if not (isinstance(choices, list) and choices and all(isinstance(args, list) for args in choices)):
            raise ValueError("must be lists of arguments, like [[1, 2], [3, 4]]")
        return choices

    @field_validator("args")
    @classmethod
    def _accepted(cls, choices: list[list[Any]], info: Any) -> list[list[Any]]:
        if "task" in info.data:  # else the error of `task` is enough
            for args in choices:
                try:
                    app.tasks[info.data["task"]].__header__(*args)
                except TypeError as error:
                    raise ValueError(f"{info.data['task']} cannot be called with {args}: {error}") from None
        return choices

    @field_validator("queue")
    @classmethod
    def _consumed(cls, name: str | None) -> str | None:
        names = [queue.name for queue in QUEUES]
        if name is not None and name not in names:
            raise ValueError(f"no such queue; choose one of {', '.join(names)}")
        return name

    @property
    def routed(self) -> str:
        """Name of the queue that the messages go to."""
        name: str = self.queue or app.amqp.router.route({}, self.task)["queue"].name
        return name


class Pattern(BaseModel):
    """What the producer sends: kinds of messages by name, and for how many seconds (None: for ever)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    duration: Annotated[float, BeforeValidator(seconds)] | None = Field(None, alias="for")
    seed: int = 1
    send: dict[str, Sending] = {}


def load_patterns(file: Path) -> dict[str, Pattern]:
    """All patterns of a file. Raises TrafficError; one line for each mistake."""
    try:
        return TypeAdapter(dict[str, Pattern]).validate_python(tomllib.loads(file.read_text()))
    except OSError as error:
        raise TrafficError(f"{file.name}: cannot be read: {error.strerror}; it is {file}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TrafficError(f"{file.name}: not TOML: {error}") from None
    except ValidationError as error:
        raise TrafficError("\n".join(f"{file.name}: {_describe(each)}" for each in error.errors())) from None


def _describe(error: ErrorDetails) -> str:
    path = [str(part) for part in error["loc"] if not str(part).startswith("function-before")]
    key, kind = ".".join(path), error["type"]
    if kind == "extra_forbidden":
        model = Pattern if len(path) == 2 else Sending
        return f"{key}: unknown key; choose one of {', '.join(f.alias or n for n, f in model.model_fields.items())}"
    if kind == "missing":
        return f"{key}: is missing"
    if kind in ("model_type", "dict_type"):
        return f"{key}: must be a table; it is {error['input']!r}"
    reason = error["ctx"]["error"] if kind == "value_error" else error["msg"].removeprefix("Input ")
    return f"{key}: {reason}; it is {error['input']!r}"
