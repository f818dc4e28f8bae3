#!/usr/bin/env python3
"""Train and judge the three demonstration models that ship with llmhost (see docs/demo-models.md).

The data is generated from templates with a fixed seed. Weights that miss the held-out thresholds are not written.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

KINDS = ("chat", "embed", "rerank")
SHIPPED = Path(__file__).resolve().parent.parent / "llmhost" / "demo"
MINUTES = {
    "cuda": {"chat": 15.0, "embed": 2.5, "rerank": 4.0},
    "cpu": {"chat": 600.0, "embed": 20.0, "rerank": 30.0},
}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(KINDS), help="kinds to train or evaluate, separated by commas")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="directory of the model directories")
    parser.add_argument(
        "--evaluate", action="store_true", help="print the figures of the models in --out, train nothing"
    )
    parser.add_argument("--unjudged", action="store_true", help="write the weights without any evaluation")
    parser.add_argument("--minutes", type=float, help="train each model for so long")
    parser.add_argument(
        "--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="processes that make data"
    )
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--start", type=Path, help="go on from the chat model in this directory")
    parser.add_argument("--keep", action="store_true", help="write the weights even if they miss the thresholds")
    return parser.parse_args()


def train(kind: str, folder: Path, arguments: argparse.Namespace) -> None:
    """Train one model into an empty folder."""
    from demo_training import chat, encoders  # noqa: PLC0415 --help needs no torch

    minutes = arguments.minutes or MINUTES[arguments.device][kind]
    rate = 2.5e-3 if kind == "chat" else 2e-3 if kind == "embed" else 1e-3
    tokens = 65536 if arguments.device == "cuda" else 8192
    # Compiling takes a minute and a half.
    compiled = arguments.device == "cuda" and (kind != "chat" or minutes > 4)
    rate = rate / 2.5 if arguments.start else rate
    plan = chat.Plan(minutes * 60, tokens, rate, arguments.workers, arguments.seed, arguments.device, compiled)
    if kind == "chat":
        chat.train(plan, folder, arguments.start)
    elif kind == "embed":
        encoders.train_embed(plan, folder, 1024 if arguments.device == "cuda" else 256)
    else:
        encoders.train_rerank(plan, folder, arguments.out / "embed", 256 if arguments.device == "cuda" else 32)


def judge(kind: str, folder: Path, device: str) -> list[str]:
    """Print the figures of a model; return those that are too low."""
    from demo_training import evaluate  # noqa: PLC0415

    figures = evaluate.EVALUATE[kind](folder, device)
    for name, value in figures.items():
        print(f"{kind}: {name}: {value:.1%}", flush=True)
    return evaluate.missed(kind, figures)


def make(kind: str, arguments: argparse.Namespace) -> bool:
    """Train a model, judge it, and put it in place only if it is good enough."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / kind
        folder.mkdir()
        start = time.time()
        train(kind, folder, arguments)
        print(f"{kind}: trained in {(time.time() - start) / 60:.1f} minutes", flush=True)
        low = [] if arguments.unjudged else judge(kind, folder, arguments.device)
        if low and not arguments.keep:
            print(f"{kind}: not written, too low: {', '.join(low)}", file=sys.stderr)
            return False
        shutil.copytree(folder, arguments.out / kind, dirs_exist_ok=True)
    return not low


def main() -> int:
    """Exit status 1 if any figure is too low."""
    arguments = parse_arguments()
    kinds = [kind for kind in arguments.only.split(",") if kind]
    if arguments.evaluate:
        good = [not judge(kind, arguments.out / kind, arguments.device) for kind in kinds]
    else:
        good = [make(kind, arguments) for kind in kinds]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
