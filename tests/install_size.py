"""What the packages that `pip install .` brings take on disk, as they are installed here; what only a GPU needs told apart.

    python tests/install_size.py [EXTRA ...]     of the base, or with extras: a table for docs/measurements/install.md

A build of PyTorch for CPUs has none of NVIDIA's packages and none of the files of `CUDA_FILES`.
"""

import re
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CUDA_PACKAGES = re.compile(r"nvidia-|cuda-|triton$")
CUDA_FILES = re.compile(r"torch/(lib/lib(torch_cuda|c10_cuda|torch_nvshmem|caffe2_nvrtc)\w*\.so|bin/ptxas)$")
SHOWN = 10e6  # bytes; smaller packages are told together
PROJECT = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]


def add_needed(requirements: Iterable[str], extras: set[str], found: set[tuple[str, tuple[str, ...]]]) -> None:
    """Add to `found` the packages, each with the extras of it, that are required here, and what they require."""
    for requirement in map(Requirement, requirements):
        package = canonicalize_name(requirement.name), tuple(sorted(requirement.extras))
        here = requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in {"", *extras})
        if here and package not in found:
            found.add(package)
            add_needed(metadata.requires(requirement.name) or [], requirement.extras, found)


def sizes(extras: Iterable[str] = ()) -> dict[str, tuple[int, int]]:
    """Bytes on disk of each package, and of pip, which every environment has: what a CPU needs, and what only a GPU does."""
    needed = ["pip", *PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    found, result = set(), {}
    add_needed(needed, set(), found)
    for name, _ in found:
        parts = [0, 0]
        for file in (distribution := metadata.distribution(name)).files or []:
            path = Path(distribution.locate_file(file))
            if path.exists():
                parts[bool(CUDA_PACKAGES.match(name) or CUDA_FILES.match(str(file)))] += path.stat().st_blocks * 512
        result[name] = tuple(parts)
    return result


def main(extras: list[str]) -> None:
    rows = sorted(sizes(extras).items(), key=lambda row: -sum(row[1]))
    print("| package | MB | for GPUs alone, MB |\n| --- | --- | --- |")
    for name, (cpu, gpu) in rows:
        if cpu + gpu >= SHOWN:
            print(f"| {name} | {cpu / 1e6:.0f} | {gpu / 1e6:.0f} |")
    rest = [row for _, row in rows if sum(row) < SHOWN]
    print(f"| {len(rest)} others | {sum(cpu for cpu, _ in rest) / 1e6:.0f} | {sum(gpu for _, gpu in rest) / 1e6:.0f} |")
    cpu, gpu = (sum(part) / 1e6 for part in zip(*(row for _, row in rows), strict=True))
    print(f"| all | {cpu:.0f} | {gpu:.0f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
