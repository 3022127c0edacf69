"""Weights in blocks: as ONNX Runtime quantizes them, and on scales that were given."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    DefaultWeightOnlyQuantizer,
)
from outpost_export import columns
from outpost_export.blocks import quantize_bits, quantize_rows


def _weights(rows, columns, seed=0):
    weights = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    weights[3] = 0
    weights[5, 7] = 40
    weights[6, 7] = -40
    return weights


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [96, 100, 33])
def test_blocks_are_those_of_onnx_runtimes_quantizer(bits, columns):
    weights = _weights(50, columns)
    config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, bits=bits)
    quantizer = DefaultWeightOnlyQuantizer(config)
    values, scales, _ = quantizer.qbits_block_quant(np.ascontiguousarray(weights.T))
    got = quantize_bits(weights, bits, 32)
    np.testing.assert_array_equal(got.scales, scales)
    ours, theirs = (_integers(v.reshape(50, -1), bits)[:, :columns] for v in (got.values, values))
    np.testing.assert_array_equal(ours, theirs)
    assert got.clipped == 0


def _integers(values, bits):
    return (
        values if bits == 8 else np.stack([values & 15, values >> 4], -1).reshape(len(values), -1)
    )


_QUANTIZERS = {
    "rows": lambda weights, scales: quantize_rows(weights, 32, scales),
    "4 bits": lambda weights, scales: quantize_bits(weights, 4, 32, scales),
    "8 bits": lambda weights, scales: quantize_bits(weights, 8, 32, scales),
    "columns": lambda weights, scales: columns.quantize(weights, _FACTORS, scales),
}
_FACTORS = np.random.default_rng(1).uniform(0.5, 2, size=50).astype(np.float32)


@pytest.mark.parametrize("name", _QUANTIZERS)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]))
def test_on_their_own_scales_weights_have_the_same_integers_again(name, seed, scale):
    quantize, weights = _QUANTIZERS[name], _weights(50, 64, seed) * np.float32(scale)
    fresh = quantize(weights, None)
    again = quantize(weights, fresh.scales)
    np.testing.assert_array_equal(fresh.values, again.values)
    assert fresh.clipped == again.clipped == 0


@pytest.mark.parametrize("name", _QUANTIZERS)
def test_weights_beyond_given_scales_are_clipped_and_counted(name):
    quantize, weights = _QUANTIZERS[name], _weights(50, 64)
    fresh = quantize(weights, None)
    larger = weights.copy()
    larger[10, 20], larger[11, 30] = 1e3, -1e3
    larger[3, 9] = 1e3  # where all was zero, and a block's scale is
    given = quantize(larger, fresh.scales)
    np.testing.assert_array_equal(given.scales, fresh.scales)
    assert given.clipped == 3
    places = (fresh.values != given.values).sum()
    assert 2 <= places <= 3


def test_more_rows_than_are_quantized_at_a_time_are_none_the_worse():
    weights = np.random.default_rng(0).normal(size=(4097, 32)).astype(np.float32)
    whole, last = quantize_bits(weights, 4, 32), quantize_bits(weights[4096:], 4, 32)
    np.testing.assert_array_equal(whole.values[4096:], last.values)
    again = quantize_bits(weights, 4, 32, whole.scales)
    np.testing.assert_array_equal(whole.values, again.values)
