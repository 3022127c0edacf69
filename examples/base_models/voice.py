"""A voice for models of speech: vowels, computed, so that no recording is needed.

A train of glottal pulses goes through three resonators, whose frequencies are the formants of a
vowel (G. E. Peterson, H. L. Barney: Control Methods Used in a Study of the Vowels, 1952).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
"""Samples per second."""

Sound = NDArray[np.float32]

_VOWELS = {"a": (730, 1090, 2440), "i": (270, 2290, 3010), "u": (300, 870, 2240)}
_BANDWIDTHS = (80, 100, 170)
_LOUDNESS = 0.3


def speak(vowels: str, *, seconds_each: float = 0.16) -> Sound:
    """Return vowels, one after the other, with a melody."""
    pitches = (120 + 10 * (index % 2) for index in range(len(vowels)))
    parts = [
        _vowel(_VOWELS[vowel], pitch, int(seconds_each * RATE))
        for vowel, pitch in zip(vowels, pitches, strict=True)
    ]
    return np.concatenate(parts).astype(np.float32)


def silence(seconds: float) -> Sound:
    """Return nothing, for some time."""
    return np.zeros(int(seconds * RATE), np.float32)


def _vowel(formants: Sequence[int], pitch: float, length: int) -> NDArray[np.float64]:
    seconds = np.arange(length) / RATE
    phase = np.cumsum(pitch * (1 + 0.05 * np.sin(2 * np.pi * 3 * seconds))) / RATE
    sound: NDArray[np.float64] = (np.diff(np.floor(phase), prepend=0) > 0).astype(np.float64)
    for formant, bandwidth in zip(formants, _BANDWIDTHS, strict=True):
        sound = _resonate(sound, formant, bandwidth)
    loudest: float = np.abs(sound).max()
    return sound * (_LOUDNESS / loudest)


def _resonate(
    sound: NDArray[np.float64], frequency: float, bandwidth: float
) -> NDArray[np.float64]:
    decay = np.exp(-np.pi * bandwidth / RATE)
    turn = 2 * decay * np.cos(2 * np.pi * frequency / RATE)
    result = np.zeros_like(sound)
    last = before = 0.0
    for index, value in enumerate(sound):
        last, before = value + turn * last - decay * decay * before, last
        result[index] = last
    return result
