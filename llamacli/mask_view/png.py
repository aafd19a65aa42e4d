"""A drawing as a PNG file, by Pillow (the extra `png`)."""

import io
from importlib.util import find_spec
from typing import TYPE_CHECKING

from llamacli.errors import RequestError
from llamacli.mask_view.drawing import Area, Drawing, Text

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

_SCALE = 2  # pixels of the file on a side of a pixel of the drawing: sharp on fine screens


def png(drawing: Drawing) -> bytes:
    """The drawing as the bytes of a PNG file; its font knows ASCII alone.

    Raises:
        RequestError: Pillow is not installed.
    """
    check_pillow()
    from PIL import Image, ImageDraw

    size = drawing.width * _SCALE, drawing.height * _SCALE
    image = Image.new("RGB", size, "#ffffff")
    canvas = ImageDraw.Draw(image)
    for shape in drawing.shapes:
        if isinstance(shape, Area):
            for polygon in shape.polygons:
                canvas.polygon([(x * _SCALE, y * _SCALE) for x, y in polygon], fill=shape.color)
        elif isinstance(shape, Text):
            _write(image, canvas, shape)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def check_pillow() -> None:
    """Look whether a PNG file can be written at all.

    Raises:
        RequestError: Pillow is not installed.
    """
    if find_spec("PIL") is None:
        hint = "pip install 'llamacli[png]', or name a .svg or .html file"
        raise RequestError("a PNG file needs Pillow, which is not installed", hint=hint)


def _write(image: "Image.Image", canvas: "ImageDraw.ImageDraw", shape: Text) -> None:
    from PIL import Image, ImageDraw, ImageFont

    text, place = shape.text, (shape.x * _SCALE, shape.y * _SCALE)
    font = ImageFont.load_default(shape.size * _SCALE)
    if not shape.vertical:
        anchor = {"start": "ls", "middle": "ms", "end": "rs"}[shape.anchor]
        bold = 0.5 if shape.bold else 0
        canvas.text(place, text, shape.color, font, anchor, stroke_width=bold)
        return
    ascent = shape.size * _SCALE
    line = Image.new("L", (int(font.getlength(text)) + 1, ascent * 3 // 2))
    ImageDraw.Draw(line).text((0, ascent), text, 255, font, "ls")
    upright = line.rotate(90, expand=True)
    corner = round(place[0]) - ascent, round(place[1]) - upright.height
    image.paste(shape.color, corner, upright)
