"""A drawing as an SVG or an HTML file that stands alone: no scripts, fonts or links."""

from html import escape

from llamacli.mask_view.drawing import Area, Drawing, Hover, Polygon, Text

_FONT = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def svg(drawing: Drawing) -> str:
    """The drawing as an SVG element, which HTML can hold too."""
    size = f'width="{drawing.width}" height="{drawing.height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"'
            f' viewBox="0 0 {drawing.width} {drawing.height}" font-family="{_FONT}">',
            f"<title>{escape(drawing.title)}</title>",
            f'<rect {size} fill="#ffffff"/>',
            *map(_element, drawing.shapes),
            "</svg>\n",
        ]
    )


def html(drawing: Drawing) -> str:
    """The drawing as a whole page."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(drawing.title)}</title>\n"
        "<style>body { margin: 0; background: #ffffff; }</style>\n"
        f"</head>\n<body>\n{svg(drawing)}</body>\n</html>\n"
    )


def _element(shape: Area | Text | Hover) -> str:
    if isinstance(shape, Area):
        return f'<path fill="{shape.color}" d="{"".join(map(_path, shape.polygons))}"/>'
    x, y = _number(shape.x), _number(shape.y)
    if isinstance(shape, Hover):
        side = _number(shape.side)
        place = f'x="{x}" y="{y}" width="{side}" height="{side}"'
        return f'<rect {place} fill-opacity="0"><title>{escape(shape.text)}</title></rect>'
    place = f'x="{x}" y="{y}"'
    if shape.vertical:
        place += f' transform="rotate(-90 {x} {y})"'
    if shape.anchor != "start":
        place += f' text-anchor="{shape.anchor}"'
    if shape.bold:
        place += ' font-weight="bold"'
    style = f'font-size="{shape.size}" fill="{shape.color}"'
    return f'<text {place} {style} xml:space="preserve">{escape(shape.text)}</text>'


def _path(polygon: Polygon) -> str:
    return "M" + " ".join(f"{_number(x)} {_number(y)}" for x, y in polygon) + "Z"


def _number(value: float) -> str:
    return f"{value:g}"
