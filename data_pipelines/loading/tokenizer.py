"""Captions to token numbers of a static shape, with Hugging Face tokenizers and no model.

Without files the tokens are UTF-8 bytes (ByT5: Xue et al. 2021, arXiv:2105.13626). A folder with
the files of a T5 tokenizer gives that tokenizer's tokens. Nothing is ever downloaded.
"""

import functools
import hashlib
import os
import pathlib

import numpy as np


class Tokenize:
    """Callable: list of texts -> (ids_BL int32, mask_BL bool), padded to max_tokens.

    Attributes:
        max_tokens: L.
        vocab_size: Numbers of tokens that can occur, for the text encoder's table.
        fingerprint: Changes with the tokens that a text gives.
        cut: How many texts were too long, and lost their end.
    """

    def __init__(self, folder: str | None, max_tokens: int):
        if max_tokens < 2:
            raise ValueError(
                f"max_tokens={max_tokens} has to be 2 or more: a text ends in a token."
            )
        self.folder, self.max_tokens, self.cut = folder, max_tokens, 0
        self.vocab_size = len(_load(folder))
        self.fingerprint = _fingerprint(folder, max_tokens)

    def __call__(self, texts: list[str], *, strict: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids and mask, both [B, max_tokens].

        Args:
            texts: Captions or prompts.
            strict: Refuse empty and over-long texts (prompts) instead of cutting them (captions).

        Raises:
            ValueError: If strict, and a text is empty or too long, naming the tokens and the limit.
        """
        ids_BL = np.zeros((len(texts), self.max_tokens), np.int32)
        mask_BL = np.zeros((len(texts), self.max_tokens), bool)
        tokenizer = _load(self.folder)
        for row, text in enumerate(texts):
            if strict and not text.strip():
                raise ValueError(f"prompt {row} is empty: write what the video should show.")
            most = {"truncation": not strict, "max_length": self.max_tokens + 1}  # one over tells
            ids = tokenizer(text, **most)["input_ids"]
            if len(ids) > self.max_tokens and not strict:
                ids = ids[: self.max_tokens - 1] + ids[-1:]  # the token that ends a text
                self.cut += 1
            if len(ids) > self.max_tokens:
                start = text if len(text) <= 60 else text[:57] + "..."
                raise ValueError(
                    f"prompt {row} ({start!r}) has {len(ids)} tokens, but the model takes "
                    f"{self.max_tokens}: shorten it by {len(ids) - self.max_tokens}."
                )
            ids_BL[row, : len(ids)] = ids
            mask_BL[row, : len(ids)] = True
        return ids_BL, mask_BL


def make_tokenize(folder: str | os.PathLike | None, max_tokens: int) -> Tokenize:
    """Returns the tokenizer of a folder, or of bytes (None).

    Raises:
        ValueError: If the folder is missing or holds no tokenizer.
    """
    return Tokenize(None if folder is None else str(folder), max_tokens)


@functools.lru_cache(maxsize=4)
def _load(folder: str | None):
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # no PyTorch: as intended
    import transformers  # a second to import, and often not needed: latents hold their text

    if folder is None:
        return transformers.ByT5Tokenizer()
    if not pathlib.Path(folder).is_dir():
        raise ValueError(
            f"the tokenizer folder {folder} does not exist: give that of a T5 encoder in "
            "config.text.folder; docs/weights.md says how to get it."
        )
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{folder} holds no tokenizer that can be loaded (tokenizer.json or spiece.model with "
            f"tokenizer_config.json are needed): {error}"
        ) from error


def _fingerprint(folder: str | None, max_tokens: int) -> str:
    digest = hashlib.sha256(f"{max_tokens}".encode())
    for path in sorted(pathlib.Path(folder).glob("*")) if folder else []:
        if path.is_file() and path.suffix in (".json", ".model", ".txt"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
