"""Chat templates: a program in Jinja that comes with a model. Parsed here, never rendered.

Refused is what makes sense only in a renderer without a sandbox: names that begin with an underscore (the way from a
value to `os.system`), other templates, unknown callables. It is the second wall: engines render in a sandbox of their
own (llama.cpp has a renderer without Python in it, transformers an `ImmutableSandboxedEnvironment`), and what is
composed at run time is theirs to stop. Page: protocols/decisions/0014-formats-before-load.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from jinja2 import Environment, nodes

TEMPLATE_BYTES_MAX: Final = 64 * 1024
NODES_MAX: Final = 50_000
RANGE_MAX: Final = 100_000
_FUNCTIONS: Final = frozenset(
    ("raise_exception", "strftime_now", "range", "namespace", "dict", "cycler", "joiner", "caller")
)
_STRINGS: Final = frozenset(name for name in dir(str) if not name.startswith("_")) - {"format_map"}
_METHODS: Final = (
    _STRINGS
    | frozenset(name for kind in (list, dict, tuple, set) for name in dir(kind) if not name.startswith("_"))
    | frozenset(("cycle", "changed", "strftime", "isoformat", "next", "reset"))
)
"""Of texts, lists and maps, of loops and dates: what the templates of models call on values."""
_BY_NAME: Final = frozenset(("map", "selectattr", "rejectattr", "groupby", "sort", "unique", "min", "max", "sum"))
"""Filters that read an attribute by a name that they are given."""


class TemplateRefused(ValueError):
    """The text says why."""


def check_template(text: str) -> None:
    """Raises TemplateRefused when the template is too large, is not Jinja, or needs a renderer without a sandbox."""
    if len(text.encode("utf-8", errors="replace")) > TEMPLATE_BYTES_MAX:
        raise TemplateRefused(f"it has more than {TEMPLATE_BYTES_MAX} bytes")
    try:
        tree = _environment().parse(text)
    except RecursionError:
        raise TemplateRefused("it is nested too deeply") from None
    except Exception as error:  # TemplateSyntaxError, and what Python's own literals raise
        line = getattr(error, "lineno", 0)
        where = f" (line {line})" if line else ""
        raise TemplateRefused(f"it is not Jinja{where}: {type(error).__name__}") from None
    _Check(tree).run()


def _environment() -> Environment:
    from jinja2 import Environment, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser

    class Generation(Extension):
        """`{% generation %}` of transformers, which marks what the assistant said."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return Environment(extensions=[Generation, loopcontrols], trim_blocks=True, lstrip_blocks=True)


class _Check:
    """Walks the tree without recursion and stops at the first thing that is not taken."""

    def __init__(self, tree: nodes.Template) -> None:
        self._tree = tree
        self._macros: set[str] = set()
        self._assigned: set[str] = set()

    def run(self) -> None:
        from jinja2 import nodes

        found = list(self._walk())
        self._macros = {node.name for node in found if isinstance(node, nodes.Macro)}
        targets = [node.target for node in found if isinstance(node, nodes.Assign)]
        self._assigned = {target.name for target in targets if isinstance(target, nodes.Name)}
        for node in found:
            self._look(node)

    def _walk(self) -> Iterator[nodes.Node]:
        waiting: list[Any] = [self._tree]
        count = 0
        while waiting:
            node = waiting.pop()
            count += 1
            if count > NODES_MAX:
                raise TemplateRefused(f"it has more than {NODES_MAX} parts")
            yield node
            waiting.extend(node.iter_child_nodes())

    def _look(self, node: nodes.Node) -> None:
        from jinja2 import nodes

        if isinstance(node, nodes.Extends | nodes.Include | nodes.Import | nodes.FromImport):
            raise TemplateRefused(f"it wants another template (line {node.lineno}: {type(node).__name__.lower()})")
        if isinstance(node, nodes.Getattr):
            self._name(node.attr, node)
        elif isinstance(node, nodes.Getitem):
            self._constants(node.arg, node)
        elif isinstance(node, nodes.Name | nodes.NSRef) and node.name.startswith("__"):
            self._name(node.name, node)  # a variable of its own may begin with one
        elif isinstance(node, nodes.Filter | nodes.Test):
            self._filter(node)
        elif isinstance(node, nodes.Call):
            self._call(node)

    def _name(self, name: object, node: nodes.Node) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise TemplateRefused(f"it reaches for {name[:64]!r} (line {node.lineno})")

    def _constants(self, part: nodes.Node, node: nodes.Node) -> None:
        """Texts in what names an attribute or item."""
        from jinja2 import nodes

        inner = [part] if isinstance(part, nodes.Const) else list(part.find_all(nodes.Const))
        for const in inner:
            for name in const.value.split(".") if isinstance(const.value, str) else ():
                self._name(name.strip(), node)

    def _filter(self, node: Any) -> None:
        name = node.name
        if name == "attr":
            raise TemplateRefused(f"it reads attributes by the filter attr (line {node.lineno})")
        if name in _BY_NAME:
            for argument in (*node.args, *(each.value for each in node.kwargs)):
                self._constants(argument, node)
                if getattr(argument, "value", None) == "attr":
                    raise TemplateRefused(f"it reads attributes by the filter attr (line {node.lineno})")

    def _call(self, node: Any) -> None:
        from jinja2 import nodes

        called = node.node
        if isinstance(called, nodes.Name):
            if called.name not in _FUNCTIONS and called.name not in self._macros:
                raise TemplateRefused(f"it calls {called.name[:64]}(), which no renderer here has (line {node.lineno})")
            if called.name == "range":
                self._range(node)
        elif isinstance(called, nodes.Getattr):
            if called.attr not in _METHODS:
                raise TemplateRefused(
                    f"it calls .{called.attr[:64]}(), which no text, list or map has (line {node.lineno})"
                )
            if called.attr == "format":
                self._format(called.node, node)
        elif not self._own_item(called):
            raise TemplateRefused(f"it calls what it computes (line {node.lineno})")

    def _own_item(self, called: nodes.Node) -> bool:
        """An item of a list that the template has made itself, such as of macros."""
        from jinja2 import nodes

        return (
            isinstance(called, nodes.Getitem)
            and isinstance(called.node, nodes.Name)
            and (called.node.name in self._assigned)
        )

    def _format(self, receiver: nodes.Node, node: nodes.Node) -> None:
        from jinja2 import nodes

        for const in [receiver] if isinstance(receiver, nodes.Const) else receiver.find_all(nodes.Const):
            if isinstance(const.value, str) and ("._" in const.value or "[_" in const.value):
                raise TemplateRefused(f"it reaches for names with an underscore by format (line {node.lineno})")

    def _range(self, node: Any) -> None:
        from jinja2 import nodes

        sizes = [each.value for each in node.args if isinstance(each, nodes.Const)]
        if any(isinstance(size, int) and abs(size) > RANGE_MAX for size in sizes):
            raise TemplateRefused(f"it counts beyond {RANGE_MAX} (line {node.lineno})")
