"""Data sets that live in device memory: views drawn where the network is, many steps a dispatch.

The host then sends no pixels and, for several steps at a time, no commands. As in the loader the
batch of step k depends on (seed, k) alone, on any number of devices, and every epoch shows each
image once, shuffled anew; the draws are other ones than the loader's, of the same distribution.
"""

import concurrent.futures
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dsrl_jax import parallel
from dsrl_jax.data.sources import IGNORE, Cached, image_size
from dsrl_jax.errors import UserError
from dsrl_jax.ops import views

# Shares of a device's memory: what every device may keep whole, and what training leaves at all.
_WHOLE, _SHARE = 0.1, 0.5
_UNKNOWN_LIMIT = 4 * 2**30  # bytes, of a device that does not say how many it has (a CPU)
DISPATCH = 10  # steps in one program, on an accelerator
_STREAM = 0x44617461  # keeps the draws apart from those of dropout, whose key has the same seed


def hold(source, wish: str, mesh) -> dict | None:
    """The images of a source on the devices, or None where the host is to read them.

    {'image': uint8 [N,H,W,3], 'label': uint8 [N,H,W], 'size': int32 [N,2]}, H and W the largest of
    the source, 255 where there is no label. `wish`: 'never'; 'always', with UserError where they do
    not fit; 'auto', which says so in a line and never holds them on a CPU. Every device has all of
    a small set; of a large one each has its share.
    """
    if wish == 'never' or (wish == 'auto' and jax.default_backend() == 'cpu'):
        return None
    sizes = np.array([image_size(source, i) for i in range(len(source))])
    needed = len(sizes) * 4 * int(np.prod(sizes.max(0)))
    limit = (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit', _UNKNOWN_LIMIT)
    layout = choose_layout(needed, limit, mesh.size)
    said = f'{len(sizes)} training images, {needed / 1e9:.2f} GB'
    room = f'{_SHARE * limit / 1e9:.2f} GB on each of {mesh.size} devices'
    if layout is None and wish == 'always':
        remedy = 'set it to auto, or pack smaller images.'
        raise UserError('config.data.resident', said, f'at most {room}', remedy)
    if jax.process_index() == 0:
        where = f'in device memory, {layout}' if layout else f'read by the host: more than {room}'
        print(f'{said}: {where}')
    return place(source, mesh, layout == 'sharded') if layout else None


def choose_layout(needed: int, limit: int, devices: int) -> str | None:
    """'replicated', 'sharded' over the devices, or None for a set that fits neither way."""
    if needed <= limit * (_WHOLE if devices > 1 else _SHARE):
        return 'replicated'
    return 'sharded' if devices > 1 and needed / devices <= limit * _SHARE else None


def place(source, mesh, sharded: bool) -> dict:
    """The arrays of `hold`; sharded ones have rows of zeros at the end, so that all shares are
    equal. A process decodes only what its devices keep, one share at a time."""
    source = source.source if isinstance(source, Cached) else source  # no second copy in memory
    sizes = np.array([image_size(source, i) for i in range(len(source))], np.int32)
    everywhere = parallel.replicated(mesh)
    sharding = parallel.by_batch(mesh) if sharded else everywhere
    rows = -(-len(sizes) // mesh.size) * mesh.size if sharded else len(sizes)
    height, width = sizes.max(0).tolist()
    shapes = {'image': (rows, height, width, 3), 'label': (rows, height, width)}
    parts, loaded, last = {name: [] for name in shapes}, None, None
    for device, (part, *_) in sharding.addressable_devices_indices_map((rows,)).items():
        wanted = range(rows)[part]
        if wanted != last:
            loaded, last = _load(source, wanted, height, width), wanted
        for name, array in loaded.items():
            parts[name].append(jax.device_put(array, device))
    held = {
        name: jax.make_array_from_single_device_arrays(shape, sharding, parts[name])
        for name, shape in shapes.items()
    }
    return held | {'size': jax.device_put(sizes, everywhere)}


def make_batch(held: dict, config, mesh) -> Callable:
    """`batch(held, step, seed) -> {'target', 'label', 'mask'}`, the loader's batch of that step.

    To be called inside jit. Reads the data's size, scale_range, flip, color, fill and
    batch_size of the configuration.
    """
    data = config.data
    sizes = np.unique(np.asarray(held['size']), axis=0).tolist()
    wanted, scales = tuple(data.size), tuple(data.scale_range)
    taps = views.taps(sizes, scales)
    by_batch = parallel.by_batch(mesh)

    def batch(held, step, seed):
        order, places = jax.random.split(jax.random.fold_in(jax.random.key(seed), _STREAM))
        index = sample(order, step, data.batch_size, held['size'].shape[0])
        index = jax.lax.with_sharding_constraint(index, by_batch)
        image, label, size = (
            jnp.take(held[name], index, axis=0, mode='clip') for name in ('image', 'label', 'size')
        )
        where = views.draw(
            jax.random.fold_in(places, step),
            size,
            wanted,
            scale_range=scales,
            flip=data.flip,
            color=data.color,
        )
        cut = views.cut(
            image, label, where, wanted, taps=taps, fill=tuple(data.fill), color=data.color > 0
        )
        cut = jax.lax.with_sharding_constraint(cut, by_batch)
        return jax.lax.optimization_barrier(cut)  # the step reads it in several places

    return batch


def sample(key, step, batch_size: int, images: int) -> jax.Array:
    """Which images step number `step` (from 0) shows: int32 [batch_size].

    The epochs stand one after the other, each a shuffle of all images; a step may span several.
    """
    position = step * batch_size + jnp.arange(batch_size)
    epoch, place = position // images, position % images
    spanned = epoch[0] + jnp.arange(-(-(batch_size - 1) // images) + 1)
    shuffle = jax.vmap(lambda e: jax.random.permutation(jax.random.fold_in(key, e), images))
    return shuffle(spanned)[epoch - epoch[0], place]


def repeat(train_step: Callable, batch: Callable, length: int) -> Callable:
    """`run(state, held, teacher=None) -> (state, scalars [length] each)`: that many steps."""

    def run(state, held, teacher=None):
        def one(state, _):
            return train_step(state, batch(held, state.step, state.seed), teacher)

        # XLA for CPUs runs a convolution inside a loop some thirty times slower than outside.
        return jax.lax.scan(one, state, length=length, unroll=jax.default_backend() == 'cpu')

    return run


def lengths(start: int, steps: int, most: int, *stops: int) -> Iterator[int]:
    """How many steps each dispatch runs from step `start` to `steps`: `most` or 1.

    `most` 0 stands for 10, or 1 on a CPU, whose commands cost nothing beside the step. None runs
    over a multiple of one of `stops` (0: none). Two lengths only, each being compiled; and what
    follows a step depends on that step alone, so a resumed run goes on in the same programs.
    """
    if most < 0:
        raise UserError('config.steps_per_dispatch', str(most), 'at least 0', 'correct it.')
    most = most or (1 if jax.default_backend() == 'cpu' else DISPATCH)
    while start < steps:
        end = min([steps, *((start // stop + 1) * stop for stop in stops if stop)])
        length = most if start + most <= end else 1
        yield length
        start += length


def _load(source, part: range, height: int, width: int) -> dict[str, np.ndarray]:
    """Rows `part` of the arrays on the host; those beyond the source stay empty."""
    image = np.zeros((len(part), height, width, 3), np.uint8)
    label = np.full((len(part), height, width), IGNORE, np.uint8)

    def read(row):
        element = source[part[row]]
        tall, wide = element['image'].shape[:2]
        image[row, :tall, :wide] = element['image']
        if 'label' in element:
            label[row, :tall, :wide] = element['label']

    with concurrent.futures.ThreadPoolExecutor() as pool:  # decoders let go of Python's lock
        list(pool.map(read, range(min(len(part), max(0, len(source) - part.start)))))
    return {'image': image, 'label': label}
