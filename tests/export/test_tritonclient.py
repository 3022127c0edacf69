"""An existing client of the Open Inference Protocol, unmodified.

It runs in a process of its own: its copy of the protocol's messages cannot live beside ours.
"""

import json
import subprocess
import sys

from tests.support.fixtures import CLASSIFIER
from tests.support.serving import serving

_CLIENT = """
import json, sys
import numpy as np
import tritonclient.grpc as triton

client = triton.InferenceServerClient(sys.argv[1])
metadata = client.get_model_metadata("tiny-classifier")
inputs = []
for tensor in metadata.inputs:
    values = np.ones((3, 7), np.int64)
    inputs.append(triton.InferInput(tensor.name, values.shape, tensor.datatype))
    inputs[-1].set_data_from_numpy(values)
result = client.infer("tiny-classifier", inputs, request_id="7")
try:
    client.infer("nope", inputs)
    refused = "was not refused"
except triton.InferenceServerException as error:
    refused = error.status()
print(json.dumps({
    "live": client.is_server_live(),
    "ready": client.is_server_ready(),
    "model": client.is_model_ready("tiny-classifier"),
    "other": client.is_model_ready("nope"),
    "server": client.get_server_metadata().name,
    "shape": list(result.as_numpy("logits").shape),
    "id": result.get_response().id,
    "refused": refused,
}))
"""


def test_tritonclient_works_unmodified(tmp_path):
    with serving(tmp_path, [CLASSIFIER], "--threads", "1") as server:
        command = [sys.executable, "-W", "ignore", "-c", _CLIENT, server.address]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert json.loads(done.stdout) == {
        "live": True,
        "ready": True,
        "model": True,
        "other": False,
        "server": "outpost",
        "shape": [3, 3],
        "id": "7",
        "refused": "StatusCode.NOT_FOUND",
    }
