"""What the device can do, measured: rate of matrix products, bandwidth of a copy, memory, name."""

import os
import pathlib
import platform

import jax
import jax.numpy as jnp

from dsrl_jax import timing

_SIZES = {'cpu': (512, 1024, 2048)}
_LARGE_SIZES = (2048, 4096, 8192, 16384)
_COPIED = {'cpu': 2**27}  # bytes; several times what the caches hold
_LARGE_COPY = 2**30


def matmul_peak(dtype, seconds: float = 2.0) -> tuple[float, int]:
    """FLOP/s of the fastest n x n product, and its n; 2 n^3 FLOPs, XLA's default precision.

    The precision is that of the networks' own products: float32 may run as TF32 on a GPU.
    """
    sizes = _SIZES.get(jax.default_backend(), _LARGE_SIZES)
    return max((_matmul_rate(n, dtype, seconds / len(sizes)), n) for n in sizes)


def copy_bandwidth(seconds: float = 2.0) -> float:
    """Bytes/s read and written by x = -x over a large float32 array, in place."""
    size = _COPIED.get(jax.default_backend(), _LARGE_COPY)
    x = jnp.ones((size // 4,), jnp.float32)
    # In place, since fresh memory costs a CPU more than the copy.
    negate = jax.jit(jnp.negative, donate_argnums=0)

    def call():
        nonlocal x
        x = negate(x)
        return x

    found = timing.throughput(call, jax.block_until_ready, seconds=seconds)
    return 2 * size / found.median


def memory(compiled) -> dict:
    """Bytes: what the compiled program asks for, and the peak of this process where it is known.

    `peak` comes from the device's allocator (everything since the process began, the search for
    fast kernels too), else it is the program's own plan: arguments + temporaries + outputs.
    """
    plan = compiled.memory_analysis()
    parts = {
        'arguments': plan.argument_size_in_bytes,
        'temporaries': plan.temp_size_in_bytes,
        'outputs': plan.output_size_in_bytes - plan.alias_size_in_bytes,
    }
    peak = (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
    if peak:
        return {'peak': peak, 'source': 'allocator', **parts}
    return {'peak': sum(parts.values()), 'source': 'plan of the program', **parts}


def device_name() -> str:
    """The model of the device that runs, and of a CPU how many cores this process may use."""
    device = jax.devices()[0]
    if device.platform != 'cpu':
        return device.device_kind
    described = pathlib.Path('/proc/cpuinfo')
    lines = described.read_text().splitlines() if described.is_file() else []
    models = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    name = models[0] if models else platform.processor() or platform.machine()
    return f'{name}, {_cores()} cores'


def _cores() -> int:
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _matmul_rate(n: int, dtype, seconds: float) -> float:
    # Random numbers: a GPU draws less power, and so runs faster, on constant ones.
    a, b = (jax.random.normal(key, (n, n), dtype) for key in jax.random.split(jax.random.key(0)))
    product = jax.jit(jnp.matmul)
    found = timing.throughput(lambda: product(a, b), jax.block_until_ready, seconds=seconds)
    return 2 * n**3 / found.median
