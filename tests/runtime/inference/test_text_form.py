"""A text model's requests over the Open Inference Protocol, as the text engine gets them."""

import numpy as np
import pytest
from outpost.v1 import text_pb2
from outpost_runtime.errors import InvalidInputError
from outpost_runtime.raw_tensors import of_elements
from outpost_runtime.server.inference.message import InferRequest, RequestedOutput
from outpost_runtime.server.inference.text import to_generate

_TEXT = of_elements((1,), [b"Hello"])


def _request(parameters=None, outputs=(), **feeds):
    return InferRequest(
        model="m",
        version="",
        id="",
        feeds={"text_input": _TEXT} | feeds,
        outputs=outputs,
        parameters=parameters or {},
    )


def test_a_text_is_a_prompt_and_nothing_else_is_set():
    message, streams = to_generate(_request())
    assert message == text_pb2.GenerateRequest(
        model="m", prompt="Hello", priority=text_pb2.PRIORITY_INTERACTIVE
    )
    assert not streams


def test_parameters_have_the_names_of_generation_parameters_and_numbers_may_be_text():
    parameters = {"max_tokens": 5, "temperature": "0.5", "top_k": 3, "seed": 2**40, "stop": "\n"}
    message, _ = to_generate(_request(parameters))
    assert message.parameters == text_pb2.GenerationParameters(
        max_new_tokens=5, temperature=0.5, top_k=3, seed=2**40, stop=["\n"]
    )


@pytest.mark.parametrize(
    ("text", "stops"),
    [
        ('["\\n\\n", "END"]', ["\n\n", "END"]),
        ("[END]", ["[END]"]),
        ("[1]", ["[1]"]),
        ("[]", ["[]"]),
        ('"x"', ['"x"']),
        ("[" * 9999, ["[" * 9999]),
    ],
)
def test_there_may_be_several_stop_strings(text, stops):
    message, _ = to_generate(_request({"stop": text}))
    assert message.parameters.stop == stops


def test_forms_priorities_adapters_chats_and_streams():
    message, streams = to_generate(
        _request(
            {"regex": "a+", "priority": 2, "adapter": "mine", "apply_chat_template": True},
            stream=np.array([[True]]),
        )
    )
    assert streams
    assert message.constraint.regex == "a+"
    assert message.priority == text_pb2.PRIORITY_BATCH
    assert message.adapter == "mine"
    assert message.chat.messages[0].content == "Hello"


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (_request({"temprature": 1}), "no parameter 'temprature'"),
        (_request({"top_k": 1.5}), "top_k"),
        (_request({"top_k": True}), "top_k"),
        (_request({"top_k": 2**40}), "top_k"),
        (_request({"temperature": "warm"}), "temperature"),
        (_request({"stop": 3}), "stop"),
        (_request({"priority": "high"}), "priority"),
        (_request(other=_TEXT), "no input 'other'"),
        (_request(text_input=np.ones(1)), "BYTES"),
        (_request(text_input=of_elements((2,), [b"", b""])), "takes one"),
        (_request(text_input=of_elements((1,), [b"\xff"])), "UTF-8"),
        (_request(stream=np.ones(1)), "BOOL"),
        (_request(outputs=(RequestedOutput(name="logits"),)), "text_output"),
    ],
)
def test_what_a_text_model_does_not_take_is_refused(request_, complaint):
    with pytest.raises(InvalidInputError, match=complaint):
        to_generate(request_)
