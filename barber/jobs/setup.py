"""The set-up of a job: the model, in memory or layer by layer, the stores of activations and masks, the estimate."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from accelerate.utils import convert_file_size_to_int
from torch.nn import Parameter

from barber.atomic_files import check_room
from barber.data.token_sets import CalibrationSet
from barber.errors import UserError
from barber.events import Estimated, Stage
from barber.job_spec import JobSpec
from barber.jobs.estimate import Model, Needs, estimate
from barber.jobs.report import format_bytes
from barber.models.decoder import DecoderView, Values, final_values
from barber.models.inspection import Inspection, count_zeros, inspect
from barber.models.layerwise import LayerwiseModel, load_layerwise
from barber.models.loading import LoadedModel, Source, find_source, load_source, weight_bytes
from barber.models.providers import LayerProvider, LayerwiseProvider, ResidentProvider
from barber.pruning.activation_store import ActivationStore
from barber.pruning.context import PruningContext
from barber.pruning.distributed import Ranks
from barber.pruning.layer_states import MemoryStates
from barber.runs.states import RecordedStates

COMPUTE = ("native", "tf32", "bfloat16")
HEADROOM = 0.9  # share of the free memory that a run may use
RESIDENT = 2.2  # memory for pruning a whole model, relative to the size of its weights


@dataclass(frozen=True)
class JobSetup:
    """The model of a job and the resources for processing it.

    Attributes:
        loaded: the model.
        context: the context of pruning it.
        layerwise: the model with layerwise loading; None if the whole model is in memory.
        folder: the folder in which the run and the masks of finished layers are recorded; None if masks are kept in
            memory.
        scratch: folder for memory-mapped files of activations.
        limit: bytes of device memory that the job may use.
        inspection: properties of the model when it was loaded.
        needs: estimated bytes; None before `estimated`, and for a job without pruning.
    """

    loaded: LoadedModel
    context: PruningContext
    layerwise: LayerwiseModel | None
    folder: Path | None
    scratch: Path
    limit: int
    inspection: Inspection
    needs: Needs | None = None

    def final_weights(self, index: int, stage: Stage) -> Values:
        """Return the weights of a layer at a stage, name -> (out, in)."""
        dense = self.context.provider.dense(index, self.context.view.layers[index].weights)
        return final_values(dense, self.context.states.load(index, stage))

    def estimated(self, spec: JobSpec, calibration: CalibrationSet | None, seqlen: int) -> JobSetup:
        """Return this set-up with estimated needs, and with an activation store and a batch size that fit the limit.

        Raises UserError if the weights and one sequence exceed the limit.
        """
        if calibration is None or spec.prune is None:
            return self
        context, samples = self.context, len(calibration.tokens)
        whole, ranks = self.layerwise is None, context.ranks.world
        batch = min(context.batch_of(seqlen, spec.prune), samples)
        batch, needs = fitting(sizes(self), spec, samples, seqlen, batch, whole, self.limit, ranks)
        store = self._store(needs)
        on_device = 0 if store.folder or store.host else needs.activations
        spare = max(0, min(context.record_bytes, self.limit - needs.least - on_device))
        return replace(self, context=replace(context, batch=batch, store=store, record_bytes=spare), needs=needs)

    def _store(self, needs: Needs) -> ActivationStore:
        """Return an activation store on the device if activations fit there, else on the host, else in files."""
        device = self.context.provider.device
        place = activation_place(needs, device, self.limit)
        if place == "disk":
            check_room(self.scratch, needs.activations)
            return ActivationStore(device, folder=self.scratch)
        return ActivationStore(device, host=place == "host" and device.type != "cpu")

    def describe_needs(self, seconds: float) -> Estimated:
        """Return the needs as an event. seconds: of the whole job."""
        store, device = self.context.store, self.context.provider.device
        place = "disk" if store.folder else "host" if store.host or device.type == "cpu" else "device"
        return as_event(self.needs, seconds, device, place, self.layerwise is not None)


def fitting(
    model: Model,
    spec: JobSpec,
    samples: int,
    seqlen: int,
    batch: int,
    whole: bool,
    limit: int,
    ranks: int = 1,
) -> tuple[int, Needs]:
    """Return the largest batch size up to `batch` that fits the limit, and the needs with it.

    Arguments as in `estimate`. limit: bytes of device memory. Raises UserError if the weights and one sequence exceed
    the limit.
    """
    needs = estimate(model, spec.prune, samples, seqlen, batch, whole, ranks)
    while needs.least > limit and batch > 1:
        batch //= 2
        needs = estimate(model, spec.prune, samples, seqlen, batch, whole, ranks)
    if needs.least > limit:
        what, how = ("itself", "give --stream, shorter") if whole else ("one layer", "give shorter")
        raise UserError(
            f"{spec.model} needs about {format_bytes(needs.least)} for {what} and one sequence of {seqlen} tokens, "
            f"but {format_bytes(limit)} may be used: {how} sequences or a higher --max_memory."
        )
    return batch, needs


def activation_place(needs: Needs, device: torch.device, limit: int) -> str:
    """Return where activations are stored: "device" if they fit there, else "host" or "disk"; "host" for a CPU."""
    if needs.activations <= limit - needs.least:
        return "host" if device.type == "cpu" else "device"
    on_host = device.type != "cpu" and needs.activations <= HEADROOM * psutil.virtual_memory().available
    return "host" if on_host else "disk"


def as_event(needs: Needs, seconds: float, device: torch.device, place: str, layerwise: bool) -> Estimated:
    """Return the needs as an event.

    seconds: of the whole job. place: where activations are stored, "device", "host" or "disk".
    """
    bytes_of = {where: needs.activations if where == place else 0 for where in ("device", "host", "disk")}
    on_host = device.type == "cpu"
    return Estimated(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        device_bytes=0 if on_host else needs.least + bytes_of["device"],
        host_bytes=bytes_of["host"] + (needs.least if on_host else 0),
        disk_bytes=bytes_of["disk"],
        seconds=seconds,
        streamed=layerwise,
        activations=place,
    )


def set_up_job(spec: JobSpec, loaded: LoadedModel | None, ranks: Ranks, stack: ExitStack, resumed: bool) -> JobSetup:
    """Load the model, whole or layer by layer, and choose the folder of the run; `stack` deletes temporary files.

    loaded: the model, if it is already in memory.
    """
    source = None
    if loaded is None:
        source = find_source(spec.model, spec.device, spec.dtype, spec.cache_dir, spec.trust_remote_code)
    device = source.device if source else loaded.model.device
    held = 0 if source else sum(parameter.nbytes for parameter in loaded.model.parameters())
    limit = memory_limit(spec.max_memory, device, held)
    layerwise = None
    if source and reads_by_layer(spec, source):
        if spec.zeroshot_tasks:
            raise UserError(
                f"Zero-shot tasks need the whole of {spec.model} in memory, but it is read layer by layer: save the "
                "pruned model and measure it by itself, or leave the tasks out."
            )
        layerwise = load_layerwise(source)
        loaded, view = layerwise.loaded, layerwise.view
        provider: LayerProvider = LayerwiseProvider(layerwise, layerwise.checkpoint.device)
    else:
        loaded = load_source(source) if source else loaded
        view = DecoderView(loaded.model)
        provider = ResidentProvider(view)
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="barber-")))
    folder = spec.run_dir if ranks.writes else None
    if folder is None and (layerwise or resumed):
        folder = scratch / "run"
    context = PruningContext(
        view,
        provider,
        ActivationStore(provider.device),
        ranks,
        compute=product_dtype(spec.compute, provider.device, stack),
        states=RecordedStates(folder) if folder else MemoryStates(),
        name=spec.model,
    )
    inspection = inspect(view, provider) if spec.prune else count_zeros(view, provider)
    return JobSetup(loaded, context, layerwise, folder, scratch, limit, inspection)


def reads_by_layer(spec: JobSpec, source: Source) -> bool:
    """Return whether a job reads the model layer by layer: as asked for, or since it does not fit into memory."""
    if not spec.prune:
        return False
    return spec.stream or RESIDENT * weight_bytes(source) > memory_limit(spec.max_memory, source.device)


def product_dtype(compute: str, device: torch.device, stack: ExitStack) -> torch.dtype | None:
    """Return the dtype of matrix products, None for the model's; `stack` restores the device's mode after "tf32"."""
    if compute not in COMPUTE:
        raise UserError(f"--compute {compute!r} is unknown: choose one of {', '.join(COMPUTE)}.")
    if compute == "tf32":
        if device.type != "cuda":
            raise UserError("--compute tf32 is a mode of CUDA devices: leave it out, or give bfloat16.")
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision("high")
    return torch.bfloat16 if compute == "bfloat16" else None


def memory_limit(given: str | None, device: torch.device, held: int = 0) -> int:
    """Return the bytes that a run may use on the device: `given`, like "12GiB", or HEADROOM of the free memory.

    held: bytes of the model that are on the device already, which the run uses as well.
    """
    if given is not None:
        try:
            limit = convert_file_size_to_int(given)
        except (ValueError, OverflowError):
            limit = 0
        if limit <= 0:
            raise UserError(f"--max_memory {given!r} is not a size: give one like 12GiB or 800MB.")
        return limit
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(HEADROOM * (free + held))


def sizes(setup: JobSetup) -> Model:
    """Return the sizes of the model that the estimate depends on."""
    view, layerwise = setup.context.view, setup.layerwise
    here = [parameter for parameter in view.model.parameters() if not parameter.is_meta]
    others = layerwise.other_bytes if layerwise else other_bytes(view, here)
    return model_sizes(view, others, setup.inspection.routed)


def other_bytes(view: DecoderView, parameters: Iterable[Parameter]) -> int:
    """Return the bytes of those of `parameters` that are not prunable weights of the layers."""
    prunable = {id(weight.parameter) for layer in view.layers for weight in layer.weights}
    return sum(parameter.nbytes for parameter in parameters if id(parameter) not in prunable)


def model_sizes(view: DecoderView, others: int, routed: float = 1.0) -> Model:
    """Return the sizes of a model, also of one without values.

    others: bytes of all but the prunable weights. routed: share of the tokens that reach an expert.
    """
    layers = [[[weight.view.shape for weight in block.weights] for block in la.sub_blocks] for la in view.layers]
    blocks = [block for layer in layers for block in layer]
    experts = [[w.view.shape for w in layer.weights if w.is_expert] for layer in view.layers]
    spread = [
        sum(sum(w.view.shape) * (routed if w.is_expert else 1) for w in block.weights)
        for layer in view.layers
        for block in layer.sub_blocks
    ]
    return Model(
        layers=len(layers),
        hidden=view.model.config.get_text_config().hidden_size,
        layer_parameters=max(sum(shape.numel() for block in layer for shape in block) for layer in layers),
        block_parameters=max(sum(shape.numel() for shape in block) for block in blocks),
        width=max(shape[1] for block in blocks for shape in block),
        spread=int(max(spread)),
        blocks=tuple(tuple((shape[0], shape[1]) for shape in block) for block in blocks),
        other_bytes=others,
        element=view.dtype.itemsize,
        grams=max(sum(shape[1] ** 2 for shape in layer) for layer in experts),
    )
