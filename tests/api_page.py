"""docs/api.md from the docstrings; tests/test_api_page.py compares them.

    python -m tests.api_page

Nothing is imported: griffe reads the sources. What is listed below is what users of
the package are promised; the rest may change.
"""

import pathlib
import re
import textwrap

import griffe

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / "docs/api.md"
# Modules in the order of the page, and what is shown of each.
SHOWN = {
    "universal": ("UniversalEncoder", "Block", "Features"),
    "datasets.given": ("open_pictures", "Given"),
    "fit": ("Settings",),
    "predict": ("to_file",),
    "maps.brain": ("check", "write", "Output"),
    "maps.cortex": ("draw",),
    "maps.derivatives": ("write",),
    "atlas.pooled": ("pool", "read_scores", "Pooled"),
    "atlas.clusters": ("fit", "assign", "cut", "rename", "Clusters", "Cut"),
    "atlas.cluster_choice": ("choose_k", "Choice"),
    "atlas.cluster_agreement": ("across_subjects", "Agreement"),
    "atlas.cluster_tables": ("table", "Row", "Region"),
    "atlas.fields": ("of_attention", "fit", "level", "Fields", "Levels"),
    "atlas.prf": ("find", "read", "compare", "Measured"),
    "atlas.wants": (
        *("mean_response", "top", "contrast", "agreement", "in_region"),
        *("Part", "GroupResponse", "Contrast"),
    ),
    "atlas.neighbours": ("nearest", "centre", "Nearest"),
    "atlas.flat": ("map2d", "colours", "draw", "Flat"),
    "exploration": ("explore", "Settings", "Exploration", "Brain", "Wants"),
    "metrics": (
        *("pearson", "r2", "noise_ceiling", "noise_normalised"),
        *("pattern_correlation", "retrieval", "Retrieval", "two_afc", "TwoAfc"),
        "quartiles",
    ),
    "crowd": (
        *("open_crowd", "read_pictures", "read_responses", "with_images"),
        *("Crowd", "SubjectRows"),
    ),
    "model.bundle": (
        *("read", "write", "is_bundle", "read_subject", "write_subject"),
        *("Bundle", "Subject", "Backbone"),
    ),
    "hub": ("find", "push", "Found"),
    "errors": ("InputError", "MissingInputError", "ConfigError", "OutputError"),
}
HEAD = """# Functions of ubrain_jax

Made from the docstrings by `make docs`. Letters: M pictures, V voxels of a subject, B
pictures in a call, E numbers of an embedding, L taps, R regions. Responses are z-scores
within session or run. Start with [first_five_minutes.md](first_five_minutes.md).
"""
PARSER = {"returns_multiple_items": False, "returns_named_value": False}


def page() -> str:
    """The whole page."""
    package = griffe.load(
        "ubrain_jax",
        search_paths=[ROOT],
        docstring_parser="google",
        docstring_options=PARSER,
    )
    parts, contents = [], []
    for name, members in SHOWN.items():
        module = package[name]
        title = f"ubrain_jax.{name}"
        contents.append(f"- [{title}](#{_anchor(title)}): {_first(module)}")
        parts += [f"## {title}", *_prose(module), _source(module)]
        for member in members:
            parts += _member(module[member], title_of(name, member))
    return "\n\n".join([HEAD.strip(), "\n".join(contents), *parts]) + "\n"


def title_of(module: str, member: str) -> str:
    """A heading, which no other module has: bundle.write, brain.write."""
    if member == "UniversalEncoder":
        return member
    return f"{module.rpartition('.')[2]}.{member}"


def _anchor(title: str) -> str:
    """Of a heading, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _source(module: griffe.Module) -> str:
    """Its file; a line number would change with every edit above it."""
    path = pathlib.Path(module.filepath).relative_to(ROOT)
    return f"Source: [{path}](../{path})"


def _first(thing: griffe.Object) -> str:
    return " ".join(thing.docstring.value.split("\n\n")[0].split())


def _prose(thing: griffe.Object) -> list[str]:
    """A module's docstring: tables and indented lines as they are."""
    parts = []
    for block in thing.docstring.value.split("\n\n"):
        if ">>>" in block:
            lines = textwrap.dedent(block).replace("# doctest: +SKIP", "").splitlines()
            block = "\n".join(["```pycon", *map(str.rstrip, lines), "```"])
        elif block.startswith((" ", "==")):
            block = f"```text\n{block}\n```"
        parts.append(block)
    return parts


def _member(thing: griffe.Object, title: str) -> list[str]:
    """A function, property, class or record, and what is public in it."""
    parts = [f"### {title}"]
    if thing.is_function:
        parts.append(f"`{_signature(thing)}`")
    elif thing.is_attribute:
        parts.append(f"`{thing.annotation}`, read only")
    parts += _docstring(thing)
    if thing.is_class:
        parts[1:1] = _constructor(thing)
        for name, member in thing.members.items():
            if not name.startswith("_") and member.docstring:
                parts += _member(member, f"{title}.{name}")
    return parts


def _signature(function: griffe.Function) -> str:
    """Names and defaults; types are in the table below it."""
    texts, named = [], False
    for p in function.parameters:
        if p.name in ("self", "cls"):
            continue
        kind = p.kind.value
        if kind == "keyword-only" and not named:
            texts.append("*")
            named = True
        star = {"variadic positional": "*", "variadic keyword": "**"}.get(kind, "")
        default = f"={p.default}" if p.default is not None and not star else ""
        texts.append(f"{star}{p.name}{default}")
    returned = f" -> {function.returns}" if function.returns else ""
    return f"{function.name}({', '.join(texts)}){returned}".replace(" -> None", "")


def _constructor(thing: griffe.Class) -> list[str]:
    """How an instance is made, where the class says it itself."""
    own = thing.members.get("__init__")
    if own is None or not own.lineno or thing.labels & {"dataclass"}:
        return []
    return [f"`{_signature(own).replace('__init__', thing.name)}`"]


def _docstring(thing: griffe.Object) -> list[str]:
    """Text and sections; the comments of a dataclass's fields."""
    parts = []
    for section in thing.docstring.parsed if thing.docstring else []:
        value, kind = section.value, section.kind.value
        if kind == "text":
            parts.append(value)
        elif kind in ("parameters", "attributes"):
            parts.append(_table(kind, value))
        elif kind == "returns":
            parts.append(f"**Returns** {_returned(thing)}")
        elif kind == "raises":
            lines = [f"- `{x.annotation}`: {_flat(x.description)}" for x in value]
            parts.append("\n".join(["**Raises**", "", *lines]))
        elif kind == "admonition":
            fence = "pycon" if section.title == "Example" else "text"
            text = value.contents
            parts.append(f"**{section.title}**\n\n```{fence}\n{text}\n```")
        else:
            raise ValueError(f"{thing.path}: a section {kind!r}, which no page shows")
    if thing.is_class and "dataclass" in thing.labels:
        parts.append(_fields(thing))
    return parts


def _returned(thing: griffe.Object) -> str:
    """The section's text as it is: griffe takes words before a colon for a type."""
    found = re.search(r"^Returns:\n((?: +.*\n?|\n)*)", thing.docstring.value, re.M)
    return _flat(found[1])


def _table(kind: str, rows: list) -> str:
    name = "argument" if kind == "parameters" else "field"
    lines = [f"| {name} | type | |", "|---|---|---|"]
    for row in rows:
        kind = f"`{_cell(str(row.annotation))}`" if row.annotation else ""
        lines.append(f"| `{row.name}` | {kind} | {_cell(row.description)} |")
    return "\n".join(lines)


def _fields(thing: griffe.Class) -> str:
    """Fields of a dataclass: default, and the comment above each."""
    source = pathlib.Path(thing.filepath).read_text(encoding="utf-8").splitlines()
    lines = ["| setting | type | default | |", "|---|---|---|---|"]
    for name, field in thing.members.items():
        if not field.is_attribute:
            continue
        first = field.lineno - 1
        while source[first - 1].strip().startswith("#"):
            first -= 1
        comment = " ".join(x.strip("# ") for x in source[first : field.lineno - 1])
        cells = f"`{name}`", f"`{field.annotation}`", f"`{field.value}`", _cell(comment)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _flat(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    """Text that does not break a table."""
    return _flat(text).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
