"""Images a second of every way to read a training split, on this machine; the last line is JSON.

    python launch/input_speed.py --config=camvid --root=DIR [--seconds=5] [--workers=0,2]

files: decoded each time. cached: decoded once, kept by the process. packed: from `dsrl data pack`,
made below --scratch (half the bytes of the pixels) and removed. resident: in device memory, views
drawn there. All at the configuration's size, batch and augmentation.
"""

import argparse
import contextlib
import json
import tempfile
import time

import jax
from absl import flags

from dsrl_jax import config as configs
from dsrl_jax import data, parallel, resident
from dsrl_jax.circumstances import circumstances
from dsrl_jax.data import pack, pipeline


def main(argv=None) -> dict:
    """Time each way and print a row of it; the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--config', default='camvid')
    parser.add_argument('--root', default='')
    parser.add_argument('--seconds', type=float, default=5.0, help='of each measurement')
    parser.add_argument('--workers', default='0,2', help='loader processes to try')
    parser.add_argument('--scratch', help='folder for the packed copy')
    args = parser.parse_args(argv)
    config = configs.load(args.config)
    if args.root:
        config.data.root = args.root
    workers = [int(n) for n in args.workers.split(',')]
    rows, split = {}, config.data.train_split
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folder = f'{scratch}/packed'
        config.data.cache = False
        files = {part: data.build(config.data, part) for part in split.split('+')}
        began = time.perf_counter()
        pack.write(files, folder, name=config.data.name)
        print(f'packed in {time.perf_counter() - began:.1f} s')
        for way in ('files', 'cached', 'packed'):
            chosen = config.copy_and_resolve_references()
            chosen.data.cache = way == 'cached'
            if way == 'packed':
                chosen.data.name, chosen.data.root = 'packed', folder
            for number in workers:
                chosen.data.workers = number
                key = f'{way}, {f"{number} processes" if number else "4 threads"}'
                rows[key] = _show(key, _loader_rate(chosen, args.seconds))
        rows['resident'] = _show('resident', _resident_rate(config, args.seconds))
    size = 'x'.join(map(str, config.data.size))
    about = {
        **circumstances(),
        'data': config.data.name,
        'size': size,
        'batch_size': config.data.batch_size,
    }
    print(json.dumps({'images_per_second': rows, **about}), flush=True)
    return rows


def _loader_rate(config, seconds):
    source = data.build(config.data, config.data.train_split)
    if config.data.cache and not config.data.workers:
        for index in range(len(source)):
            source[index]  # as in every epoch but the first
    batches = pipeline.train_batches(
        source, config.data, seed=0, start=0, batch_size=config.data.batch_size
    )
    with contextlib.closing(batches):
        # Processes start, fill their buffers and, where they keep images, see most of them.
        warm = 2 * len(source) if config.data.cache and config.data.workers else 0
        for _ in range(8 + warm // config.data.batch_size):
            next(batches)
        return _rate(lambda: next(batches), config.data.batch_size, seconds)


def _resident_rate(config, seconds):
    mesh = parallel.make_mesh()
    source = data.build(config.data, config.data.train_split)
    held = resident.hold(source, 'always', mesh)
    batch = jax.jit(resident.make_batch(held, config, mesh))
    steps = iter(range(2**31))
    jax.block_until_ready(batch(held, next(steps), config.seed))
    run = lambda: jax.block_until_ready(batch(held, next(steps), config.seed))  # noqa: E731
    return _rate(run, config.data.batch_size, seconds)


def _rate(run, images, seconds):
    """(images a second of `run`, which makes so many; milliseconds of this process' CPUs each)."""
    began, busy, calls = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < seconds:
        run()
        calls += 1
    count, busy = calls * images, time.process_time() - busy
    return count / (time.perf_counter() - began), 1000 * busy / count


def _show(key, measured):
    rate, busy = measured
    # Loader processes count their own time.
    spent = '' if 'processes' in key else f'{busy:8.2f} ms of CPU each'
    print(f'{key:<22} {rate:8.1f} images/s {spent}'.rstrip(), flush=True)
    return round(rate, 1)


if __name__ == '__main__':
    flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl flags
    main()
