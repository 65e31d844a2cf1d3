"""The README.md of exported weights: what they are, where they come from, how to load them."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

_NAMES = {
    "stdit": ("STDiT3 diffusion transformer", "STDiT3.from_pretrained(FOLDER)"),
    "vae": ("video VAE", "OpenSoraVAE_V1_2(from_pretrained=FOLDER)"),
    "image_vae": (
        "image VAE, the spatial part of a video VAE",
        "diffusers.AutoencoderKL.from_pretrained(FOLDER)",
    ),
    "temporal_vae": ("temporal part of a video VAE", "VAE_Temporal_SD's load_state_dict"),
    "t5": ("T5 v1.1 encoder", "transformers.T5EncoderModel.from_pretrained(FOLDER)"),
}


def write(
    *,
    license: str,
    layout: str,
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    made_by: Mapping[str, Any],
    samples: Sequence[str],
    sums: str,
) -> str:
    """The text of a model card, from the facts of a run.

    Args:
        license: As the hub names it.
        layout: "stdit", "vae", "image_vae", "temporal_vae" or "t5".
        tensors: (type, shape) by name.
        made_by: `workdir`, `step`, `weights` and `run` (config and fingerprint) of a run; or
            `source` of weights that were imported.
        samples: Files in samples/.
        sums: Name of the file of checksums.
    """
    name, load = _NAMES[layout]
    values = sum(math.prod(shape) for _, shape in tensors.values())
    types = ", ".join(sorted({kind for kind, _ in tensors.values()}))
    lines = [f"---\nlicense: {license}\nlibrary_name: pytorch\ntags: [text-to-video, vidgen]\n---"]
    lines += [f"# {name}, in the layout of Open-Sora 1.2"]
    lines += [f"{len(tensors)} tensors, {values:,} values, {types}. Load: `{load}`."]
    lines += [f"Check the files: `sha256sum --check {sums}`."]
    lines += ["## Training"]
    run = made_by.get("run")
    if run is None:
        lines += [f"Imported from {made_by['source']}, and not trained further."]
    else:
        which = "the moving average of" if made_by["weights"] == "ema" else "those after"
        config = run["config"]
        lines += [f"The weights are {which} update {made_by['step']:,} of {config['num_steps']:,}."]
        data = config["data"]["path"] or "none"
        lines += [f"Data: `{data}`, fingerprint `{run['fingerprint']}`."]
        lines += ["Recipe:", "```json\n" + json.dumps(config, indent=1) + "\n```"]
    lines += ["## Samples", "\n".join(f"- `samples/{n}`" for n in samples) or "None were given."]
    lines += [
        "## Licence",
        f"Of the weights: {license}. The data and text of others have their own.",
    ]
    return "\n\n".join(lines) + "\n"
