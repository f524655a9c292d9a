"""The commands of the project: ``irstd NAME``, and the programs of ``tools/`` as doors to the same functions.

Each command is a module of this package with ``get_parser()`` and ``run(args)``. Modules import what is heavy inside
their functions, so that ``--help`` and wrong arguments are answered at once.
"""

from __future__ import annotations

import argparse
import sys
import sysconfig
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module, metadata
from typing import Any

COMMANDS = {
    "detect": "detect targets in images, folders and videos",
    "train": "train or evaluate a configuration",
    "evaluate": "judge saved predictions again, compare runs",
    "check": "check a data set, count and plot what it holds",
    "convert": "convert a data set between VOC, COCO, masks and YOLO",
    "split": "split a data set",
    "merge": "merge tables of imaging metadata",
    "visualize": "draw a data set and detections",
    "report": "write an HTML report about runs",
    "export": "write a model as an ONNX or TorchScript file",
    "zoo": "list the trained models, add one",
    "convert-checkpoint": "rename the tensors of published checkpoints",
    "check-equality": "compare the models with numbers of the published implementations",
    "synthesize": "make synthetic data sets",
}
NAME = "irstd-d2"  # of the distribution
DETECTRON2_MISSING = (
    "detectron2 is not installed for {python}. From its repository: pip install --no-build-isolation "
    "'git+https://github.com/facebookresearch/detectron2.git'; or as a wheel, without a compiler: tools/setup.sh in a "
    "clone of this project, or {python} -m pip install --no-deps --only-binary=:all: --python-version 3.10 "
    "--implementation cp --abi none --target {site} sal-detectron2==0.7.2"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``irstd NAME ...``, by default with the arguments of the process; the exit code is 0 if all is done."""
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="irstd",
        description="Infrared small-target detection.",
        epilog=f"commands:\n{listing}\n\n`irstd NAME --help` explains one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="NAME", help="one of the commands below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="of the command")
    args = parser.parse_args(argv)
    return run_command(args.command, args.arguments, prog=f"irstd {args.command}")


def door(command: str, *systems: str) -> Callable[[Sequence[str] | None], int]:
    """Main function of a program in ``tools/``; ``systems`` are imported, for a clone that is not installed."""
    return partial(run_command, command, systems=systems)


def run_command(
    command: str, argv: Sequence[str] | None = None, *, prog: str | None = None, systems: Sequence[str] = ()
) -> int:
    """Parse the arguments of a command of :data:`COMMANDS`, import the detection systems, and run.

    ``prog`` is how the help calls it; ``systems`` are packages of detection systems beside those that are installed
    (entry points ``irstd_d2.systems``).

    Returns:
        The exit code. Errors that a user can mend are one line, the last on the screen, and code 2; an interrupt
        (Ctrl-C) is one too, which says how to go on (``AFTER_INTERRUPT`` of the module), and code 130.
    """
    module = import_module(f".{command.replace('-', '_')}", __name__)
    parser = module.get_parser()
    parser.prog = prog or parser.prog
    args = parser.parse_args(argv)
    args.systems = systems
    # detectron2 calls what PyTorch will give up; nobody who runs a command can mend that.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
    try:
        return _run(module, command, args)
    except KeyboardInterrupt:
        _fail(f"interrupted; {getattr(module, 'AFTER_INTERRUPT', 'start it again')}")
        return 130  # as shells count it


def _run(module: Any, command: str, args: argparse.Namespace) -> int:
    try:
        load_systems(args.systems)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("detectron2", "torch"):
            raise
        return _fail(DETECTRON2_MISSING.format(python=sys.executable, site=sysconfig.get_path("purelib")))
    from ..errors import ConfigError, DatasetError

    try:
        late = [text for text in getattr(args, "opts", ()) if text.startswith("--")]
        if late:
            raise ConfigError(f"{late[0]} stands behind KEY VALUE pairs, which end the options; write it before them")
        return module.run(args)
    except (ConfigError, DatasetError, OSError) as error:
        return _fail("\n".join([str(error), *getattr(error, "__notes__", [])]))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0].replace("_", "-")
        extra = _extra_of(package)
        if extra is None:
            raise
        return _fail(f"{command} needs {package}, which is not installed: pip install '{NAME}[{extra}]'")


def _fail(text: str) -> int:
    sys.stdout.flush()
    print(f"error: {text}", file=sys.stderr)
    return 2


def _extra_of(package: str) -> str | None:
    """The optional part of this project that brings a package; ``None``: none does."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    try:
        required = metadata.requires(NAME) or ()
    except metadata.PackageNotFoundError:  # a clone that is not installed
        return None
    for text in required:
        requirement = Requirement(text)
        if canonicalize_name(requirement.name) == canonicalize_name(package) and requirement.marker is not None:
            return str(requirement.marker).rpartition("extra == ")[2].strip("\"'") or None
    return None


def load_systems(names: Sequence[str] = ()) -> None:
    """Import the packages of all detection systems, which registers them."""
    import detectron2  # noqa: F401  absent: said in one line

    from .. import systems

    for name in names:
        import_module(name)
    systems.load_systems()
