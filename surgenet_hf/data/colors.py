"""Class colors for figures."""

# Palette of Okabe and Ito, distinct for every kind of color vision (https://jfly.uni-koeln.de/color/). Gray replaces
# black and comes first, because the first class is usually the background.
_OKABE_ITO = (
    (127, 127, 127),
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


def palette(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """Return distinct RGB colors for at most 255 classes.

    The first eight are Okabe and Ito's colors. Darker and lighter shades of them follow.
    """
    shades = [
        _mix(color, target, share)
        for target, share in ((0, 0.0), (0, 0.45), (255, 0.5), (0, 0.7), (255, 0.75))
        for color in _OKABE_ITO
    ]
    # Further colors only need to differ. Steps through the RGB cube give 254 more, because 97 is coprime to 255.
    rest = [(97 * i % 255, 53 * i % 255, 171 * i % 255) for i in range(1, 255)]
    return tuple(dict.fromkeys(shades + rest))[:num_classes]


def _mix(color: tuple[int, int, int], target: int, share: float) -> tuple[int, int, int]:
    """Move each value of a color toward `target` by a share of the distance."""
    red, green, blue = (round(value + (target - value) * share) for value in color)
    return red, green, blue
