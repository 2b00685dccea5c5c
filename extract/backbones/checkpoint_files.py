"""What a checkpoint file is: by the names of its tensors, or by what it is instead of one."""

from __future__ import annotations

from pathlib import Path

from hada.extract.backbones.model_folders import OWN, TRANSFORMERS, Found, of_configs

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_LFS = b"version https://git-lfs"
# Weights of other programs -> what they are.
FOREIGN = {
    ".h5": "TensorFlow", ".msgpack": "Flax", ".onnx": "ONNX", ".gguf": "llama.cpp",
    ".npz": "big_vision or JAX", ".tflite": "TensorFlow Lite",
}  # fmt: skip
# The files that OpenAI published, by name -> open_clip's architecture.
_OPENAI = {
    "rn50": "RN50", "rn101": "RN101", "rn50x4": "RN50x4", "rn50x16": "RN50x16",
    "rn50x64": "RN50x64", "vit-b-32": "ViT-B-32", "vit-b-16": "ViT-B-16", "vit-l-14": "ViT-L-14",
    "vit-l-14-336px": "ViT-L-14-336",
}  # fmt: skip


def of_other_programs(folder: Path) -> Found | None:
    """What a folder with other programs' weights is; None without any."""
    for file in sorted(folder.iterdir()):
        if file.suffix in FOREIGN:
            return Found(
                what=f"a model whose weights are {FOREIGN[file.suffix]}'s ({file.name})",
                advice="convert it to safetensors of PyTorch, or use a copy that has them",
            )
    return None


def pointer_of(file: Path) -> Found | None:
    """What a file is that Git left in place of a large one; None for any other."""
    with file.open("rb") as stream:
        if stream.read(len(_LFS)) != _LFS:
            return None
    advice = f"run `git lfs pull` in {file.parent}"
    return Found(what=f"a clone without its large files ({file.name} is a pointer)", advice=advice)


def of_file(path: Path, place: str) -> Found:
    """What a checkpoint is, by the names of its tensors."""
    if (pointer := pointer_of(path)) is not None:
        return pointer
    if path.suffix in FOREIGN:
        return Found(what=f"a file of {FOREIGN[path.suffix]}", advice="give weights of PyTorch")
    if (path.parent / TRANSFORMERS).is_file() and path.suffix in (".safetensors", ".bin"):
        beside = of_configs(path.parent, str(path.parent))
        if beside is not None and beside.family is not None:
            return beside
    from hada.extract.backbones import weights
    from hada.extract.backbones.key_names import family_of, why_not
    from hada.extract.common.tensor_files import is_torchscript

    if is_torchscript(path):
        return _torchscript(path)
    shapes = weights.read_shapes(path)
    if (unusable := why_not(shapes)) is not None:
        return Found(what=unusable[0], advice=unusable[1])
    family = family_of(shapes)
    if family == "clip":
        from hada.extract.backbones.clip_shapes import of_shapes

        return of_shapes(shapes, place)
    if family in ("dual", "blip2"):
        return Found(
            what="the weights of a model of transformers without its config.json",
            advice="give the model's folder, with its config.json, tokenizer and weights",
        )
    if family is None:
        return Found(
            what=f"a checkpoint whose names no family knows ({weights.some(shapes)})", advice=OWN
        )
    names = {"albef": "an ALBEF", "blip": "a BLIP", "uniter": "a UNITER"}
    what = f"{names.get(family, 'a LightningDOT')} checkpoint"
    return Found(what=what, family=family, weights=place)


def _torchscript(path: Path) -> Found:
    """OpenAI published CLIP so; loading it would run the program in it."""
    known = _OPENAI.get(path.stem.lower().replace("/", "-").replace("_", "-"))
    tag = f"{known}/openai" if known else "ARCH/openai (ARCH is RN50, ViT-B-32, ViT-L-14, ...)"
    return Found(
        what="a TorchScript archive, a program with its weights, as OpenAI published CLIP",
        advice=f"use clip:{tag}, or save its weights alone: "
        "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)",
    )
