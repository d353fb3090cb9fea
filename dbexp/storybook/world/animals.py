"""Dogs and cats, sitting, standing and cube shaped.

Local frame: the feet stand at y = 1, the head ends near y = -0.9, about two units wide. Poses differ in where head,
torso and legs are; the face is always seen from the front, so that it stays crisp in a small picture.
"""

from __future__ import annotations

import itertools

from dbexp.storybook.world.cube import Cube
from dbexp.storybook.world.identity import Identity
from dbexp.storybook.world.outfits import Outfit, Part
from dbexp.storybook.world.pen import INK, RGB, WHITE, Pen, is_dark, mix, shade

POSES = ("sit", "stand")
PLAIN = Outfit("")
SPOTS = ((-0.45, -0.35), (0.35, 0.05), (-0.2, 0.45), (0.1, -0.55), (0.6, -0.4))
"""Centres of a spotted coat, in radii of the torso."""


def draw_animal(pen: Pen, identity: Identity, pose: str, outfit: Outfit = PLAIN) -> None:
    """Draw a dog or a cat in one of `POSES`."""
    if pose == "sit":
        head, torso = Part(0.0, -0.36, 0.52 * identity.width, 0.5), Part(0.0, 0.46, 0.44 * identity.width, 0.5)
        _sitting_body(pen, identity, torso, outfit)
    else:
        head, torso = Part(0.42, -0.3, 0.48 * identity.width, 0.46), Part(-0.1, 0.3, 0.68, 0.36 * identity.height)
        _standing_body(pen, identity, torso, outfit)
    if outfit.on_neck:
        outfit.on_neck(pen, head)
    _head(pen, identity, head)
    if outfit.on_head:
        outfit.on_head(pen, head)


def draw_cube_animal(pen: Pen, identity: Identity) -> None:
    """Draw a cube shaped dog or cat: a block with a face, ears, stub feet and a tail."""
    cube = Cube(-0.66, -0.3, 0.62, 0.86, depth=0.3)
    _tail(pen, identity, [(0.8, 0.5), (1.05, 0.35), (1.1, 0.02)])
    for x in (-0.42, 0.38, 0.72):
        pen.box(x - 0.14, 0.76, x + 0.14, 0.98, _sock(identity), shade(identity.coat, 0.5), radius=0.06)
    cube.draw(pen, identity.coat)
    face = Part(-0.02, 0.16, 0.6, 0.5)
    brow = Part(face.x, face.y, 0.62, 0.52)
    if identity.shape != "floppy":
        _ears(pen, identity, brow)
    if identity.has("stripes"):
        for x in (-0.52, 0.48):
            for i in range(3):
                pen.line([(x - 0.1, 0.02 + 0.26 * i), (x + 0.1, 0.06 + 0.26 * i)], identity.accent, 0.07)
    if identity.has("spots"):
        for x, y in ((-0.48, -0.12), (0.46, 0.66), (0.4, -0.16)):
            pen.dot(x, y, 0.1, identity.accent)
    if identity.shape == "floppy":
        _ears(pen, identity, brow)
    _face_markings(pen, identity, face)
    _face(pen, identity, face)
    _chest_marking(pen, identity, -0.02, 0.7, 0.13)


def _sock(identity: Identity) -> RGB:
    return identity.accent if identity.has("socks") else identity.coat


def _tail(pen: Pen, identity: Identity, points: list[tuple[float, float]]) -> None:
    width = 0.17 if identity.class_noun == "dog" else 0.14
    colour = identity.third if identity.has("cuffs") else identity.coat
    pen.line(points, shade(identity.coat, 0.5), width + 0.05, round_ends=True)
    pen.line(points, colour, width, round_ends=True)
    if identity.has("rings"):
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            for share in (0.3, 0.8):
                pen.dot(x0 + (x1 - x0) * share, y0 + (y1 - y0) * share, width * 0.52, identity.accent)


def _leg(pen: Pen, identity: Identity, x: float, top: float, colour: RGB, *, half: float = 0.12) -> None:
    """One leg from `top` to the ground, with its sock and, on held-out subjects, a coloured cuff."""
    edge = shade(identity.coat, 0.5)
    pen.box(x - half, top, x + half, 0.97, colour, edge, radius=0.08)
    if identity.has("cuffs"):
        pen.box(x - half, 0.66, x + half, 0.8, identity.third)
    pen.ellipse(x + 0.01, 0.92, half + 0.05, 0.1, _sock(identity), edge)


def _sitting_body(pen: Pen, identity: Identity, torso: Part, outfit: Outfit) -> None:
    coat, edge = identity.coat, shade(identity.coat, 0.5)
    if identity.class_noun == "dog":
        _tail(pen, identity, [(0.3, 0.84), (0.66, 0.72), (0.78, 0.4)])
    else:
        _tail(pen, identity, [(0.3, 0.88), (0.7, 0.82), (0.82, 0.46), (0.68, 0.16)])
    for side in (-1, 1):
        pen.ellipse(side * 0.34 * identity.width, 0.8, 0.26, 0.2, shade(coat, 0.8), edge)
    pen.ellipse(torso.x, torso.y, torso.rx, torso.ry, outfit.garment or coat, edge)
    _torso_details(pen, identity, torso, outfit)
    for side in (-1, 1):
        sleeve = shade(outfit.garment, 0.88) if outfit.garment else coat
        _leg(pen, identity, side * 0.19, 0.62, sleeve)


def _standing_body(pen: Pen, identity: Identity, torso: Part, outfit: Outfit) -> None:
    coat, edge = identity.coat, shade(identity.coat, 0.5)
    _tail(pen, identity, [(-0.66, 0.2), (-0.92, 0.02), (-1.0, -0.3)])
    sleeve = outfit.garment or coat
    _leg(pen, identity, -0.4, 0.4, shade(coat, 0.78))
    _leg(pen, identity, 0.2, 0.4, shade(sleeve, 0.78))
    _leg(pen, identity, -0.6, 0.4, coat)
    _leg(pen, identity, 0.42, 0.4, sleeve)
    pen.ellipse(torso.x, torso.y, torso.rx, torso.ry, outfit.garment or coat, edge)
    _torso_details(pen, identity, torso, outfit)


def _torso_details(pen: Pen, identity: Identity, torso: Part, outfit: Outfit) -> None:
    """The garment's trim where there is a garment, the coat's markings where there is none."""
    if outfit.garment is not None:
        if outfit.on_torso:
            outfit.on_torso(pen, torso)
        return
    sitting = torso.ry > torso.rx
    if identity.has("spots"):
        for x, y in SPOTS:
            pen.dot(torso.x + x * torso.rx, torso.y + y * torso.ry, 0.1, identity.accent)
    if identity.has("stripes"):
        for share in (-0.3, 0.05, 0.4):
            if sitting:
                y = torso.y + share * torso.ry
                for side in (-1, 1):
                    x = torso.x + side * torso.rx
                    pen.line([(x * 0.9, y), (x * 0.4, y + 0.05)], identity.accent, 0.08)
            else:
                x, y = torso.x + (share - 0.25) * torso.rx, torso.y - torso.ry
                pen.line([(x, y + 0.05), (x + 0.05, y + 0.4)], identity.accent, 0.09)
    if identity.has("chest"):
        x = torso.x if sitting else torso.x + 0.42
        pen.ellipse(x, torso.y - 0.02, 0.23, 0.3 if sitting else 0.22, identity.accent)
    _chest_marking(pen, identity, torso.x if sitting else torso.x - 0.14, torso.y, 0.25)


def _chest_marking(pen: Pen, identity: Identity, x: float, y: float, size: float) -> None:
    """The emblem of a held-out subject."""
    if identity.has("heart"):
        pen.heart(x, y, size, identity.third)
    if identity.has("star"):
        pen.star(x, y, size * 1.2, identity.third)
    if identity.has("diamond"):
        tall, wide = size * 1.2, size * 0.8
        pen.polygon([(x, y - tall), (x + wide, y), (x, y + tall), (x - wide, y)], identity.third)


def _ears(pen: Pen, identity: Identity, head: Part) -> None:
    edge = shade(identity.coat, 0.5)
    colour = identity.accent if identity.has("ears") else shade(identity.coat, 0.82)
    colours = (colour, identity.third if identity.has("ears") else colour)
    for side, fill in zip((-1, 1), colours, strict=True):
        if identity.class_noun == "cat":
            outer = [(0.1, -0.84), (0.74, -1.5), (0.86, -0.3)]
            inner = [(0.34, -0.84), (0.68, -1.2), (0.72, -0.56)]
            pen.polygon([(head.x + side * x * head.rx, head.y + y * head.ry) for x, y in outer], fill, edge)
            pen.polygon([(head.x + side * x * head.rx, head.y + y * head.ry) for x, y in inner], (240, 166, 176))
        elif identity.shape == "floppy":
            pen.ellipse(head.x + side * head.rx, head.y + 0.1, 0.17, 0.38, fill, edge, angle=-side * 0.22)
        elif identity.shape == "pointed":
            points = [(0.24, -0.7), (0.74, -1.44), (0.96, -0.2)]
            pen.polygon([(head.x + side * x * head.rx, head.y + y * head.ry) for x, y in points], fill, edge)
        else:
            pen.dot(head.x + side * head.rx * 0.74, head.y - head.ry * 0.72, 0.21, fill, edge)


def _head(pen: Pen, identity: Identity, head: Part) -> None:
    if identity.shape != "floppy":
        _ears(pen, identity, head)
    pen.ellipse(head.x, head.y, head.rx, head.ry, identity.coat, shade(identity.coat, 0.5))
    _face_markings(pen, identity, head)
    if identity.shape == "floppy":
        _ears(pen, identity, head)
    _face(pen, identity, head)


def _face_markings(pen: Pen, identity: Identity, head: Part) -> None:
    if identity.has("split"):
        pen.ellipse(head.x, head.y, head.rx * 0.96, head.ry * 0.96, identity.accent, start=-1.5708, end=1.5708)
    if identity.has("stripes"):
        for k in (-1, 0, 1):
            x = head.x + 0.13 * k
            pen.line([(x, head.y - head.ry * 0.94), (x * 0.98, head.y - head.ry * 0.5)], identity.accent, 0.06)
    if identity.has("patch"):
        pen.ellipse(head.x - 0.21, head.y - 0.06, 0.2, 0.23, identity.accent)
    if identity.has("rings"):
        y = head.y - head.ry * 0.62
        pen.polygon([(head.x, y - 0.16), (head.x + 0.12, y), (head.x, y + 0.16), (head.x - 0.12, y)], identity.third)


def _face(pen: Pen, identity: Identity, head: Part) -> None:
    """Eyes, muzzle and nose; sizes are absolute so that they survive the reduction to 64 pixels."""
    pale = mix(identity.coat, (255, 255, 255), 0.62) if identity.has("muzzle") else mix(identity.coat, WHITE, 0.12)
    for side in (-1, 1):
        x, y = head.x + side * 0.21, head.y - 0.05
        if identity.class_noun == "dog":
            pen.ellipse(x, y, 0.115, 0.135, WHITE, (90, 84, 88))
            pen.ellipse(x, y + 0.01, 0.07, 0.09, INK)
        else:
            pen.ellipse(x, y, 0.125, 0.115, identity.eyes, INK)
            pen.ellipse(x, y, 0.042, 0.11, INK)
        pen.dot(x - 0.03, y - 0.05, 0.03, (255, 255, 255))
    if identity.class_noun == "dog":
        pen.ellipse(head.x, head.y + 0.24, 0.26, 0.19, pale)
        pen.ellipse(head.x, head.y + 0.34, 0.075, 0.085, (226, 88, 100))
        pen.line([(head.x, head.y + 0.16), (head.x, head.y + 0.29)], (70, 34, 36), 0.035)
        pen.ellipse(head.x, head.y + 0.14, 0.105, 0.075, INK)
        return
    pen.ellipse(head.x, head.y + 0.22, 0.2, 0.13, pale)
    whiskers = (244, 244, 244) if is_dark(identity.coat) else (70, 66, 70)
    for side in (-1, 1):
        for rise in (-0.05, 0.06):
            y = head.y + 0.2
            pen.line([(head.x + side * 0.2, y + rise), (head.x + side * 0.54, y + rise * 2.2)], whiskers, 0.026)
    nose = [(-0.075, 0.1), (0.075, 0.1), (0.0, 0.2)]
    pen.polygon([(head.x + x, head.y + y) for x, y in nose], (226, 100, 118))
    smile = [(-0.1, 0.24), (-0.05, 0.28), (0.0, 0.22), (0.05, 0.28), (0.1, 0.24)]
    pen.line([(head.x + x, head.y + y) for x, y in smile], (80, 44, 48), 0.03)
