"""What every HTML page of this package is made of: escaping, tables, pictures.

A page is one file: pictures are data URIs, there is no script, and a content security
policy forbids the browser to fetch anything. Whatever comes from data goes through
`escape`.
"""

import base64
import html
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import figure as mpl_figure
from PIL import Image

PICTURE_PX = 144

# Okabe and Ito's colours, told apart with any colour vision.
BLUE, ORANGE, GREEN, INK, PALE = "#0072b2", "#d55e00", "#009e73", "#222222", "#c9d9e6"
STYLE: dict[Any, Any] = {
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 10,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "ubrain-jax",  # the same figure is the same bytes
    "text.parse_math": False,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
}


def escape(value: object) -> str:
    return html.escape(str(value), quote=True)


def printable(text: str) -> str:
    """Without characters that would move a terminal's cursor or colour it."""
    return "".join(c if c.isprintable() else "?" for c in text)


def ascii_label(key: str) -> str:
    """A key of the log as the figures' font can draw it."""
    return key.encode("ascii", "replace").decode()


def defined(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def number(value: float | None, form: str = "{:.3f}") -> str:
    return form.format(value) if defined(value) else "-"


def plural(count: int, word: str) -> str:
    return f"{count:,} {word}" + ("" if count == 1 else "s")


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], label: str, kind: str = ""
) -> str:
    """A table that scrolls by itself on a narrow screen; cells are HTML."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    top = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    lines = "".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f"<td>{cell}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll {kind}" role="region" tabindex="0" '
        f'aria-label="{escape(label)}">'
        f"<table>{top}<tbody>{lines}</tbody></table></div>"
    )


def picture(pixels: np.ndarray) -> str:
    """(y, x, 3) uint8 -> data URI of a JPEG of at most `PICTURE_PX`."""
    image = Image.fromarray(np.asarray(pixels, np.uint8))
    image.thumbnail((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=88)
    return data_uri("image/jpeg", buffer.getvalue())


def data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def figure_html(fig: mpl_figure.Figure, caption: str, alt: str) -> str:
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        fig.savefig(buffer, format="svg", dpi=150, metadata={"Date": None})
    uri = data_uri("image/svg+xml", buffer.getvalue())
    return (
        f'<figure><img src="{uri}" alt="{escape(alt)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def document(title: str, body: str) -> str:
    """A whole page; the title is text, the body HTML."""
    return _PAGE.format(title=escape(title), style=_CSS, body=body)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_CSS = """
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #222; font: 16px/1.55 system-ui,
  -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 90rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.8rem; line-height: 1.25; margin: 0 0 .5rem;
  overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .75rem; padding-bottom: .3rem;
  border-bottom: 1px solid #ddd; }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; overflow-wrap: anywhere; }
h4 { font-size: .95rem; margin: 1.25rem 0 .4rem; overflow-wrap: anywhere; }
p { margin: .5rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.lead { color: #555; margin-bottom: 1rem; }
.warning { background: #fff4d6; border: 1px solid #c98a00; border-left-width: 6px;
  border-radius: 4px; padding: .6rem .9rem; max-width: none; }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .85rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid #eaeaea; }
th:first-child { text-align: left; padding-left: 0; }
thead th { color: #555; font-weight: 600; border-bottom: 1px solid #999;
  vertical-align: bottom; }
tbody th { font-weight: 600; }
.facts th { color: #555; }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.range { color: #6b6b6b; font-weight: 400; font-size: .85em; }
.scale { display: flex; justify-content: space-between; width: 120px;
  color: #6b6b6b; font-weight: 400; font-size: .85em; }
.spread { display: block; }
figure { margin: 0; }
figure > img { max-width: 100%; height: auto; }
li { overflow-wrap: anywhere; }
figcaption { color: #555; font-size: .85rem; line-height: 1.4; margin-top: .25rem;
  overflow-wrap: anywhere; }
.figures { display: grid; gap: 1.25rem 2rem; margin: .75rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.figures img { width: 100%; max-width: 30rem; height: auto; display: block; }
.query { margin: .4rem 0 1rem; }
.row { display: grid; gap: .5rem;
  grid-template-columns: minmax(0, 7rem) .25rem repeat(5, minmax(0, 7rem)); }
.cell.seen + .cell { grid-column: 3; }
.cell { text-align: center; font-size: .8rem; color: #555; }
.cell img { width: 100%; height: auto; display: block; border-radius: 3px;
  border: 3px solid transparent; }
.cell.true img { border-color: #009e73; }
.cell.true, .true-mark { color: #00694d; font-weight: 600; }
pre { background: #f6f6f6; padding: .75rem 1rem; border-radius: 4px; font-size: .8rem;
  line-height: 1.4; white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; }
@media (max-width: 40rem) {
  main { padding: 1.25rem 1rem 3rem; }
  th, td { padding: .3rem .5rem; }
  .row { gap: .25rem; }
}
@media print {
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  .scroll { overflow: visible; }
  table { font-size: 8.5pt; }
  th, td { padding: .2rem .4rem; }
  .figures { grid-template-columns: 1fr 1fr; }
  figure, tr, section > h3 { break-inside: avoid; }
  h2, h3, h4 { break-after: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""
