"""KServe's REST client."""

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig


async def main():
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    base = f"http://{sys.argv[2]}"
    inputs = []
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        tensor = InferInput(name=name, shape=[3, 7], datatype="INT64")
        tensor.set_data_from_numpy(np.ones((3, 7), np.int64), binary_data=False)
        inputs.append(tensor)
    request = InferRequest(model_name="tiny-classifier", infer_inputs=inputs, request_id="7")
    answer = await client.infer(base, request, model_name="tiny-classifier")
    return {
        "live": await client.is_server_live(base),
        "ready": await client.is_server_ready(base),
        "model": await client.is_model_ready(base, "tiny-classifier"),
        "id": answer.id,
        "shape": answer.outputs[0].shape,
    }


print(json.dumps(asyncio.run(main())))
