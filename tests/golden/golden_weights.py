"""Deterministic weights and inputs for the golden parity files (NumPy only).

The same numbers come out on every machine and every NumPy version, because only the
frozen legacy generator ``numpy.random.RandomState`` (MT19937) is used, seeded with
``crc32(f"{seed}:{key}")``.

    sd = state_dict("DABNet.keys.json")            # {torch key: np.ndarray}
    x  = inputs("DABNet.keys.json")                # float32, NCHW, exact multiples of 1/64

A keys file is one JSON object:
    {"network": str, "input_shape": [N, C, H, W], "entries": [
        {"key": str, "shape": [...], "dtype": "float32"|"int64", "kind": str, "scale": float}]}

``kind`` says how an entry is filled (``r`` = the entry's own RandomState):
    conv     N(0, 1) * sqrt(2 / fan_in) * scale         layout (out, in/groups, kh, kw)
    convt    N(0, 1) * sqrt(2 / fan_in) * scale         layout (in, out/groups, kh, kw)
    linear   N(0, 1) * sqrt(2 / fan_in) * scale         layout (out, in)
    bias     N(0, 1) * 0.1 * scale                      (of a conv, transposed conv or linear layer)
    bn_w     U[0.5, 1.5] * scale
    bn_b     N(0, 1) * 0.1
    bn_mean  N(0, 1) * 0.1 * sqrt(scale)                (running mean)
    bn_var   U[0.5, 1.5] * scale                        (running variance)
    prelu    U[0.1, 0.4]
    bn_count 0 (int64; torch's num_batches_tracked, no meaning for the result)
fan_in is in/groups * kh * kw for conv, in * kh * kw for convt and in for linear.
Everything is computed in float64 and then rounded once to float32.
``scale`` was measured once per layer so that activations keep the order of 1 in eval mode.
"""

import json
import zlib

import numpy as np


def _rng(seed, key):
    return np.random.RandomState(zlib.crc32(f'{seed}:{key}'.encode()) & 0xFFFFFFFF)


def _load(keys_json):
    if isinstance(keys_json, dict):
        return keys_json
    with open(keys_json, encoding='utf-8') as f:
        return json.load(f)


def fill(key, shape, kind, scale=1.0, seed=0):
    """One array for one state_dict entry."""
    shape = tuple(int(s) for s in shape)
    if kind == 'bn_count':
        return np.zeros(shape, np.int64)
    r = _rng(seed, key)
    if kind == 'conv' or kind == 'linear':
        fan_in = int(np.prod(shape[1:]))
        a = r.standard_normal(shape) * np.sqrt(2.0 / fan_in) * scale
    elif kind == 'convt':
        fan_in = int(shape[0] * np.prod(shape[2:]))
        a = r.standard_normal(shape) * np.sqrt(2.0 / fan_in) * scale
    elif kind == 'bias':
        a = r.standard_normal(shape) * 0.1 * scale
    elif kind == 'bn_b':
        a = r.standard_normal(shape) * 0.1
    elif kind == 'bn_w':
        a = (0.5 + r.random_sample(shape)) * scale
    elif kind == 'bn_mean':
        a = r.standard_normal(shape) * 0.1 * np.sqrt(scale)
    elif kind == 'bn_var':
        a = (0.5 + r.random_sample(shape)) * scale
    elif kind == 'prelu':
        a = 0.1 + 0.3 * r.random_sample(shape)
    else:
        raise ValueError(f'unknown kind {kind!r} of {key!r}')
    return np.asarray(a, np.float64).astype(np.float32)


def state_dict(keys_json, seed=None):
    """All arrays of a network, in the order of the torch state_dict."""
    spec = _load(keys_json)
    seed = spec.get('seed', 0) if seed is None else seed
    return {
        e['key']: fill(e['key'], e['shape'], e['kind'], e.get('scale', 1.0), seed)
        for e in spec['entries']
    }


def inputs_u8(keys_json, seed=None, shape=None):
    """The raw uint8 input, NCHW: smooth blobs plus noise, so that it is not white noise only."""
    spec = _load(keys_json)
    seed = spec.get('seed', 0) if seed is None else seed
    n, c, h, w = shape or spec['input_shape']
    r = _rng(seed, 'input:' + spec['network'])
    yy, xx = np.meshgrid(np.arange(h) / h, np.arange(w) / w, indexing='ij')
    out = np.empty((n, c, h, w), np.uint8)
    for i in range(n):
        for j in range(c):
            a, b, p, q, m, t = r.random_sample(6)
            s = np.sin(2 * np.pi * ((1 + 3 * a) * yy + p)) * np.cos(
                2 * np.pi * ((1 + 3 * b) * xx + q)
            )
            z = 128 + 120 * (m - 0.5) + (20 + 50 * t) * s + 80 * (r.random_sample((h, w)) - 0.5)
            out[i, j] = np.clip(np.floor(z), 0, 255).astype(np.uint8)
    return out


def inputs(keys_json, seed=None, shape=None):
    """float32 input (u8 - 128) / 64; exact in float32."""
    return (inputs_u8(keys_json, seed, shape).astype(np.float32) - 128.0) / 64.0
