"""`hada-store import`: a store from features of other programs."""

from __future__ import annotations

from pathlib import Path

import click

from hada.extract.cli_options import manifest_options
from hada.extract.common.console import HadaCommand, say, tell
from hada.extract.common.errors import HadaError, UsageError
from hada.extract.manifest import Manifest, is_name
from hada.extract.spec import STORE_DTYPES

_PATH = click.Path(path_type=Path)
FORMATS = ("hada", "clip-retrieval", "npy", "safetensors")
_HELP = """Make a store from features that another program extracted.

\b
FORMAT is one of
  hada            the official HADA's .npz folders (ALBEF_Output, ALBEF_AUG_Output, DOT_Output)
  clip-retrieval  its output folder: img_emb/, text_emb/, metadata/ (needs pyarrow)
  npy             two .npy files of embeddings, and the ids of their rows
  safetensors     image_embeddings and caption_embeddings, and perhaps image_tokens

\b
Examples:
  hada-store import hada --model albef --split test --dataset flickr30k \\
             --images ALBEF_Output/images --captions ALBEF_Output/captions
  hada-store import npy --model mine --split test --images i.npy --image-ids i.txt \\
             --captions c.npy --caption-ids c.txt

The dataset of the manifest says which images and captions the store holds and in what order.
"""


@click.command("import", cls=HadaCommand, help=_HELP)
@click.argument("kind", metavar="FORMAT", type=click.Choice(FORMATS))
@click.option("--model", "-m", "name", required=True, help="The model's name in the stores.")
@click.option("--split", "-s", required=True, help="Split of the dataset.")
@click.option("--dataset", "-d", help="Dataset of the manifest. [default: the manifest's]")
@click.option("--images", required=True, type=_PATH, help="Folder or file of the images.")
@click.option("--captions", type=_PATH, help="Folder or file of the captions.")
@click.option("--image-ids", type=_PATH, help="Ids of the image rows: .txt, .json or .npy.")
@click.option("--caption-ids", type=_PATH, help="Ids of the caption rows.")
@click.option("--image-name", default="{stem}.npz", show_default=True, help="hada: file names.")
@click.option("--caption-name", default="{stem}.npz", show_default=True, help="hada: file names.")
@click.option(
    "--allow-pickle",
    is_flag=True,
    help="hada: open arrays of objects. That runs whatever is in the files: only where you "
    "trust them.",
)
@click.option(
    "--store-dtype", type=click.Choice(STORE_DTYPES), help="What is stored. [default: float16]"
)
@click.option(
    "--max-errors",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Exit with 1 when more images than this cannot be read.",
)
@manifest_options
def import_command(
    manifest: Manifest,
    kind: str,
    name: str,
    split: str,
    dataset: str | None,
    images: Path,
    captions: Path | None,
    image_ids: Path | None,
    caption_ids: Path | None,
    image_name: str,
    caption_name: str,
    allow_pickle: bool,
    store_dtype: str | None,
    max_errors: int,
) -> int:
    """Import features (the text for people is _HELP)."""
    from hada.extract.datasets.read import read_dataset
    from hada.extract.importers.open import open_source
    from hada.extract.importers.source import ImportRequest
    from hada.extract.importers.write import import_store

    if not is_name(name):
        raise UsageError(f"--model {name!r}: letters, digits, '.', '_', '+' and '-' only")
    if allow_pickle:
        say("warning: --allow-pickle opens pickles, which can run code, from " + str(images))
    data = read_dataset(manifest.dataset(dataset), split, pictures=False)
    request = ImportRequest(
        format=kind,
        images=images,
        captions=captions,
        image_ids=image_ids,
        caption_ids=caption_ids,
        image_name=image_name,
        caption_name=caption_name,
        allow_pickle=allow_pickle,
    )
    path = manifest.store_path(data.name, split, name)
    failures = import_store(
        open_source(request, data),
        data,
        path,
        name=name,
        origin=kind,
        dtype=store_dtype or manifest.defaults.store_dtype,
    )
    for id_, reason in list(failures.items())[:10]:
        say(f"{name}: could not import {id_}: {reason}")
    tell(
        f"{name}: {len(data.image_ids) - len(failures)} of {len(data.image_ids)} images, "
        f"{len(data.captions)} captions in {path}"
    )
    if len(failures) > max_errors:
        raise HadaError(f"{len(failures)} images failed, more than --max-errors {max_errors}")
    return 0
