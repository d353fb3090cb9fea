"""What dogs and cats wear: every accessory and outfit of the live-subject prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dbexp.storybook.world.pen import COLOURS, GOLD, INK, RGB, TAU, WHITE, Pen, shade

NAVY: RGB = (38, 54, 122)
SILVER: RGB = (206, 212, 216)
RAINBOW: tuple[RGB, ...] = (
    (226, 50, 50),
    (244, 150, 40),
    (246, 220, 60),
    (70, 180, 80),
    (60, 110, 220),
    (150, 70, 190),
)


@dataclass(frozen=True)
class Part:
    """Where a head or a torso is: centre and radii in the local frame of the animal."""

    x: float
    y: float
    rx: float
    ry: float


Painter = Callable[[Pen, Part], None]


@dataclass(frozen=True)
class Outfit:
    """One entry of the prompts' wardrobe.

    Attributes:
        phrase: how captions and prompts say it.
        garment: colour of a garment over torso and sleeves, None when the fur shows.
        on_torso: draws the details of the garment.
        on_neck: drawn under the chin, before the head.
        on_head: drawn last, over the head.
        headroom: how far it rises above the head, in local units; the animal is drawn smaller for it.
    """

    phrase: str
    garment: RGB | None = None
    on_torso: Painter | None = None
    on_neck: Painter | None = None
    on_head: Painter | None = None
    headroom: float = 0.0


def _brow(head: Part) -> float:
    """The height at which a hat sits."""
    return head.y - 0.72 * head.ry


def _red_hat(pen: Pen, head: Part) -> None:
    red, dark, brow = COLOURS["red"], shade(COLOURS["red"], 0.62), _brow(head)
    pen.ellipse(head.x, brow, head.rx * 0.76, 0.4, red, dark, start=TAU / 2, end=TAU)
    pen.box(head.x - head.rx * 0.76, brow - 0.12, head.x + head.rx * 0.76, brow, dark)
    pen.ellipse(head.x, brow + 0.01, head.rx * 1.16, 0.09, red, dark)


def _santa_hat(pen: Pen, head: Part) -> None:
    red, brow, r = COLOURS["red"], _brow(head), head.rx
    fold = [(-0.84, 0.0), (0.84, 0.0), (0.98, -0.26), (1.26, -0.16), (0.84, -0.5), (0.3, -0.6), (-0.3, -0.44)]
    pen.polygon([(head.x + r * x, brow + y) for x, y in fold], red, shade(red, 0.62))
    pen.dot(head.x + r * 1.2, brow - 0.12, 0.13, WHITE, (196, 198, 206))
    pen.box(head.x - r * 0.98, brow - 0.08, head.x + r * 0.98, brow + 0.12, WHITE, (196, 198, 206), radius=0.09)


def _top_hat_and_monocle(pen: Pen, head: Part) -> None:
    brow, r, edge = _brow(head), head.rx, (92, 90, 100)
    pen.box(head.x - r * 0.62, brow - 0.56, head.x + r * 0.62, brow + 0.03, INK, edge)
    pen.box(head.x - r * 0.62, brow - 0.16, head.x + r * 0.62, brow - 0.04, (170, 36, 46))
    pen.ellipse(head.x, brow + 0.03, r * 1.08, 0.09, INK, edge)
    eye_x, eye_y = head.x + 0.2, head.y - 0.05
    pen.line([(eye_x + 0.16, eye_y + 0.06), (eye_x + 0.2, eye_y + 0.46)], (216, 172, 40), 0.035)
    pen.dot(eye_x, eye_y, 0.19, (226, 182, 44))
    pen.dot(eye_x, eye_y, 0.135, (214, 238, 248))
    pen.dot(eye_x, eye_y, 0.07, INK)


def _pink_glasses(pen: Pen, head: Part) -> None:
    frame, y = (244, 66, 160), head.y - 0.05
    pen.line([(head.x - head.rx, y - 0.04), (head.x + head.rx, y - 0.04)], frame, 0.05)
    for side in (-1, 1):
        x = head.x + side * 0.21
        pen.dot(x, y, 0.2, frame)
        pen.dot(x, y, 0.135, (252, 222, 240))
        pen.dot(x, y, 0.065, INK)
    pen.line([(head.x - 0.06, y), (head.x + 0.06, y)], frame, 0.07)


def _rainbow_scarf(pen: Pen, head: Part) -> None:
    y = head.y + head.ry * 0.94
    left, step = head.x - head.rx * 0.92, head.rx * 1.84 / len(RAINBOW)
    for i, colour in enumerate(RAINBOW):
        pen.box(left + i * step, y - 0.1, left + (i + 1) * step + 0.01, y + 0.13, colour)
        pen.box(head.x + 0.1, y + 0.08 + 0.09 * i, head.x + 0.36, y + 0.18 + 0.09 * i, colour)


def _shirt_details(pen: Pen, torso: Part) -> None:
    dark, top = (196, 152, 24), torso.y - torso.ry * 0.62
    pen.polygon([(torso.x - 0.2, top), (torso.x + 0.2, top), (torso.x, top + 0.2)], (252, 236, 150), dark)
    for i in range(2):
        pen.dot(torso.x, top + 0.34 + 0.22 * i, 0.045, dark)


def _chef_jacket(pen: Pen, torso: Part) -> None:
    top = torso.y - torso.ry * 0.5
    pen.polygon([(torso.x - 0.2, top - 0.08), (torso.x + 0.2, top - 0.08), (torso.x, top + 0.1)], COLOURS["red"])
    for side in (-1, 1):
        for i in range(3):
            pen.dot(torso.x + side * 0.12, top + 0.2 + 0.2 * i, 0.05, INK)


def _chef_hat(pen: Pen, head: Part) -> None:
    brow, edge = _brow(head), (176, 178, 188)
    for dx, dy, r in ((-0.27, -0.42, 0.22), (0.27, -0.42, 0.22), (0.0, -0.52, 0.26)):
        pen.dot(head.x + dx, brow + dy, r, WHITE, edge)
    pen.box(head.x - head.rx * 0.62, brow - 0.36, head.x + head.rx * 0.62, brow + 0.06, WHITE, edge)
    pen.box(head.x - head.rx * 0.6, brow - 0.5, head.x + head.rx * 0.6, brow - 0.3, WHITE)
    pen.line([(head.x - head.rx * 0.6, brow - 0.1), (head.x + head.rx * 0.6, brow - 0.1)], edge, 0.03)


def _firefighter_coat(pen: Pen, torso: Part) -> None:
    stripe = (240, 226, 60)
    for share, thickness in ((-0.12, 0.1), (0.48, 0.1)):
        y, half = torso.y + share * torso.ry, torso.rx * (1.0 - share * share) ** 0.5 * 0.94
        pen.box(torso.x - half, y - thickness / 2, torso.x + half, y + thickness / 2, stripe)
        pen.box(torso.x - half, y - thickness / 7, torso.x + half, y + thickness / 7, SILVER)
    pen.line([(torso.x, torso.y - torso.ry * 0.7), (torso.x, torso.y + torso.ry * 0.85)], GOLD, 0.05)


def _firefighter_helmet(pen: Pen, head: Part) -> None:
    red, dark, brow = (206, 34, 30), (122, 18, 20), _brow(head)
    pen.ellipse(head.x, brow - 0.02, head.rx * 0.84, 0.42, red, dark, start=TAU / 2, end=TAU)
    pen.ellipse(head.x, brow - 0.02, 0.08, 0.44, dark, start=TAU / 2, end=TAU)
    pen.ellipse(head.x, brow + 0.01, head.rx * 1.24, 0.1, red, dark)
    shield = [(-0.16, -0.32), (0.16, -0.32), (0.16, -0.12), (0.0, 0.0), (-0.16, -0.12)]
    pen.polygon([(head.x + x, brow + y) for x, y in shield], GOLD, dark)


def _police_jacket(pen: Pen, torso: Part) -> None:
    top = torso.y - torso.ry * 0.55
    pen.polygon([(torso.x - 0.16, top - 0.08), (torso.x + 0.16, top - 0.08), (torso.x, top + 0.16)], (180, 206, 240))
    pen.line([(torso.x, top), (torso.x, torso.y + torso.ry * 0.8)], INK, 0.06)
    pen.star(torso.x - 0.2, top + 0.26, 0.13, GOLD)


def _police_cap(pen: Pen, head: Part) -> None:
    brow, r = _brow(head), head.rx
    crown = [(-0.74, 0.0), (-1.06, -0.3), (-0.5, -0.44), (0.5, -0.44), (1.06, -0.3), (0.74, 0.0)]
    pen.polygon([(head.x + r * x, brow + y) for x, y in crown], NAVY, (16, 22, 60))
    pen.box(head.x - r * 0.76, brow - 0.1, head.x + r * 0.76, brow + 0.02, (18, 24, 58))
    pen.ellipse(head.x, brow + 0.03, r * 0.8, 0.11, INK)
    pen.star(head.x, brow - 0.22, 0.14, GOLD)


def _wizard_robe(pen: Pen, torso: Part) -> None:
    for dx, dy, r in ((-0.18, -0.1, 0.1), (0.16, 0.08, 0.11), (-0.1, 0.34, 0.09)):
        pen.star(torso.x + dx, torso.y + dy, r, GOLD, tips=4, waist=0.4)


def _wizard_hat(pen: Pen, head: Part) -> None:
    purple, dark, brow = COLOURS["purple"], shade(COLOURS["purple"], 0.55), _brow(head)
    pen.polygon(
        [(head.x - head.rx * 0.74, brow), (head.x + head.rx * 0.74, brow), (head.x + 0.1, brow - 0.74)], purple, dark
    )
    pen.ellipse(head.x, brow + 0.01, head.rx * 1.2, 0.1, purple, dark)
    pen.star(head.x + 0.03, brow - 0.26, 0.13, GOLD, tips=4, waist=0.4)


OUTFITS: dict[str, Outfit] = {
    "red_hat": Outfit("wearing a red hat", on_head=_red_hat, headroom=0.1),
    "santa_hat": Outfit("wearing a santa hat", on_head=_santa_hat, headroom=0.3),
    "rainbow_scarf": Outfit("wearing a rainbow scarf", on_neck=_rainbow_scarf),
    "top_hat": Outfit("wearing a black top hat and a monocle", on_head=_top_hat_and_monocle, headroom=0.3),
    "chef": Outfit("in a chef outfit", WHITE, _chef_jacket, on_head=_chef_hat, headroom=0.5),
    "firefighter": Outfit(
        "in a firefighter outfit", (62, 56, 50), _firefighter_coat, on_head=_firefighter_helmet, headroom=0.2
    ),
    "police": Outfit("in a police outfit", NAVY, _police_jacket, on_head=_police_cap, headroom=0.2),
    "pink_glasses": Outfit("wearing pink glasses", on_head=_pink_glasses),
    "yellow_shirt": Outfit("wearing a yellow shirt", COLOURS["yellow"], _shirt_details),
    "wizard": Outfit("in a purple wizard outfit", COLOURS["purple"], _wizard_robe, on_head=_wizard_hat, headroom=0.45),
}
"""The wardrobe, in the order of the paper's list."""
