"""KServe's gRPC client."""

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest

MODEL = "tiny-classifier"


async def main():
    client = InferenceGRPCClient(url=sys.argv[1])
    inputs = []
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        tensor = InferInput(name=name, shape=[3, 7], datatype="INT64")
        tensor.set_data_from_numpy(np.ones((3, 7), np.int64), binary_data=True)
        inputs.append(tensor)
    request = InferRequest(model_name=MODEL, infer_inputs=inputs, request_id="7")
    answer = await client.infer(request)
    typed = [InferInput(name=t.name, shape=[3, 7], datatype="INT64", data=[1] * 21) for t in inputs]
    same = await client.infer(InferRequest(model_name=MODEL, infer_inputs=typed))
    return {
        "live": await client.is_server_live(),
        "ready": await client.is_server_ready(),
        "model": await client.is_model_ready(MODEL),
        "other": await client.is_model_ready("nope"),
        "id": answer.id,
        "shape": answer.outputs[0].shape,
        "typed": bool(np.allclose(same.outputs[0].as_numpy(), answer.outputs[0].as_numpy())),
    }


print(json.dumps(asyncio.run(main())))
