"""tritonclient over gRPC: sync, asyncio, streaming, shared memory, statistics, repository."""

import asyncio
import json
import queue
import sys

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException, shared_memory

MODEL, TEXT = "tiny-classifier", "tiny-decoder"
address = sys.argv[1]
client = triton.InferenceServerClient(address)
found = {}


def inputs(rows=3):
    made = []
    for tensor in client.get_model_metadata(MODEL).inputs:
        values = np.ones((rows, 7), np.int64)
        made.append(triton.InferInput(tensor.name, values.shape, tensor.datatype))
        made[-1].set_data_from_numpy(values)
    return made


def refused(call):
    try:
        call()
    except InferenceServerException as error:
        return error.status() or error.message()
    return "was not refused"


def text_inputs(text=b"Hello", stream=True):
    prompt = triton.InferInput("text_input", [1], "BYTES")
    prompt.set_data_from_numpy(np.array([text], np.object_))
    streams = triton.InferInput("stream", [1], "BOOL")
    streams.set_data_from_numpy(np.array([stream]))
    return [prompt, streams]


def whole(results):
    return b"".join(r.as_numpy("text_output")[0] for r in results).decode("utf-8", "replace")


found["live"] = client.is_server_live()
found["ready"] = client.is_server_ready()
found["models"] = [client.is_model_ready(MODEL), client.is_model_ready("nope")]
found["versions"] = [client.is_model_ready(MODEL, "1"), client.is_model_ready(MODEL, "7")]
found["bad version"] = refused(lambda: client.is_model_ready(MODEL, "abc"))
found["server"] = client.get_server_metadata().name
found["decoupled"] = client.get_model_config(TEXT).config.model_transaction_policy.decoupled

before = client.get_inference_statistics(MODEL).model_stats[0]
result = client.infer(MODEL, inputs(), request_id="7")
found["id"] = result.get_response().id
found["version"] = result.get_response().model_version
plain = result.as_numpy("logits")
found["shape"] = list(plain.shape)
for packed in ("gzip", "deflate"):
    same = client.infer(MODEL, inputs(), compression_algorithm=packed).as_numpy("logits")
    found[packed] = bool((same == plain).all())
wanted = triton.InferRequestedOutput("logits", class_count=2)
classes = client.infer(MODEL, inputs(), outputs=[wanted]).as_numpy("logits")
found["classes"] = [list(classes.shape), classes[0][0].decode().split(":")[1]]
found["likeliest"] = str(int(plain[0].argmax()))
found["unknown model"] = refused(lambda: client.infer("nope", inputs()))
found["unknown output"] = refused(
    lambda: client.infer(MODEL, inputs(), outputs=[triton.InferRequestedOutput("y")])
)
found["too many rows"] = refused(lambda: client.infer(MODEL, inputs(33)))
# In microseconds, as the protocol has it; a call's own deadline is rounded up to one that we keep.
found["deadline"] = refused(lambda: client.infer(MODEL, inputs(), timeout=1))
found["unary text"] = refused(lambda: client.infer(TEXT, text_inputs()))
after = client.get_inference_statistics(MODEL).model_stats[0]
found["counted"] = after.inference_count - before.inference_count
found["trace"] = refused(client.get_trace_settings)
found["cuda"] = refused(client.get_cuda_shared_memory_status)
found["log"] = refused(client.get_log_settings)

# Shared memory: the inputs and the output never cross the wire.
size = 3 * 7 * 8
region = shared_memory.create_shared_memory_region("in", "/outpost-client-test-in", size)
answer = shared_memory.create_shared_memory_region("out", "/outpost-client-test-out", 64)
try:
    shared_memory.set_shared_memory_region(region, [np.ones((3, 7), np.int64)])
    client.register_system_shared_memory("in", "/outpost-client-test-in", size)
    client.register_system_shared_memory("out", "/outpost-client-test-out", 64)
    found["regions"] = sorted(client.get_system_shared_memory_status(as_json=True)["regions"])
    placed = inputs()
    for tensor in placed:
        tensor.set_shared_memory("in", size)
    output = triton.InferRequestedOutput("logits")
    output.set_shared_memory("out", 64)
    client.infer(MODEL, placed, outputs=[output])
    got = shared_memory.get_contents_as_numpy(answer, np.float32, [3, 3])
    found["through memory"] = bool((got == plain).all())
    client.unregister_system_shared_memory()
    found["forgotten"] = refused(lambda: client.infer(MODEL, placed))
finally:
    shared_memory.destroy_shared_memory_region(region)
    shared_memory.destroy_shared_memory_region(answer)

# A stream: text piece by piece, a bad request in between, a tensor model beside.
events = queue.Queue()
client.start_stream(lambda result, error: events.put((result, error)))
parameters = {"max_tokens": 6}
client.async_stream_infer(
    TEXT, text_inputs(), request_id="text", parameters=parameters,
    enable_empty_final_response=True,
)  # fmt: skip
pieces, final = [], None
while final is None:
    result, error = events.get(timeout=30)
    assert error is None, error
    response = result.get_response()
    assert response.id == "text"
    if response.parameters["triton_final_response"].bool_param:
        final = len(response.outputs), response.parameters["generated_tokens"].int64_param
    else:
        pieces.append(result)
found["final"] = list(final)
client.async_stream_infer("nope", inputs(), request_id="bad")
result, error = events.get(timeout=30)
found["bad in a stream"] = "nope" in str(error)
client.async_stream_infer(MODEL, inputs(), request_id="tensor")
result, error = events.get(timeout=30)
found["after it"] = [result.get_response().id, bool((result.as_numpy("logits") == plain).all())]
client.async_stream_infer(TEXT, text_inputs(stream=False), request_id="once", parameters=parameters)
result, error = events.get(timeout=30)
found["at once"] = result.get_response().parameters["triton_final_response"].bool_param
found["same text"] = whole([result]) == whole(pieces)
client.stop_stream()

found["index"] = sorted(m.name for m in client.get_model_repository_index().models)
client.unload_model("tiny-embedder")
found["unloaded"] = [client.is_model_ready("tiny-embedder"), client.is_server_ready()]
found["gone"] = refused(lambda: client.get_model_metadata("tiny-embedder"))
client.load_model("tiny-embedder")
found["loaded"] = client.is_model_ready("tiny-embedder")
client.unload_model("nope")
found["missing"] = refused(lambda: client.load_model("nope"))


async def asynchronous():
    async with triton_aio.InferenceServerClient(address) as other:
        results = await asyncio.gather(*(other.infer(MODEL, inputs(1)) for _ in range(20)))

        async def requests():
            yield {"model_name": TEXT, "inputs": text_inputs(), "parameters": {"max_tokens": 3}}

        streamed = [r async for r, _ in other.stream_infer(requests())]
        return len(results), len(streamed) > 1


found["asyncio"] = list(asyncio.run(asynchronous()))
print(json.dumps(found))
