"""What the cells of a mask's picture can show: glyph, color and words of each kind."""

from enum import Enum


class Kind(Enum):
    """What a cell of a picture shows, in the order of the legend.

    Glyphs tell the kinds apart without color. Colors are those of Okabe and Ito, and a scale of
    rising darkness (ColorBrewer's Blues), which color-blind readers can tell apart too.

    Attributes:
        glyph, ascii: one character each.
        color: number in the palette of 256 colors that terminals have.
        fill: hexadecimal color on paper.
        meaning: its words in the legend.
        is_visible: the query may attend to the key.
    """

    SELF = "◆", "@", 214, "#e69f00", "self", True
    VISIBLE = "■", "#", 33, "#0072b2", "visible", True
    CACHED = "▣", "o", 80, "#56b4e9", "visible, cached", True
    AHEAD = "▲", "^", 35, "#009e73", "visible ahead, in the prefix", True
    IGNORED = "▫", "+", 146, "#9fb8d0", "seen by padding, ignored", True
    HIDDEN = "·", ".", 244, "#f4f4f4", "hidden, comes later", False
    WINDOW = "╱", "/", 173, "#f6dccb", "hidden, outside the window", False
    DOCUMENT = "×", "x", 175, "#f1dfe9", "hidden, other document", False
    PADDING = "░", "-", 240, "#dcdcdc", "hidden, padding", False
    EMPTY = "□", "_", 244, "#ffffff", "hidden, empty slot of the cache", False
    # Weights, see `weight_level`.
    WEIGHT_1 = "▁", "1", 60, "#eff3ff", "below 1.6 %", True
    WEIGHT_2 = "▂", "2", 61, "#d2e3f3", "from 1.6 %", True
    WEIGHT_3 = "▃", "3", 67, "#aacfe5", "from 6.3 %", True
    WEIGHT_4 = "▄", "4", 73, "#74b0d7", "from 14 %", True
    WEIGHT_5 = "▅", "5", 79, "#4a90c4", "from 25 %", True
    WEIGHT_6 = "▆", "6", 113, "#2370b0", "from 39 %", True
    WEIGHT_7 = "▇", "7", 148, "#0d509a", "from 56 %", True
    WEIGHT_8 = "█", "8", 220, "#08306b", "from 77 %", True
    # Shares of many pairs, see `share_level`.
    NONE = " ", " ", 244, "#f4f4f4", "none visible", False
    FEW = "░", ".", 33, "#c6dbef", "up to 1/3", True
    SOME = "▒", ":", 33, "#85bcdc", "up to 2/3", True
    MANY = "▓", "+", 33, "#3a88bd", "more", True
    ALL = "█", "#", 33, "#0072b2", "all visible", True

    def __init__(
        self, glyph: str, ascii: str, color: int, fill: str, meaning: str, is_visible: bool
    ) -> None:
        self.glyph, self.ascii, self.color, self.fill = glyph, ascii, color, fill
        self.meaning, self.is_visible = meaning, is_visible


WEIGHTS = [kind for kind in Kind if kind.name.startswith("WEIGHT")]
SHARES = [Kind.NONE, Kind.FEW, Kind.SOME, Kind.MANY, Kind.ALL]


def weight_level(weight: float) -> Kind:
    """One of eight levels, in even steps of the weight's square root: small ones differ too."""
    return WEIGHTS[min(int(8 * weight**0.5), 7)]


def share_level(share: float) -> Kind:
    """One of five levels of the share of pairs that are visible."""
    if share in (0, 1):
        return SHARES[-int(share)]
    return SHARES[1 + int(share * 3)]


def explained(shown: set[Kind]) -> list[Kind]:
    """The kinds that a legend explains, in order: those that are shown, and a scale in full."""
    scale = next((scale for scale in (WEIGHTS, SHARES) if not shown.isdisjoint(scale)), [])
    return [kind for kind in Kind if kind in shown or kind in scale]
