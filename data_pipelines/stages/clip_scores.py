"""Scores by CLIP: how well a caption fits, and how much a picture pleases. Weights come by path.

The definitions are Open-Sora 1.2's (spec 9): `match` is the cosine of a clip's middle frame and its
caption, times exp(logit scale), so about 100 times the cosine; `aesthetic` runs from 1 to 10 and is
the mean over stills of a linear head (the LAION aesthetic predictor, made for CLIP ViT-L/14) on
normalised image features. Runs in the parent, on a GPU where there is one: the stills come from
`examine` and are not the file any more.
"""

import io
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's


class Scorer:
    """Scores clips by their stills and captions.

    Args:
        folder: A CLIP model as transformers saves it: config.json, model.safetensors and the
            tokenizer's files.
        mlp: Weights of the aesthetic head, .safetensors or .pth with the keys `layers.N.weight`
            and `layers.N.bias`; None: no aesthetic score.
        allow_pickle: Read .pth and .bin files, with PyTorch's `weights_only`.
        batch_size: Pictures at a time.
        device: PyTorch's name; None: a GPU if there is one.

    Raises:
        ImportError: If PyTorch is not installed.
        ValueError: If the weights are not there, or do not fit each other.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        mlp: str | os.PathLike | None = None,
        *,
        allow_pickle: bool = False,
        batch_size: int = 64,
        device: str | None = None,
    ):
        torch, transformers = _torch()
        folder = pathlib.Path(folder)
        if not (folder / "config.json").exists():
            raise ValueError(f"clip={folder} has no config.json: give the folder of a CLIP model.")
        try:
            self.model = transformers.CLIPModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=None if allow_pickle else True
            )
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True
            )
        except OSError as error:
            raise ValueError(
                f"clip={folder} cannot be read ({str(error).splitlines()[0]}): it needs "
                "model.safetensors and the tokenizer's files; a pytorch_model.bin is read with "
                "allow_pickle only."
            ) from error
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(self.device).eval()
        self.size = self.model.config.vision_config.image_size
        self.max_tokens = self.model.config.text_config.max_position_embeddings
        self.mean, self.std = _normalisation(folder)
        self.batch_size = batch_size
        self.layers = None
        if mlp is not None:
            self.layers = _read_mlp(pathlib.Path(mlp), allow_pickle)
            _check_mlp(self.layers, self.model.config.projection_dim, mlp)

    def __call__(
        self, images: Sequence[Sequence[np.ndarray | bytes]], texts: Sequence[str | None]
    ) -> dict[str, np.ndarray]:
        """Returns {"match", "aesthetic" (with a head)}, float32 [clips], NaN where there is none.

        Args:
            images: The stills of each clip, in the order of time: uint8 RGB [H, W, 3] or JPEG
                files. Aesthetic averages them; match takes the middle one.
            texts: A caption each, cut to CLIP's length; None or empty has no match.
        """
        numbers = [i for i, stills in enumerate(images) for _ in stills]
        emb = self._image_emb([still for stills in images for still in stills])
        starts = np.cumsum([0, *map(len, images)])
        scores = {"match": np.full(len(images), np.nan, np.float32)}
        told = [i for i, caption in enumerate(texts) if caption and len(images[i])]
        middle = [starts[i] + len(images[i]) // 2 for i in told]
        text_emb = self._text_emb([texts[i] for i in told])
        scale = float(self.model.logit_scale.detach().exp())
        scores["match"][told] = scale * (emb[middle] * text_emb).sum(-1)
        if self.layers:
            value = emb
            for weight, bias in self.layers:
                value = value @ weight.T + bias
            total = np.bincount(numbers, value[:, 0], minlength=len(images))
            count = np.bincount(numbers, minlength=len(images))
            mean = np.divide(total, count, out=np.full(len(images), np.nan), where=count > 0)
            scores["aesthetic"] = mean.astype(np.float32)
        return scores

    def score_rows(self, rows: Iterable[dict], clips: int = 64) -> Iterator[dict]:
        """Adds `match` and `aesthetic` to ledger rows that have `stills`, in order.

        The caption is `caption`, or `text` where there is none. Rows that are left out pass.
        """
        batch = []
        for row in rows:
            batch.append(row)
            if len(batch) == clips:
                yield from self._score_batch(batch)
                batch = []
        yield from self._score_batch(batch)

    def _score_batch(self, rows: list[dict]) -> list[dict]:
        usable = [row.get("status") != "left out" for row in rows]
        images = [
            (row.get("stills") or ()) if use else () for row, use in zip(rows, usable, strict=True)
        ]
        found = self(images, [row.get("caption") or row.get("text") for row in rows])
        return [
            row | {name: float(v[i]) for name, v in found.items() if np.isfinite(v[i])}
            for i, row in enumerate(rows)
        ]

    def _image_emb(self, images: list) -> np.ndarray:
        """Returns normalised image features, float32 [pictures, D]."""
        return self._batches(
            images,
            lambda part: self.model.get_image_features(
                pixel_values=self._tensor(np.stack([self._pixels(image) for image in part]))
            ),
        )

    def _text_emb(self, texts: list[str]) -> np.ndarray:
        def features(part):
            tokens = self.tokenizer(
                part,
                padding=True,
                truncation=True,
                max_length=self.max_tokens,
                return_tensors="np",
            )
            ids, mask = self._tensor(tokens["input_ids"]), self._tensor(tokens["attention_mask"])
            return self.model.get_text_features(input_ids=ids, attention_mask=mask)

        return self._batches(texts, features)

    def _batches(self, items: list, features) -> np.ndarray:
        torch, _ = _torch()
        found = [np.zeros((0, self.model.config.projection_dim), np.float32)]
        with torch.inference_mode():
            for i in range(0, len(items), self.batch_size):
                emb = features(items[i : i + self.batch_size])
                emb = getattr(emb, "pooler_output", emb)  # transformers 5 wraps it
                emb = emb / emb.norm(dim=-1, keepdim=True)
                found.append(emb.float().cpu().numpy())
        return np.concatenate(found)

    def _tensor(self, array: np.ndarray):
        torch, _ = _torch()
        return torch.from_numpy(array).to(self.device)

    def _pixels(self, image: np.ndarray | bytes) -> np.ndarray:
        """Returns what CLIP sees of a picture: its middle square, normalised, [3, size, size]."""
        if isinstance(image, bytes):
            picture = Image.open(io.BytesIO(image), formats=["JPEG"]).convert("RGB")
        else:
            picture = Image.fromarray(image)
        scale = self.size / min(picture.size)
        width, height = (max(self.size, round(n * scale)) for n in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        picture = picture.crop((left, top, left + self.size, top + self.size))
        pixels_HWC = (np.asarray(picture, np.float32) / 255 - self.mean) / self.std
        return np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1), np.float32)


def _torch():
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ImportError(
            f'scores by CLIP need PyTorch ({error}): pip install "vidgen[torch]"'
        ) from error
    return torch, transformers


def _normalisation(folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    path = folder / "preprocessor_config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    mean, std = config.get("image_mean", _MEAN), config.get("image_std", _STD)
    return np.array(mean, np.float32), np.array(std, np.float32)


def _read_mlp(path: pathlib.Path, allow_pickle: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns (weight [out, in], bias [out]) of each layer in order; layers without weights go."""
    if not path.is_file():
        raise ValueError(f"aesthetic={path} is not there: give the file of the head's weights.")
    if path.suffix == ".safetensors":
        import safetensors.numpy

        tensors = safetensors.numpy.load_file(path)
    elif allow_pickle:
        torch, _ = _torch()
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        tensors = {name: tensor.float().numpy() for name, tensor in tensors.items()}
    else:
        raise ValueError(
            f"aesthetic={path} is a pickle: convert it to .safetensors, or say allow_pickle."
        )
    numbers = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("layers.")})
    if not numbers:
        raise ValueError(f"aesthetic={path} has no tensors layers.N.weight, but {sorted(tensors)}.")
    return [(tensors[f"layers.{n}.weight"], tensors[f"layers.{n}.bias"]) for n in numbers]


def _check_mlp(layers, width: int, path):
    widths = [width, *(len(bias) for _, bias in layers)]
    shapes = [weight.shape for weight, _ in layers]
    if shapes != [(b, a) for a, b in itertools.pairwise(widths)] or widths[-1] != 1:
        raise ValueError(
            f"aesthetic={path} has layers {shapes}, which do not lead from the {width} features of "
            "this CLIP model to one number: take the head that was made for this model."
        )
