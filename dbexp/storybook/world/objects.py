"""Backpacks and teapots, also cube shaped. Same local frame as the animals: the bottom stands at y = 1."""

from __future__ import annotations

from dbexp.storybook.world.cube import Cube
from dbexp.storybook.world.identity import Identity
from dbexp.storybook.world.pen import GOLD, INK, TAU, WHITE, Pen, mix, shade

CORNER_RADIUS = {"round": 0.34, "tall": 0.24, "square": 0.08}
"""Of a backpack, by its build."""


def draw_object(pen: Pen, identity: Identity, *, cube: bool = False) -> None:
    """Draw a backpack or a teapot."""
    if identity.class_noun == "backpack":
        _cube_backpack(pen, identity) if cube else _backpack(pen, identity)
    else:
        _cube_teapot(pen, identity) if cube else _teapot(pen, identity)


def _backpack(pen: Pen, identity: Identity) -> None:
    coat, edge = identity.coat, shade(identity.coat, 0.5)
    half = 0.66 * identity.width
    top = 1.0 - (1.72 if identity.shape == "tall" else 1.56) * identity.height
    _handle(pen, top, edge)
    if identity.has("monster"):
        _monster_ears(pen, identity, half, top)
    for side in (-1, 1):
        strap = [(side * half * 0.92, top + 0.42), (side * (half + 0.2), 0.1), (side * (half + 0.1), 0.8)]
        pen.line(strap, shade(coat, 0.45), 0.16)
        pen.line(strap, shade(coat, 0.66), 0.11)
    pen.box(-half, top, half, 0.98, coat, edge, radius=CORNER_RADIUS[identity.shape])
    _fabric_markings(pen, identity, half, top, 0.98)
    flap = top + 0.36
    if identity.has("monster"):
        _monster_eyes(pen, identity, 0.0, top + 0.4)
    else:
        pen.line([(-half * 0.82, flap), (half * 0.82, flap)], edge, 0.045)
    _pocket(pen, identity, 0.0, half * 0.76, 0.3, 0.86)


def _cube_backpack(pen: Pen, identity: Identity) -> None:
    edge = shade(identity.coat, 0.5)
    pen.line([(-0.02, -0.42), (0.02, -0.64), (0.28, -0.64), (0.32, -0.42)], edge, 0.09)
    for x in (-0.74, 0.96):
        pen.line([(x, -0.1), (x + (0.12 if x > 0 else -0.12), 0.25), (x, 0.7)], shade(identity.coat, 0.5), 0.13)
    if identity.has("monster"):
        _monster_ears(pen, identity, 0.66, -0.2)
    Cube(-0.7, -0.2, 0.62, 0.98, depth=0.32).draw(pen, identity.coat)
    _fabric_markings(pen, identity, 0.62, -0.2, 0.98)
    if identity.has("monster"):
        _monster_eyes(pen, identity, -0.04, 0.08)
    else:
        pen.line([(-0.6, 0.1), (0.52, 0.1)], edge, 0.045)
    _pocket(pen, identity, -0.04, 0.46, 0.34, 0.86)


def _handle(pen: Pen, top: float, edge: tuple[int, int, int]) -> None:
    pen.line([(-0.17, top + 0.06), (-0.14, top - 0.16), (0.14, top - 0.16), (0.17, top + 0.06)], edge, 0.09)


def _fabric_markings(pen: Pen, identity: Identity, half: float, top: float, bottom: float) -> None:
    if identity.has("stripe"):
        for side in (-1, 1):
            pen.box(side * half * 0.62 - 0.08, top + 0.05, side * half * 0.62 + 0.08, bottom - 0.03, identity.accent)
    if identity.has("band"):
        pen.box(-half, top + 0.46, half, top + 0.66, identity.accent)
    if identity.has("dots"):
        for x, y in ((-0.52, 0.2), (0.0, 0.2), (0.52, 0.2), (-0.28, 0.52), (0.28, 0.52)):
            pen.dot(x * half, top + y, 0.095, identity.accent)


def _pocket(pen: Pen, identity: Identity, x: float, half: float, y0: float, y1: float) -> None:
    plain = not (identity.has("pocket") or identity.has("monster"))
    fill = shade(identity.coat, 0.84) if plain else identity.accent
    edge = shade(identity.coat, 0.5)
    pen.box(x - half, y0, x + half, y1, fill, edge, radius=0.12)
    if identity.has("heart"):
        pen.heart(x, (y0 + y1) / 2, 0.21, identity.third)
        return
    pen.line([(x - half * 0.8, y0 + 0.14), (x + half * 0.8, y0 + 0.14)], edge, 0.04)
    pen.box(x - 0.06, y0 + 0.1, x + 0.06, y0 + 0.26, (232, 212, 124))


def _monster_ears(pen: Pen, identity: Identity, half: float, top: float) -> None:
    edge = shade(identity.third, 0.6)
    for side in (-1, 1):
        horn = [(0.92, 0.24), (0.3, 0.08), (0.8, -0.38)]
        pen.polygon([(side * half * x, top + y) for x, y in horn], identity.third, edge)


def _monster_eyes(pen: Pen, identity: Identity, x: float, y: float) -> None:
    for side in (-1, 1):
        pen.dot(x + side * 0.23, y, 0.17, WHITE, shade(identity.coat, 0.5))
        pen.dot(x + side * 0.23, y + 0.03, 0.085, INK)


def _teapot(pen: Pen, identity: Identity) -> None:
    coat, edge = identity.coat, shade(identity.coat, 0.5)
    half = (0.56 if identity.shape == "tall" else 0.68) * identity.width
    rise = (0.64 if identity.shape == "tall" else 0.54) * identity.height
    y = 0.92 - rise
    _teapot_handle(pen, identity, -half * 0.86, y)
    _spout(pen, identity, half * 0.72, y)
    pen.box(-0.34, 0.84, 0.34, 0.98, shade(coat, 0.62), edge, radius=0.04)
    if identity.shape == "square":
        pen.box(-half, y - rise, half, y + rise, coat, edge, radius=0.2)
    else:
        pen.ellipse(0.0, y, half, rise, coat, edge)
    _glaze_markings(pen, identity, y, half, rise)
    pen.ellipse(-half * 0.5, y - rise * 0.38, 0.08, 0.17, mix(coat, (255, 255, 255), 0.6), angle=0.5)
    _lid(pen, identity, 0.0, y - rise + 0.05)


def _cube_teapot(pen: Pen, identity: Identity) -> None:
    _teapot_handle(pen, identity, -0.52, 0.42)
    _spout(pen, identity, 0.86, 0.32)
    Cube(-0.6, -0.08, 0.58, 0.98, depth=0.3).draw(pen, identity.coat)
    _glaze_markings(pen, identity, 0.45, 0.56, 0.5)
    Cube(-0.16, -0.4, 0.3, -0.2, depth=0.14).draw(pen, _lid_colour(identity))
    pen.dot(0.14, -0.6, 0.11, _lid_colour(identity), shade(identity.coat, 0.5))


def _lid_colour(identity: Identity) -> tuple[int, int, int]:
    if identity.has("moon"):
        return identity.third
    return identity.accent if identity.has("lid") else shade(identity.coat, 0.86)


def _lid(pen: Pen, identity: Identity, x: float, y: float) -> None:
    edge = shade(identity.coat, 0.5)
    colour = _lid_colour(identity)
    pen.ellipse(x, y + 0.06, 0.38, 0.24, colour, edge, start=TAU / 2, end=TAU)
    pen.ellipse(x, y + 0.06, 0.4, 0.06, colour, edge)
    pen.dot(x, y - 0.24, 0.11, colour, edge)


def _teapot_handle(pen: Pen, identity: Identity, x: float, y: float) -> None:
    bow = [(x, y - 0.28), (x - 0.3, y - 0.3), (x - 0.4, y), (x - 0.26, y + 0.28), (x + 0.06, y + 0.3)]
    pen.line(bow, shade(identity.coat, 0.5), 0.17)
    pen.line(bow, shade(identity.coat, 0.84), 0.11)


def _spout(pen: Pen, identity: Identity, x: float, y: float) -> None:
    points = [(-0.2, 0.3), (0.28, -0.42), (0.54, -0.46), (0.38, -0.14), (0.12, 0.4)]
    fill = identity.third if identity.has("moon") else shade(identity.coat, 0.9)
    pen.polygon([(x + px, y + py) for px, py in points], fill, shade(identity.coat, 0.5))


def _glaze_markings(pen: Pen, identity: Identity, y: float, half: float, rise: float) -> None:
    if identity.has("stripe"):
        for x in (-0.5, 0.0, 0.5):
            reach = rise * (0.92 if x == 0.0 else 0.76)
            pen.line([(x * half, y - reach), (x * half, y + reach)], identity.accent, 0.1)
    if identity.has("band"):
        pen.box(-half * 0.97, y - 0.1, half * 0.97, y + 0.12, identity.accent)
    if identity.has("dots"):
        for x, dy in ((-0.55, 0.12), (0.0, -0.08), (0.55, 0.12), (-0.26, 0.32), (0.26, 0.32), (0.4, -0.26)):
            pen.dot(x * half, y + dy, 0.09, identity.accent)
    if identity.has("moon"):
        pen.dot(-0.02, y + 0.06, 0.3, identity.accent)
        pen.dot(0.11, y - 0.01, 0.25, identity.coat)
        pen.star(0.2, y + 0.02, 0.16, GOLD)
