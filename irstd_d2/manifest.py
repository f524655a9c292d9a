"""Folders that a generator owns: a manifest in them says how their content was made.

A folder is filled in several runs only when all of them have the same parameters, and files that are not the
generator's are never touched.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from .errors import DatasetError
from .files import write_atomically

logger = logging.getLogger(__name__)


def claim_folder(
    folder: str | PathLike, name: str, wanted: Mapping[str, Any], *, overwrite: bool = False, kind: str
) -> None:
    """Make sure that a folder is empty or holds a part of the same set, and leave the manifest there.

    Args:
        name: file name of the manifest.
        wanted: the parameters of the set: ``config``, a dict, and whatever else must be the same.
        overwrite: replace a set that was made with other parameters.
        kind: such as ``"synthetic set"``, for the messages.

    Raises:
        DatasetError: the folder holds a set with other parameters, or other files.
    """
    folder = Path(folder)
    manifest = folder / name
    # As JSON gives it back: tuples become lists.
    parameters: dict[str, Any] = json.loads(json.dumps(dict(wanted)))
    if manifest.exists():
        differences = _differences(_read(manifest, kind), parameters)
        if not differences:
            return
        if not overwrite:
            raise DatasetError(
                manifest,
                ", ".join(differences),
                "the set that is there was written with other parameters",
                "pass --overwrite (overwrite=True) to replace it, or choose another folder",
            )
        logger.info("%s: replaced, because %s changed", folder, ", ".join(differences))
        # Renamed first: a folder without its manifest would not be recognised after an interrupt.
        shutil.rmtree(folder.rename(folder.with_name(f".{folder.name}.{os.getpid()}.old")))
    elif folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise DatasetError(folder, name, f"missing: these files are not a {kind}", "choose another folder")
    write_atomically(manifest, json.dumps(parameters, indent=1) + "\n")


def _read(path: Path, kind: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetError(path, "file", f"not a manifest ({error})", "delete the folder or choose another") from None
    if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
        raise DatasetError(path, "config", f"not a manifest of a {kind}", "delete the folder or choose another")
    return found


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Return the names of the parameters in which two manifests differ."""
    outer = [key for key in wanted if key != "config" and found.get(key) != wanted[key]]
    return outer + [f"config.{key}" for key, value in wanted["config"].items() if found["config"].get(key) != value]
