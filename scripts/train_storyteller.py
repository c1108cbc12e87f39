"""Train the bundled model `storyteller` from scratch, measure it, and write its folder with a model card.

    python scripts/train_storyteller.py                          # as bundled, CPU, about an hour and a half
    python scripts/train_storyteller.py --device cuda --minutes 8
    python scripts/train_storyteller.py --steps 50 --stories 5000 --evaluate 50 --out out/trial

On Linux, `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=4000000000` before the command avoids many page faults.
"""

import argparse
import sys
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from barber.bundled import MODEL_DIR
from barber.errors import UserError
from barber.storyteller import card
from barber.storyteller.task import write_items
from barber.storyteller.tokens import build_tokenizer
from barber.storyteller.train import Recipe, build_model, train, training_tokens

REPORT_EVERY = 100  # steps
SETTINGS = [field for field in fields(Recipe) if field.name != "curriculum"]
TASK_ITEMS = 600


def main() -> None:
    arguments = parse()
    settings = {field.name: getattr(arguments, field.name) for field in SETTINGS}
    try:
        make(Recipe(**settings), arguments.out, arguments.evaluate, arguments.tell, arguments.note)
    except UserError as error:
        sys.exit(str(error))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=MODEL_DIR, help="folder to write (default: the bundled one)")
    parser.add_argument("--evaluate", type=int, default=1500, help="evaluation stories to measure on")
    parser.add_argument("--tell", type=int, default=300, help="stories to generate greedily and check")
    parser.add_argument("--note", default="", help="a remark on this run, for the card")
    for field in SETTINGS:
        flag = f"--{field.name.replace('_', '-')}"
        if field.type is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default)
        else:
            parser.add_argument(flag, type=field.type, default=field.default, help=f"default: {field.default}")
    return parser.parse_args()


def make(recipe: Recipe, out: Path, evaluate: int, tell: int, note: str) -> None:
    """Train by the recipe, then write weights, tokenizer, card and the story-ending items."""
    tokenizer = build_tokenizer(recipe.positions)
    report(f"generating {recipe.stories} training stories")
    tokens = training_tokens(recipe, tokenizer)
    model = build_model(recipe, tokenizer)
    parameters = sum(weight.numel() for weight in model.parameters())
    report(f"training {parameters:,} parameters on {len(tokens) / 1e6:.1f} million tokens, in epochs")
    history = []
    for step in train(model, tokenizer, tokens, recipe):
        history.append(step)
        if step.step % REPORT_EVERY == 0:
            loss = sum(past.loss for past in history[-REPORT_EVERY:]) / REPORT_EVERY
            report(
                f"step {step.step}  loss {loss:.4f}  {step.tokens / step.seconds:.0f} tokens/s  {step.seconds:.0f} s"
            )
    model = card.save(model, tokenizer, out)
    report(f"measuring on {evaluate} stories, generating {tell}")
    card.write_card(out, recipe, history, parameters, card.measure_figures(model, tokenizer, evaluate, tell), note)
    if out.resolve() == MODEL_DIR:
        write_items(TASK_ITEMS)
    report(f"wrote {out}")


def report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
