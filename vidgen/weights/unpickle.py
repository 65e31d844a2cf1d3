"""Copies the tensors of PyTorch pickles into a safetensors file.

    python -m vidgen.weights.unpickle OUT IN [IN ...]

A process of its own for `vidgen.weights.torch_files.unpickle`: what a file does ends with it.
"""

import pathlib
import sys

from vidgen.weights import torch_files


def copy(argv: list[str]) -> int:
    out, *paths = argv
    try:
        import torch
    except ImportError:
        sys.stderr.write("PyTorch is not installed: pip install 'vidgen[torch]'.\n")
        return 1
    names = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
    tensors = {}
    for path in map(pathlib.Path, paths):
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
        except Exception as error:  # whatever a file may raise, it is refused
            first = str(error).strip().splitlines()[0][:300] if str(error).strip() else ""
            sys.stderr.write(f"{path}: {type(error).__name__}: {first}\n")
            return 1
        while isinstance(loaded, dict) and isinstance(inner := loaded.get("state_dict"), dict):
            loaded = inner
        if not isinstance(loaded, dict):
            sys.stderr.write(f"{path} holds a {type(loaded).__name__}, and no dict of tensors.\n")
            return 1
        for name, value in loaded.items():
            if not isinstance(value, torch.Tensor) or value.dtype not in names:
                kind = getattr(value, "dtype", type(value).__name__)
                sys.stderr.write(f"{path} holds {name!r} as {kind}, which is no type of weights.\n")
                return 1
            tensors[str(name)] = value
    header = {name: (names[x.dtype], tuple(x.shape)) for name, x in tensors.items()}
    with torch_files.Writer(out, header) as writer:
        for name, value in tensors.items():
            value = value.detach().contiguous()
            if value.dtype == torch.bfloat16:
                bits = value.view(torch.int16).numpy()
                writer.add(name, bits.view(torch_files.DTYPES["BF16"]))
            else:
                writer.add(name, value.numpy())
    return 0


def _is_zip(path: pathlib.Path) -> bool:
    """Files of PyTorch 1.6 or later, which can be mapped into memory."""
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


if __name__ == "__main__":
    raise SystemExit(copy(sys.argv[1:]))
