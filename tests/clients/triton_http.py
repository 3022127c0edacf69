"""tritonclient over HTTP: sync and asyncio, JSON and binary, packed bodies, shared memory."""

import asyncio
import json
import sys

import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException, shared_memory

MODEL = "tiny-classifier"
client = triton.InferenceServerClient(sys.argv[2], concurrency=2)
found = {}


def inputs(binary=True):
    made = []
    for tensor in client.get_model_metadata(MODEL)["inputs"]:
        values = np.ones((3, 7), np.int64)
        made.append(triton.InferInput(tensor["name"], values.shape, tensor["datatype"]))
        made[-1].set_data_from_numpy(values, binary_data=binary)
    return made


def refused(call):
    try:
        call()
    except InferenceServerException as error:
        return [error.status(), error.message()]
    return "was not refused"


found["live"] = client.is_server_live()
found["ready"] = client.is_server_ready()
found["models"] = [client.is_model_ready(MODEL), client.is_model_ready("nope")]
found["server"] = client.get_server_metadata()["name"]
found["batch"] = client.get_model_config(MODEL)["max_batch_size"]
result = client.infer(MODEL, inputs(), request_id="7")
plain = result.as_numpy("logits")
found["id"] = result.get_response()["id"]
for binary_in in (True, False):
    for binary_out in (True, False):
        output = triton.InferRequestedOutput("logits", binary_data=binary_out)
        same = client.infer(MODEL, inputs(binary_in), outputs=[output]).as_numpy("logits")
        found[f"binary {binary_in} {binary_out}"] = bool(np.allclose(same, plain))
for packed in ("gzip", "deflate"):
    same = client.infer(
        MODEL, inputs(), request_compression_algorithm=packed,
        response_compression_algorithm=packed,
    )  # fmt: skip
    found[packed] = bool((same.as_numpy("logits") == plain).all())
classes = triton.InferRequestedOutput("logits", class_count=1)
found["classes"] = list(client.infer(MODEL, inputs(), outputs=[classes]).as_numpy("logits").shape)
found["unknown"] = refused(lambda: client.infer("nope", inputs()))[0]
waiting = [client.async_infer(MODEL, inputs()) for _ in range(8)]
found["async"] = all((w.get_result().as_numpy("logits") == plain).all() for w in waiting)
found["statistics"] = client.get_inference_statistics(MODEL)["model_stats"][0]["name"]
found["index"] = len(client.get_model_repository_index())
size = 3 * 7 * 8
region = shared_memory.create_shared_memory_region("http", "/outpost-client-test-http", size)
try:
    shared_memory.set_shared_memory_region(region, [np.ones((3, 7), np.int64)])
    client.register_system_shared_memory("http", "/outpost-client-test-http", size)
    found["region"] = client.get_system_shared_memory_status()[0]["byte_size"] == size
    placed = inputs()
    for tensor in placed:
        tensor.set_shared_memory("http", size)
    found["through memory"] = bool((client.infer(MODEL, placed).as_numpy("logits") == plain).all())
    client.unregister_system_shared_memory("http")
finally:
    shared_memory.destroy_shared_memory_region(region)


async def asynchronous():
    async with triton_aio.InferenceServerClient(sys.argv[2]) as other:
        results = await asyncio.gather(*(other.infer(MODEL, inputs()) for _ in range(8)))
        return all((r.as_numpy("logits") == plain).all() for r in results)


found["asyncio"] = bool(asyncio.run(asynchronous()))
found["async"] = bool(found["async"])
print(json.dumps(found))
