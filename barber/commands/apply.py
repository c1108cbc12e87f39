"""A pruned model from the masks of a run: python main.py apply MASKS --model MODEL --save_model DIR."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from barber.config import MASKS, PruneConfig
from barber.console import path
from barber.errors import UserError
from barber.events import Stage
from barber.job_spec import JobSpec
from barber.parsing import Parser
from barber.settings import SETTINGS

LOADING = ("device", "dtype", "stream", "max_memory", "cache_dir", "trust_remote_code")


def main(words: Sequence[str]) -> int:
    """Run the command; return its exit code. Raises UserError."""
    return _parser().obey(words, run)


def _parser() -> Parser:
    parser = Parser.of("apply", "Apply the masks of a run to a model, and save the pruned model.")
    parser.add_argument("masks", metavar="MASKS", type=path, help="a run directory, or a file that `masks` wrote")
    parser.add_argument("--model", required=True, help="the model that the masks were made for")
    parser.add_argument(
        "--save_model", metavar="DIR", type=path, required=True, help="write the pruned model into this new folder"
    )
    parser.add_argument(
        "--stage",
        choices=[str(Stage.INITIAL), str(Stage.REBUILT)],
        help="of a run: the initial or the rebuilt masks (default: the last that the run has)",
    )
    parser.add_argument(
        "--allow_other",
        action="store_true",
        help="also apply the masks to a model with other weights of the same shapes",
    )
    for name in LOADING:
        parser.add_flag(replace(SETTINGS[name], default="that of the masks") if name == "dtype" else SETTINGS[name])
    return parser


def run(given: Namespace) -> str:
    """Load, check, apply and save; return what was done. Raises UserError."""
    from barber.jobs.card import card_of_masks
    from barber.jobs.outputs import check_model_room, check_outputs
    from barber.jobs.setup import set_up_job
    from barber.models.decoder import Values, assign_values, final_values
    from barber.models.loading import quiet_transformers
    from barber.models.saving import save_model
    from barber.pruning.distributed import Ranks
    from barber.runs.apply import check_model, fits
    from barber.runs.directory import open_masks
    from barber.runs.environment import hash_model

    quiet_transformers()
    masks = open_masks(given.masks, getattr(given, "stage", None))
    target = given.save_model
    check_outputs({"save_model": target})
    zeros, weights = masks.counts()
    loading = {"dtype": masks.dtype} | {name: getattr(given, name) for name in LOADING if hasattr(given, name)}
    prune = PruneConfig(masks.pattern, MASKS, barber=False, initial_masks=str(given.masks))
    spec = JobSpec(model=given.model, prune=prune, **loading).absolute()
    with ExitStack() as stack:
        setup = set_up_job(spec, None, Ranks(), stack, resumed=False)
        view, provider = setup.context.view, setup.context.provider
        if not fits(view, masks.shapes):
            raise UserError(
                f"{spec.model} has other weight matrices than {masks.model}, which the masks in {masks.source} are "
                "of: give that model."
            )
        if not hasattr(given, "allow_other"):
            check_model(
                f"in {str(view.dtype).removeprefix('torch.')}", spec.model, masks, hash_model(provider, view)[0]
            )
        check_model_room(setup.loaded, target)

        def final(index: int) -> Values:
            return final_values(provider.dense(index, view.layers[index].weights), masks.state(index))

        card = card_of_masks(masks, spec, zeros, weights)
        if setup.layerwise:
            setup.layerwise.save(target, final, card=card)
        else:
            for layer in view.layers:
                assign_values(layer.weights, final(layer.index))
            save_model(setup.loaded, target, card=card)
    return (
        f"Applied the {masks.stage} masks of {masks.model} to {spec.model}: {zeros} of {weights} prunable weights are "
        f"pruned ({zeros / weights:.4%}).\nSaved the model to {target}.\n"
    )
