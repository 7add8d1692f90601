"""`python -m benchmarks [NAME ...]`: measures and prints a table; with `--write`, into docs/benchmarks.md."""

import argparse
import importlib
import os
import platform
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.interleaved import Result

NAMES = ("epoch", "data_path", "soft_targets", "objectives", "drift", "start", "doors", "compare", "main_job")
FILE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def main() -> None:
    """Runs the benchmarks one after another."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(NAMES)} (default: all)")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    console = Console()
    results: list[Result] = []
    for name in options.names or NAMES:
        console.print(f"measuring {name} ...")
        with tempfile.TemporaryDirectory() as folder:
            results += importlib.import_module(f"benchmarks.{name}").measure(Path(folder))
    table = Table("what", "measured", "aim", "met")
    for result in results:
        table.add_row(result.what, result.value, result.aim, "yes" if result.met else "no")
    console.print(table)
    if options.write:
        write(results)


def write(results: list[Result]) -> None:
    """The table as Markdown, with the machine it was measured on."""
    import torch

    lines = [
        "# Benchmarks",
        "",
        "Made by `make benchmarks` (`python -m benchmarks --write`). Ratios are medians over interleaved rounds of one",
        "run, with their range; seconds are medians. Aims are what we hold ourselves to.",
        "",
        f"Machine: {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()},",
        f"PyTorch {torch.__version__} with {torch.get_num_threads()} threads.",
        "",
        "| what | measured | aim | met |",
        "| --- | --- | --- | --- |",
        *(f"| {r.what} | {r.value} | {r.aim} | {'yes' if r.met else '**no**'} |" for r in results),
    ]
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
