"""Pack golden vectors into the archives of tests/golden, the same bytes for the same files.

    python tests/programs/pack_golden.py FOLDER

FOLDER holds hada/, wca/ and backbones/ as tests/golden/README.md describes them.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import sys
import tarfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from golden_files import ARCHIVES, LARGE

# Archive -> its files. No archive is above 5 MB.
PARTS = {
    "hada_m_losses": ["hada/loss_hada_m_*"],
    "hada_lavis_losses": ["hada/loss_lavis_*"],
    "hada": ["hada/[!l]*", "hada/lr_schedules.npz"],
    "wca": ["wca/*"],
    **{
        name: [f"backbones/{name}/**/*"]
        for name in (
            "albef",
            "blip_base",
            "blip2",
            "lightningdot",
            "openclip",
            "preproc",
            "uniter",
        )
    },
}


def main(folder: Path) -> None:
    """Write every archive, CONTENTS.sha256 (the files) and SHA256SUMS (the archives)."""
    contents, sums = [], []
    for part, patterns in PARTS.items():
        names = {
            path.relative_to(folder).as_posix()
            for pattern in patterns
            for path in folder.glob(pattern)
            if path.is_file()
        }
        text = io.BytesIO()
        with tarfile.open(fileobj=text, mode="w", format=tarfile.USTAR_FORMAT) as file:
            for name in sorted(name for name in names if not name.startswith(LARGE)):
                data = (folder / name).read_bytes()
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                file.addfile(entry, io.BytesIO(data))
                contents.append((name, hashlib.sha256(data).hexdigest()))
        packed = lzma.compress(text.getvalue(), preset=9)
        (ARCHIVES / f"{part}.tar.xz").write_bytes(packed)
        sums.append((f"{part}.tar.xz", hashlib.sha256(packed).hexdigest()))
    for name, lines in (("CONTENTS.sha256", contents), ("SHA256SUMS", sums)):
        text_lines = "".join(f"{digest}  {file}\n" for file, digest in sorted(lines))
        (ARCHIVES / name).write_text(text_lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
