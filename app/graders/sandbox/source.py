"""What can be told from a user's source without running it: its imports, and whether it has a `grade`.

Runs inside the sandbox, in a child under full lockdown, because a parser can be attacked too.
"""

import ast

NO_GRADE = "The source defines no function `grade(sample, item)`."
_MOST_IMPORTS = 200


def imports(tree: ast.Module) -> list[str]:
    """Return the modules a source imports anywhere, by their full names."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return sorted(names)[:_MOST_IMPORTS]


def lacks(tree: ast.Module) -> str | None:
    """Say what surely keeps a source from being a grader, or None; what is unsure is left to the call."""
    if not any(_may_bind_grade(node) for node in ast.walk(tree)):
        return NO_GRADE
    plain = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "grade"]
    if not plain or plain[-1].decorator_list:
        return None
    arguments = plain[-1].args
    positional = len(arguments.posonlyargs) + len(arguments.args)
    enough = positional >= 2 or arguments.vararg is not None
    keywords = any(default is None for default in arguments.kw_defaults)
    if enough and positional - len(arguments.defaults) <= 2 and not keywords:
        return None
    return wrong_arguments(f"({ast.unparse(arguments)})", plain[-1].lineno)


def wrong_arguments(signature: str, line: int | None = None) -> str:
    """Return the message about a `grade` that cannot be called with a sample and an item."""
    place = f" (line {line})" if line else ""
    return f"`grade` must take two positional arguments, (sample, item); it takes {signature}{place}."


def _may_bind_grade(node: ast.AST) -> bool:
    match node:
        case ast.FunctionDef(name="grade") | ast.AsyncFunctionDef(name="grade") | ast.ClassDef(name="grade"):
            return True
        case ast.Name(id="grade", ctx=ast.Store()):
            return True
        case ast.alias(name="grade" | "*") | ast.alias(asname="grade"):
            return True
        # Whoever writes into the namespace by hand is taken at their word.
        case ast.Name(id="globals" | "exec" | "setattr" | "locals"):
            return True
    return False
