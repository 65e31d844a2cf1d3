"""Where Open-Sora 1.2 departs from its own mathematics, one switch each.

By default every switch is off. `compat="open-sora-1.2"` turns them on: for runs that go on from the
published weights and have to give the published numbers. docs/weights.md has the table.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Switches:
    """Each field names one departure; True follows the original.

    Args:
        bfloat16_rotary: Rotary frequencies, angles, sines and cosines are rounded to bfloat16, if
            the model computes in it (spec 1.2).
        bfloat16_positions: So are the frequencies and pixel sizes of the positional embedding, and
            the frame rate (spec 1.2).
        bfloat16_time: Times of the model are rounded to bfloat16 in units of 0..1000, which leaves
            steps of 4 above 512 (spec 1.2).
        bfloat16_shift: Sizes and every step of the ratio that shifts times are rounded (spec 4).
        short_clips_unshifted: 2 to 16 frames count as no latent frame, so their ratio is 0 and all
            their times are 0 (spec 4).
        swapped_linear_cycle: The linear form of the one-cycle schedule runs from its largest rate
            to its smallest, jumps, and rises again (spec 7.1).
    """

    bfloat16_rotary: bool = False
    bfloat16_positions: bool = False
    bfloat16_time: bool = False
    bfloat16_shift: bool = False
    short_clips_unshifted: bool = False
    swapped_linear_cycle: bool = False


MODES = {
    "": Switches(),
    "open-sora-1.2": Switches(*[True] * len(dataclasses.fields(Switches))),
}


def switches(mode: str) -> Switches:
    """The switches of a mode: "" for none, "open-sora-1.2" for all.

    Raises:
        ValueError: If there is no such mode.
    """
    if mode not in MODES:
        names = ", ".join(map(repr, MODES))
        raise ValueError(f"compat={mode!r} is unknown: use one of {names}.")
    return MODES[mode]
