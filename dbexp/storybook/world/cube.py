"""A block in oblique projection: the body of everything cube shaped."""

from __future__ import annotations

from dataclasses import dataclass

from dbexp.storybook.world.pen import RGB, Pen, mix, shade


@dataclass(frozen=True)
class Cube:
    """Front face (x0, y0)-(x1, y1); top and right faces recede by `depth` to the upper right."""

    x0: float
    y0: float
    x1: float
    y1: float
    depth: float

    def draw(self, pen: Pen, colour: RGB) -> None:
        """Draw the three visible faces: light from above, the right side in shade."""
        x0, y0, x1, y1, d = self.x0, self.y0, self.x1, self.y1, self.depth
        edge = shade(colour, 0.5)
        pen.polygon([(x0, y0), (x0 + d, y0 - d), (x1 + d, y0 - d), (x1, y0)], mix(colour, (255, 255, 255), 0.3), edge)
        pen.polygon([(x1, y0), (x1 + d, y0 - d), (x1 + d, y1 - d), (x1, y1)], shade(colour, 0.72), edge)
        pen.box(x0, y0, x1, y1, colour, edge)
