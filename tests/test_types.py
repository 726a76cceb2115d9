"""Types of what is public: `make lint` checks them, so everything must have some."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).parents[1] / "sparsecap_jax"
# Copied next to exported models, where it needs no package.
SCRIPT = PACKAGE / "exporting" / "runner.py"
NO_RESULT = ("__init__", "__post_init__")


def is_public(name):
    return not name.startswith("_") or name.endswith("__")


def untyped(body, owner=""):
    """Yield the names of public functions and methods that lack an annotation, and which."""
    for node in body:
        if isinstance(node, ast.ClassDef) and is_public(node.name):
            yield from untyped(node.body, f"{owner}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and is_public(node.name):
            some = node.args
            arguments = [*some.posonlyargs, *some.args, some.vararg, *some.kwonlyargs, some.kwarg]
            static = any(ast.unparse(one) == "staticmethod" for one in node.decorator_list)
            known = arguments[1:] if owner and not static else arguments
            gaps = [one.arg for one in known if one is not None and one.annotation is None]
            gaps += ["return"] if node.returns is None and node.name not in NO_RESULT else []
            if gaps:
                yield f"{owner}{node.name}: {', '.join(gaps)}"


def public_files():
    for path in sorted(PACKAGE.rglob("*.py")):
        if all(map(is_public, path.relative_to(PACKAGE).with_suffix("").parts)) and path != SCRIPT:
            yield path


def test_all_that_is_public_has_types():
    found = {
        str(path.relative_to(PACKAGE)): names
        for path in public_files()
        if (names := [*untyped(ast.parse(path.read_text(encoding="utf-8")).body)])
    }
    assert not found


def test_the_check_sees_what_lacks_a_type():
    source = """
def whole(a: int, *, b: str = "") -> None: ...
def _private(a): ...
async def result(a: int): ...
class Public:
    def __init__(self, a): ...
    def method(self, *args, b: int, **kwargs: int) -> int: ...
    @staticmethod
    def static(a) -> int: ...
class _Private:
    def method(self, a): ...
"""
    assert [*untyped(ast.parse(source).body)] == [
        "result: return",
        "Public.__init__: a",
        "Public.method: args",
        "Public.static: a",
    ]
