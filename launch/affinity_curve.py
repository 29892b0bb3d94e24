"""Time and memory of the feature affinity loss over the number of pixels N, exact against dense.

    python launch/affinity_curve.py [--pixels=512,2048,...] [--output=docs/affinity.png]

One image, two maps [1, h, 2h, C] with N = 2 h^2, float32; a call gives the loss and both gradients.
Memory is what the compiled program needs (arguments, results, temporaries), so it is known for
sizes that do not fit too.  Times are medians; a size is timed where it fits into the device's
memory and a call is expected to take at most --longest seconds.  Runs on the first device JAX has.
"""

import argparse
import datetime
import math
import os
import pathlib
import platform

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from dsrl_jax import timing
from dsrl_jax.ops.affinity import affinity_loss, dense_affinity_loss

FORMS = {'exact': affinity_loss, 'dense': dense_affinity_loss}
COLORS = {'exact': '#2563eb', 'dense': '#dc2626'}


def main():
    """Measure, print the table, draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--pixels', default='512,2048,8192,32768,131072')
    parser.add_argument('--channels', type=int, default=32, help='C of each of the two maps')
    parser.add_argument('--seconds', type=float, default=2.0, help='of measuring, a size')
    parser.add_argument('--longest', type=float, default=10.0, help='seconds of a call still timed')
    parser.add_argument('--output', default='docs/affinity.png', help='the picture')
    args = parser.parse_args()

    device = jax.devices()[0]
    limit = _device_bytes(device)
    today = datetime.date.today().isoformat()
    title = f'{device.device_kind}, {limit / 2**30:.0f} GiB, jax {jax.__version__}, {today}'
    print(f'{title}; {os.cpu_count()} CPU cores, Python {platform.python_version()}')
    print(f'loss and both gradients, one image, C = {args.channels}, float32')
    print(f'{"N":>8} {"form":>6} {"memory MiB":>12} {"ms":>10} {"fastest":>10} {"slowest":>10}')
    sizes = [_grid(int(text)) for text in args.pixels.split(',')]
    found = {name: {} for name in FORMS}
    for height in sizes:
        for name in FORMS:
            pixels = 2 * height**2
            budget = _expected(found[name], pixels) <= args.longest
            used, time = _measure(name, height, args, limit, budget)
            found[name][pixels] = used, time
            shown = [f'{1e3 * t:10.3f}' for t in time[:3]] if time else [f'{"-":>10}'] * 3
            print(f'{pixels:8} {name:>6} {_mebibytes(used)} ' + ' '.join(shown), flush=True)
    _report_limits(found, limit)
    _draw(found, limit, title, pathlib.Path(args.output))


def _measure(name, height, args, limit, budget):
    """(bytes, Timing) of one form at one size; None for what was refused or not to be timed."""
    shape = (1, height, 2 * height, args.channels)
    run = jax.jit(jax.value_and_grad(FORMS[name], argnums=(0, 1)))
    try:
        compiled = run.lower(*2 * [jax.ShapeDtypeStruct(shape, jnp.float32)]).compile()
        memory = compiled.memory_analysis()
        used = sum(
            getattr(memory, f'{part}_size_in_bytes') for part in ('argument', 'output', 'temp')
        )
        if used > limit or not budget:
            return used, None
        keys = jax.random.split(jax.random.key(0))
        maps = [jax.nn.relu(jax.random.normal(key, shape)) for key in keys]
        call = lambda: compiled(*maps)  # noqa: E731
        return used, timing.throughput(call, jax.block_until_ready, seconds=args.seconds)
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        return None, None


def _report_limits(found, limit):
    """Where each form meets the device's memory, from its largest size: N^2 dense, N exact."""
    for name, power in (('dense', 2), ('exact', 1)):
        pixels, (used, _) = max((n, f) for n, f in found[name].items() if f[0])
        most = pixels * (limit / used) ** (1 / power)
        unit = 'pair' if power == 2 else 'pixel'
        print(
            f'{name}: {used / pixels**power:.1f} bytes a {unit} at N = {pixels}; '
            f'{limit / 2**30:.0f} GiB are full at N = {most:,.0f}'
        )


def _draw(found, limit, title, path):
    figure = Figure(figsize=(9, 3.6), layout='constrained')
    for ax, text, unit in zip(figure.subplots(1, 2), ('time', 'memory'), ('ms', 'MiB')):
        for name, sizes in found.items():
            points = [
                (n, 1e3 * time.median if text == 'time' else used / 2**20)
                for n, (used, time) in sizes.items()
                if (time if text == 'time' else used)
            ]
            ax.plot(*zip(*points), 'o-', color=COLORS[name], label=name, markersize=4)
        ax.set_xscale('log', base=2)
        ax.set_yscale('log')
        ax.set_xlabel('pixels N')
        ax.set_title(f'{text}, {unit}', loc='left', fontsize=11)
        ax.spines[['top', 'right']].set_visible(False)
        ax.grid(alpha=0.3)
    ax.axhline(limit / 2**20, color='#475569', linestyle=':', label="the device's memory")
    ax.legend(frameon=False, loc='lower right')
    figure.suptitle(f'Affinity loss and its gradients, one image: {title}', fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f'written: {path}')


def _grid(pixels):
    """Rows of the grid h x 2h of that many pixels."""
    height = math.isqrt(pixels // 2)
    if 2 * height**2 != pixels:
        raise SystemExit(f'--pixels: {pixels} is not 2 h^2; try {2 * height**2}')
    return height


def _expected(sizes, pixels):
    """Seconds of a call, grown with N^2 from the last size timed."""
    timed = [(n, time.median) for n, (_, time) in sizes.items() if time]
    if not timed:
        return 0.0 if not sizes else math.inf
    n, seconds = timed[-1]
    return seconds * (pixels / n) ** 2


def _device_bytes(device):
    """Memory of an accelerator, or of the machine."""
    stats = device.memory_stats() or {}
    return stats.get('bytes_limit') or os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def _mebibytes(used):
    return f'{"-":>12}' if used is None else f'{used / 2**20:12.1f}'


if __name__ == '__main__':
    main()
