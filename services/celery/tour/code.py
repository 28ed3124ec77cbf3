"""The code that a lesson shows: the source of tasks, and a step's calls as a user of Celery writes them.

A step reads its evidence with the tour's helpers. In the code that is shown they are replaced by Celery's API, for
example `tour.backend.result(promise)` by `promise.get(timeout=30)`; statements that only gather evidence are left out.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

APP = Path(__file__).parents[1]
LIBRARY = "celery_durable"
YOURS = "your code"  # in place of a file's name
QUEUE = '"lesson"'  # in place of a private queue
FIELDS = {"status", "name", "args", "worker", "queue", "retries", "traceback"}  # of AsyncResult
EVIDENCE = {"both"}  # functions that only combine evidence


class _OnlyEvidenceError(Exception):
    """The code has no equivalent in Celery's API: it gathers evidence."""


def source_of(shown: Any) -> tuple[str, str]:
    """File and source of a task with its decorators, a function or a class; a helper of lessons as `calls_of`."""
    function = shown
    if not inspect.isclass(shown):
        function = inspect.unwrap(getattr(shown, "_orig_run", None) or getattr(shown, "run", shown))
        function = getattr(function, "__func__", function)
    source = textwrap.dedent(inspect.getsource(function)).rstrip()
    if inspect.isfunction(function) and next(iter(inspect.signature(function).parameters), "") == "tour":
        return YOURS, _Calls(source).with_header()
    return _in_project(function), source


def calls_of(step: Any) -> tuple[str, str]:
    """The calls of a step."""
    return YOURS, _Calls(textwrap.dedent(inspect.getsource(step))).text()


def _in_project(shown: Any) -> str:
    """The path in the project of an object's source; the library is installed from packages/celery-durable."""
    file = Path(inspect.getfile(shown)).resolve()
    if LIBRARY in file.parts:
        return "packages/celery-durable/src/" + "/".join(file.parts[file.parts.index(LIBRARY) :])
    return f"services/celery/{file.relative_to(APP)}"


class _Calls:
    """Rewrites the body of one function. Text is replaced in the source, so that its layout is kept."""

    def __init__(self, source: str) -> None:
        self._lines = source.splitlines()
        (self._function,) = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
        self._evidence: set[str] = set()  # variables that hold evidence
        self._seen: set[str] = set()  # variables that hold what is a plain value in the code that is shown
        self._processes: dict[str, str] = {}  # variable that holds a process of the tour: worker or beat

    def text(self) -> str:
        """The rewritten body."""
        *_, last = self._function.body
        if isinstance(last, ast.Return) and not isinstance(last.value, ast.Dict):
            self._function.body.pop()  # evidence that was collected in a variable
        return _without_unused("\n".join(self._body(self._function)))

    def with_header(self) -> str:
        """The rewritten function, without its first argument, the tour."""
        self._function.args.args.pop(0)
        self._function.args.kwarg = None
        return "\n".join(self._defined(self._function))

    # --- Statements ---

    def _statement(self, node: ast.stmt) -> Iterator[str]:
        """The lines of a rewritten statement; none if it only gathers evidence."""
        try:
            match node:
                case ast.Return(value=ast.Dict(keys=keys, values=values)):
                    shown = [self._result(value) for key, value in zip(keys, values, strict=True) if key]
                    yield from dict.fromkeys(text for text in shown if text)
                case ast.FunctionDef(name=name):
                    yield from self._defined(node)
                    if not isinstance(node.body[-1], ast.Return) or not list(self._statement(node.body[-1])):
                        self._evidence.add(name)
                case ast.For(body=body) | ast.With(body=body):
                    header = self._rewritten(node, until=body[0])
                    inside = [line for each in body for line in self._statement(each)]
                    if inside:
                        yield from header.splitlines()
                        yield from (f"    {line}" for line in inside)
                case ast.Assign(targets=[ast.Name() as variable], value=value) if _process(value):
                    yield self._assigned(variable, value)
                case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)) if any(
                    map(_process, values)
                ):
                    for target, value in zip(targets, values, strict=True):
                        yield self._assigned(target, value)
                case ast.Expr(value=ast.Call() as call) if _process(call):
                    yield f"# {self._command(call)}"
                case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=what))) if (
                    name in self._processes
                ):
                    if comment := {"stop": "is stopped", "kill": "is killed", "signal": "gets a signal"}.get(what):
                        yield f"# the {self._processes[name]} {comment}"
                case _:
                    yield from self._rewritten(node).splitlines()
                    if isinstance(node, ast.Assign):
                        self._seen |= {ast.unparse(target) for target in node.targets}
        except _OnlyEvidenceError:
            self._evidence |= {
                each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
            }

    def _body(self, function: ast.FunctionDef) -> list[str]:
        return [line for statement in function.body for line in self._statement(statement)]

    def _defined(self, function: ast.FunctionDef) -> list[str]:
        """A rewritten function without annotations; nothing if it only gathers evidence."""
        arguments = function.args
        for argument in [*arguments.args, *([arguments.vararg] if arguments.vararg else [])]:
            argument.annotation = None
        body = self._body(function)
        if not any("(" in line for line in body if not line.lstrip().startswith(("#", '"'))):
            return []
        return [f"def {function.name.lstrip('_')}({ast.unparse(arguments)}):", *(f"    {line}" for line in body)]

    def _assigned(self, target: ast.expr, value: ast.expr) -> str:
        """A variable's value, or the command line of its process."""
        if isinstance(value, ast.Call) and (process := _process(value)):
            self._processes[ast.unparse(target)] = process
            return f"# {self._command(value)}"
        return f"{ast.unparse(target)} = {self._rewritten(value)}"

    def _result(self, value: ast.expr) -> str:
        """A piece of evidence as a call of Celery's API; empty if it is none."""
        try:
            text = self._rewritten(value)
        except _OnlyEvidenceError:
            return ""
        return text if re.search(r"[.(]", text) else ""  # not a variable or a constant

    def _command(self, call: ast.Call) -> str:
        """The command line of a process of the tour."""
        if _process(call) == "beat":
            return "celery -A celery_app beat"
        options = [ast.unparse(each).strip("f'\"") for each in call.args if not isinstance(each, ast.Starred)]
        return " ".join(["celery -A celery_app worker -Q lesson", *options])

    # --- Expressions ---

    def _rewritten(self, node: ast.AST, until: ast.AST | None = None) -> str:
        """The source of a node (up to another) after the replacements. Raises _OnlyEvidenceError."""
        edits: list[tuple[ast.AST, str]] = []
        pending = [node]
        while pending:
            each = pending.pop()
            if until and isinstance(each, ast.stmt) and each is not node:
                continue
            if (text := self._replacement(each)) is not None:
                edits.append((each, text))
            else:
                pending += ast.iter_child_nodes(each)
        return self._spliced(node, edits, until)

    def _replacement(self, node: ast.AST) -> str | None:
        """What an expression is replaced by; None: it is kept, and its parts are looked at."""
        match node:
            case ast.Call(func=ast.Attribute(value=value, attr="map")) if not self._of_celery(value):
                return self._rewritten(value)
            case ast.Call(func=function) if _of_the_tour(function):
                return self._api(ast.unparse(function).removeprefix("tour."), node)
            case ast.Attribute(value=ast.Call(func=function) as value, attr="value") if _of_the_tour(function):
                return self._rewritten(value)
            case ast.Attribute(value=ast.Name(id=name), attr="value") if name in self._seen:
                return name
            case ast.Attribute(value=ast.Name(id=name), attr="queue") if name in self._processes:
                return QUEUE
            case ast.Attribute(value=ast.Name(id=name), attr="name") if name in self._processes:
                return f'"{self._processes[name]}@host"'
            case ast.Name(id=name) if name in {"tour", *self._evidence, *EVIDENCE, *self._processes}:
                raise _OnlyEvidenceError
        return None

    def _api(self, helper: str, call: ast.Call) -> str:
        """The equivalent in Celery's API of a call of a helper. Raises _OnlyEvidenceError if there is none."""
        arguments = call.args
        match helper, arguments:
            case (("backend.result" | "all_results"), [promise]):
                return f"{self._rewritten(promise)}.get(timeout=30)"
            case ("backend.state", [promise]) | ("backend.reaches", [promise, _]):
                return f"{self._rewritten(promise)}.state"
            case "backend.meta", [promise, ast.Constant(value=str(field))] if field in FIELDS:
                return f"{self._rewritten(promise)}.{field}"
            case (("returned" | "raised"), [ast.Lambda(body=body)]):
                return self._rewritten(body)
            case "returned", [function]:
                return f"{self._rewritten(function)}()"
            case "inspect", [ast.Constant(value=str(what)), node]:
                name = self._rewritten(node)
                return f"app.control.inspect([{name}]).{what}()[{name}]"
            case "replied", [replies]:
                return self._rewritten(replies)
            case "redis", [ast.Constant(value=str(command)), *values]:
                kept = takewhile(lambda value: ast.unparse(value) != "'EX'", values)  # the tour's keys expire
                texts = [self._rewritten(value) for value in kept]
                return f"durable.store.{command.lower()}({', '.join(texts)})"
            case "name", [name]:
                return self._rewritten(name)
            case "queue", []:
                return QUEUE
        raise _OnlyEvidenceError

    @staticmethod
    def _of_celery(value: ast.expr) -> bool:
        """Whether `value.map` is Celery's, of a task, and not that of evidence."""
        return isinstance(value, ast.Name | ast.Attribute) and ast.unparse(value).rpartition(".")[2] == "square"

    def _spliced(self, node: Any, edits: list[tuple[Any, str]], until: Any) -> str:
        """The source of a node with parts of it replaced."""
        last = (until.lineno - 1, None) if until else (node.end_lineno, node.end_col_offset)
        lines = [line.encode() for line in self._lines[node.lineno - 1 : last[0]]]
        if last[1] is not None:
            lines[-1] = lines[-1][: last[1]]
        for part, text in sorted(edits, key=lambda edit: (edit[0].lineno, edit[0].col_offset), reverse=True):
            first, end = part.lineno - node.lineno, part.end_lineno - node.lineno
            joined = lines[first][: part.col_offset] + text.encode() + lines[end][part.end_col_offset :]
            lines[first : end + 1] = [joined]
        lines[0] = b" " * node.col_offset + lines[0][node.col_offset :]
        return textwrap.dedent(b"\n".join(lines).decode()).rstrip()


def _of_the_tour(function: ast.expr) -> bool:
    return ast.unparse(function).startswith("tour.")


def _process(value: ast.AST) -> str:
    """The kind of process that an expression starts: worker, beat, or none."""
    kind = ast.unparse(value.func).removeprefix("tour.") if isinstance(value, ast.Call) else ""
    return kind if kind in ("worker", "beat") else ""


def _without_unused(text: str) -> str:
    """Without variables that were only used for evidence."""
    tree = ast.parse(text)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    used |= {ast.unparse(node.target) for node in ast.walk(tree) if isinstance(node, ast.AugAssign)}
    for node in tree.body:
        if isinstance(node, ast.Assign) and not any(isinstance(each, ast.Call) for each in ast.walk(node.value)):
            names = {
                each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
            }
            if not names & used and not isinstance(node.value, ast.Attribute):
                lines = text.splitlines()
                del lines[node.lineno - 1 : node.end_lineno]
                return _without_unused("\n".join(lines))
    return text
