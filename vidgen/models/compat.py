"""Where Open-Sora 1.2 departs from its own mathematics, one switch each.

By default every switch is off. `compat="open-sora-1.2"` turns them on: for runs that go on from the
published weights and have to give the published numbers. docs/weights.md has the table.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Switches:
    """Each field names one departure; True follows the original.

    Args:
        rounded_rotary: Rotary frequencies and angles are rounded to the type that the model
            computes in (spec 1.2).
        rounded_positions: So are the frequencies of the positional embedding (spec 1.2).
        rounded_time: So are times, in units of 0..1000, and frame rates: bfloat16 has steps of 4
            above 512 (spec 1.2).
        bfloat16_sizes: Pixel sizes are rounded to bfloat16 in the positional embedding, and with
            every step of the ratio that shifts times (spec 1.2, 4).
        bfloat16_target: Latents, noise, and the velocity between them are rounded to bfloat16 in
            training (spec 4).
        rounded_statistics: Mean and deviation of the VAE's latents are rounded to the type that
            it computes in (spec 2.3).
        short_clips_unshifted: 2 to 16 frames count as no latent frame, so their ratio is 0 and all
            their times are 0 (spec 4).
        swapped_linear_cycle: The linear form of the one-cycle schedule runs from its largest rate
            to its smallest, jumps, and rises again (spec 7.1).
    """

    rounded_rotary: bool = False
    rounded_positions: bool = False
    rounded_time: bool = False
    bfloat16_sizes: bool = False
    bfloat16_target: bool = False
    rounded_statistics: bool = False
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
