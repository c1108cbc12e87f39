"""What a job works with: the model, in memory or streamed; where activations and masks go; what it will take."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from accelerate.utils import convert_file_size_to_int
from torch import Tensor

from barber.atomic_files import check_room
from barber.data.token_sets import CalibrationSet
from barber.errors import UserError
from barber.events import Estimated, Stage
from barber.job_spec import JobSpec
from barber.jobs.estimate import Model, Needs, estimate, matmul_rate
from barber.models.decoder import DecoderView, State, masked
from barber.models.inspection import Inspection, count_zeros, inspect
from barber.models.layerwise import LayerwiseModel, load_layerwise
from barber.models.loading import LoadedModel, find_source, load, weight_bytes
from barber.models.providers import LayerwiseProvider, ResidentProvider
from barber.pruning.activation_store import ActivationStore
from barber.pruning.context import PruningContext
from barber.pruning.distributed import Ranks
from barber.runs.directory import RunDirectory

COMPUTE = ("native", "tf32", "bfloat16")

GIB = 2**30

HEADROOM = 0.9  # of the memory that is free: what a run may plan with


@dataclass(frozen=True)
class JobSetup:
    """The means of one job.

    streamed: the model, where it is read layer by layer. folder: where masks go as they are made, and recorded, which
    gives them back; None where they stay in memory. scratch: where activations may be mapped. limit: bytes that may be
    used on the device; found: what the model was like; needs: what is to be used.
    """

    loaded: LoadedModel
    context: PruningContext
    streamed: LayerwiseModel | None
    folder: Path | None
    scratch: Path | None
    limit: int
    found: Inspection
    needs: Needs | None = None

    @property
    def recorded(self) -> Callable[[int, Stage], State] | None:
        if self.folder is None:
            return None
        return lambda layer, stage: RunDirectory(self.folder).state(layer, stage)

    def final(self, index: int, stage: Stage) -> dict[str, Tensor]:
        """The weights of a layer at a stage, name -> (out, in)."""
        masks, values = self.recorded(index, stage)
        layer = self.context.view.layers[index]
        dense = self.context.provider.dense(index, layer.weights)
        return {
            name: masked(values.get(name, weight).to(weight), masks[name].to(weight.device))
            for name, weight in dense.items()
        }

    def estimate(self, spec: JobSpec, calibration: CalibrationSet | None, seqlen: int) -> JobSetup:
        """These means with their needs and a place for activations that fits the limit.

        Raises UserError where not even a layer fits.
        """
        if calibration is None or spec.prune is None:
            return self
        context, samples = self.context, len(calibration.tokens)
        batch = min(context.batch_of(seqlen, spec.prune), samples)
        rate = matmul_rate(context.provider.device, context.view.dtype)
        whole, ranks = self.streamed is None, context.ranks.world
        needs = estimate(sizes(self), spec.prune, samples, seqlen, batch, rate, whole, ranks)
        while needs.least > self.limit and batch > 1:
            batch //= 2
            needs = estimate(sizes(self), spec.prune, samples, seqlen, batch, rate, whole, ranks)
        if needs.least > self.limit:
            what, how = ("itself", "give --stream, shorter") if whole else ("one layer", "give shorter")
            raise UserError(
                f"{spec.model} needs about {needs.least / GIB:.2f} GiB for {what} and one sequence of {seqlen} tokens, "
                f"but {self.limit / GIB:.2f} GiB may be used: {how} sequences or a higher --max_memory."
            )
        place = self._place(needs)
        on_device = 0 if place.folder or place.host else needs.activations
        spare = max(0, min(context.record_bytes, self.limit - needs.least - on_device))
        return replace(self, context=replace(context, batch=batch, place=place, record_bytes=spare), needs=needs)

    def _place(self, needs: Needs) -> ActivationStore:
        """Where the activations wait: on the device, else on the host, else in files."""
        device, room = self.context.provider.device, self.limit - needs.least
        if needs.activations <= room:
            return ActivationStore(device)
        if device.type != "cpu" and needs.activations <= HEADROOM * psutil.virtual_memory().available:
            return ActivationStore(device, host=True)
        check_room(self.scratch, needs.activations)
        return ActivationStore(device, folder=self.scratch)

    def told(self) -> Estimated:
        """The needs as an event."""
        place, needs, device = self.context.place, self.needs, self.context.provider.device
        waiting = "disk" if place.folder else "host" if place.host or device.type == "cpu" else "device"
        bytes_of = {where: needs.activations if where == waiting else 0 for where in ("device", "host", "disk")}
        on_host = device.type == "cpu"
        return Estimated(
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
            device_bytes=0 if on_host else needs.least + bytes_of["device"],
            host_bytes=bytes_of["host"] + (needs.least if on_host else 0),
            disk_bytes=bytes_of["disk"],
            seconds=needs.seconds,
            streamed=self.streamed is not None,
            activations=waiting,
        )


def set_up_job(spec: JobSpec, loaded: LoadedModel | None, ranks: Ranks, stack: ExitStack, resumed: bool) -> JobSetup:
    """Load the model, whole or to be streamed, and settle where the run is kept; `stack` removes what is temporary."""
    source = (
        find_source(spec.model, spec.device, spec.dtype, spec.cache_dir, spec.trust_remote_code)
        if loaded is None
        else None
    )
    device = source.device if source else loaded.model.device
    limit = memory_limit(spec.max_memory, device)
    stream = spec.prune is not None and loaded is None and (spec.stream or 2.2 * weight_bytes(source) > limit)
    streamed = None
    if stream:
        if spec.zeroshot_tasks:
            raise UserError(
                f"Zero-shot tasks need the whole of {spec.model} in memory, but it is read layer by layer: save the "
                "pruned model and measure it by itself, or leave the tasks out."
            )
        streamed = load_layerwise(spec.model, spec.device, spec.dtype, spec.cache_dir, spec.trust_remote_code)
        loaded, view = streamed.loaded, streamed.view
        provider = LayerwiseProvider(streamed, streamed.checkpoint.device)
    else:
        loaded = loaded or load(spec.model, spec.device, spec.dtype, spec.cache_dir, spec.trust_remote_code)
        view = DecoderView(loaded.model)
        provider = ResidentProvider(view)
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="barber-")))
    folder = spec.run_dir if ranks.writes else None
    if folder is None and (stream or resumed):
        folder = scratch / "run"
    context = PruningContext(
        view, provider, ActivationStore(provider.device), ranks, compute=products(spec.compute, provider.device, stack)
    )
    found = inspect(view, provider) if spec.prune else count_zeros(view, provider)
    return JobSetup(loaded, context, streamed, folder, scratch, limit, found)


def products(compute: str, device: torch.device, stack: ExitStack) -> torch.dtype | None:
    """The dtype of matrix products by name; TensorFloat-32 is a mode of the device, which `stack` sets back."""
    if compute not in COMPUTE:
        raise UserError(f"--compute {compute!r} is unknown: choose one of {', '.join(COMPUTE)}.")
    if compute == "tf32":
        if device.type != "cuda":
            raise UserError("--compute tf32 is a mode of CUDA devices: leave it out, or give bfloat16.")
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision("high")
    return torch.bfloat16 if compute == "bfloat16" else None


def memory_limit(given: str | None, device: torch.device) -> int:
    """Bytes that a run may use on the device: those given, like "12GiB", or most of those that are free."""
    if given is not None:
        try:
            limit = convert_file_size_to_int(given)
        except (ValueError, OverflowError):
            limit = 0
        if limit <= 0:
            raise UserError(f"--max_memory {given!r} is not a size: give one like 12GiB or 800MB.")
        return limit
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(HEADROOM * free)


def sizes(means: JobSetup) -> Model:
    """The sizes of the model that estimates are made of."""
    view, streamed = means.context.view, means.streamed
    layers = [[[weight.view.shape for weight in block.weights] for block in la.sub_blocks] for la in view.layers]
    blocks = [block for layer in layers for block in layer]
    prunable = {id(weight.parameter) for layer in view.layers for weight in layer.weights}
    others = sum(p.nbytes for p in means.loaded.model.parameters() if id(p) not in prunable and not p.is_meta)
    return Model(
        layers=len(layers),
        hidden=means.loaded.model.config.get_text_config().hidden_size,
        layer_parameters=max(sum(shape.numel() for block in layer for shape in block) for layer in layers),
        block_parameters=max(sum(shape.numel() for shape in block) for block in blocks),
        width=max(shape[1] for block in blocks for shape in block),
        spread=max(sum(sum(shape) for shape in block) for block in blocks),
        other_bytes=streamed.other_bytes if streamed else others,
        element=view.dtype.itemsize,
    )
