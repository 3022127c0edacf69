"""What a model is and has done, as the protocol's messages. Pure.

A text model is described as what it is over this protocol: text in, any number of texts
out. How others are batched is in their configuration.
"""

from collections.abc import Iterable

from inference import grpc_service_pb2 as pb
from inference import model_config_pb2 as config

from outpost_runtime import statistics
from outpost_runtime.model_table import Entry
from outpost_runtime.opening import Model
from outpost_runtime.tensor.sequences import IDLE_SECONDS
from outpost_runtime.tensors import TensorSpec
from outpost_runtime.text.model import TextModel

TEXT_INPUTS = (
    TensorSpec(name="text_input", datatype="BYTES", shape=(1,)),
    TensorSpec(name="stream", datatype="BOOL", shape=(1,)),
)
TEXT_OUTPUTS = (TensorSpec(name="text_output", datatype="BYTES", shape=(1,)),)

PLATFORM = "onnxruntime_onnx"
EXTENSIONS = (
    "classification",
    "sequence",
    "model_repository",
    "model_configuration",
    "system_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
)

_DATA_TYPES = {
    "BYTES": config.TYPE_STRING,
    "BOOL": config.TYPE_BOOL,
    "UINT8": config.TYPE_UINT8,
    "UINT16": config.TYPE_UINT16,
    "UINT32": config.TYPE_UINT32,
    "UINT64": config.TYPE_UINT64,
    "INT8": config.TYPE_INT8,
    "INT16": config.TYPE_INT16,
    "INT32": config.TYPE_INT32,
    "INT64": config.TYPE_INT64,
    "FP16": config.TYPE_FP16,
    "FP32": config.TYPE_FP32,
    "FP64": config.TYPE_FP64,
    "BF16": config.TYPE_BF16,
}


def metadata(model: Model, name: str, version: str) -> pb.ModelMetadataResponse:
    """Return names and shapes of a model's tensors; -1 is any size."""
    inputs, outputs = _tensors(model)
    return pb.ModelMetadataResponse(
        name=name,
        versions=[version],
        platform=PLATFORM,
        inputs=[_metadata(spec) for spec in inputs],
        outputs=[_metadata(spec) for spec in outputs],
    )


def configuration(model: Model, name: str) -> config.ModelConfig:
    """Return how a model is run."""
    inputs, outputs = _tensors(model)
    if isinstance(model, TextModel):
        return config.ModelConfig(
            name=name,
            platform=PLATFORM,
            backend="onnxruntime",
            input=[_input(spec, 0, optional=spec.name != "text_input") for spec in inputs],
            output=[_output(spec, 0) for spec in outputs],
            model_transaction_policy=config.ModelTransactionPolicy(decoupled=True),
        )
    shape, limits = model.engine.shape, model.engine.limits
    described = config.ModelConfig(
        name=name,
        platform=PLATFORM,
        backend="onnxruntime",
        max_batch_size=shape.max_batch,
        input=[_input(spec, shape.max_batch) for spec in inputs],
        output=[_output(spec, shape.max_batch) for spec in outputs],
        instance_group=[
            config.ModelInstanceGroup(
                name=name,
                count=limits.concurrency,
                kind=config.ModelInstanceGroup.KIND_CPU,
            )
        ],
    )
    if shape.states:
        described.sequence_batching.CopyFrom(_sequences(model))
    elif shape.max_batch:
        described.dynamic_batching.CopyFrom(
            config.ModelDynamicBatching(
                preferred_batch_size=limits.preferred,
                max_queue_delay_microseconds=round(limits.delay * 1e6),
                priority_levels=2,
                default_priority_level=1,
            )
        )
    return described


def counted(model: Model) -> pb.ModelStatistics:
    """Return what a model has done."""
    found = model.engine.statistics.snapshot()
    return pb.ModelStatistics(
        name=model.bundle.manifest.name,
        version=model.bundle.manifest.version,
        last_inference=found.last_inference,
        inference_count=found.inference_count,
        execution_count=found.execution_count,
        inference_stats=pb.InferStatistics(
            success=_duration(found.success),
            fail=_duration(found.fail),
            queue=_duration(found.queue),
            compute_input=_duration(found.compute_input),
            compute_infer=_duration(found.compute_infer),
            compute_output=_duration(found.compute_output),
            cache_hit=pb.StatisticDuration(),
            cache_miss=pb.StatisticDuration(),
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=size,
                compute_input=_duration(batch.compute_input),
                compute_infer=_duration(batch.compute_infer),
                compute_output=_duration(batch.compute_output),
            )
            for size, batch in sorted(found.batches.items())
        ],
    )


def listed(entries: Iterable[Entry], *, ready_only: bool) -> pb.RepositoryIndexResponse:
    """Return the store's names."""
    return pb.RepositoryIndexResponse(
        models=[
            pb.RepositoryIndexResponse.ModelIndex(
                name=entry.name, version=entry.version, state=entry.state.name, reason=entry.reason
            )
            for entry in entries
            if not ready_only or entry.state.name == "READY"
        ]
    )


def _tensors(model: Model) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    if isinstance(model, TextModel):
        return TEXT_INPUTS, TEXT_OUTPUTS
    return model.engine.inputs, model.engine.outputs


def _metadata(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(
        name=spec.name, datatype=spec.datatype, shape=_sizes(spec)
    )


def _input(spec: TensorSpec, max_batch: int, *, optional: bool = False) -> config.ModelInput:
    return config.ModelInput(
        name=spec.name,
        data_type=_DATA_TYPES[spec.datatype],
        dims=_dims(spec, max_batch),
        optional=optional,
    )


def _output(spec: TensorSpec, max_batch: int) -> config.ModelOutput:
    return config.ModelOutput(
        name=spec.name, data_type=_DATA_TYPES[spec.datatype], dims=_dims(spec, max_batch)
    )


def _dims(spec: TensorSpec, max_batch: int) -> list[int]:
    return _sizes(spec)[1:] if max_batch else _sizes(spec)


def _sizes(spec: TensorSpec) -> list[int]:
    return [-1 if size is None else size for size in spec.shape]


def _sequences(model: Model) -> config.ModelSequenceBatching:
    assert not isinstance(model, TextModel)  # noqa: S101 - the caller looked
    specs = {spec.name: spec for spec in model.engine.session_inputs}
    return config.ModelSequenceBatching(
        max_sequence_idle_microseconds=round(IDLE_SECONDS * 1e6),
        state=[
            config.ModelSequenceBatching.State(
                input_name=state.input,
                output_name=state.output,
                data_type=_DATA_TYPES[specs[state.input].datatype],
                dims=_sizes(specs[state.input]),
            )
            for state in model.engine.shape.states
        ],
    )


def _duration(duration: statistics.Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=duration.count, ns=duration.ns)
