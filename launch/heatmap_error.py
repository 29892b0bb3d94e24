"""Error of encoding a joint as a heatmap and decoding it, for each pair, over random joints.

    python launch/heatmap_error.py [--heatmaps=32x24:1:4,64x48:2:4,...] [--joints=4096]

A heatmap is height x width : sigma : input pixels a heatmap pixel. Joints are uniform over the
input. Errors are mean distances in input pixels: of the joints at least 3 sigma from the border,
and of all. They say what a perfect network would lose.
"""

import argparse
import functools

import jax
import numpy as np

from dsrl_jax.ops.heatmaps import DECODERS, ENCODINGS, decode, encode, spacing

# Of the base network at inputs of 128x96, 256x192 and 384x288, and of the x2 head at 256x192.
HEATMAPS = '32x24:1:4,64x48:2:4,96x72:3:4,128x96:3:2'
_BATCH = 64


def main():
    """Print one table a heatmap."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--heatmaps', default=HEATMAPS, help='HxW:sigma:stride,...')
    parser.add_argument('--joints', type=int, default=4096, help=f'a multiple of {_BATCH}')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()

    print(f'{args.joints} joints, seed {args.seed}; mean error in input pixels: inner / all joints')
    for text in args.heatmaps.split(','):
        size, sigma, stride = text.split(':')
        size = tuple(int(side) for side in size.split('x'))
        found, inner = errors(size, int(stride), float(sigma), args.joints, args.seed)
        print(f'\nheatmap {size[0]}x{size[1]}, sigma {sigma}, stride {stride}\n')
        print('| encode \\ decode | ' + ' | '.join(DECODERS) + ' |')
        print('|---|' + '---|' * len(DECODERS))
        for kind in ENCODINGS:
            row = [found[kind, decoding] for decoding in DECODERS]
            cells = [f'{error[inner].mean():.3f} / {error.mean():.3f}' for error in row]
            print(f'| {kind} | ' + ' | '.join(cells) + ' |', flush=True)


def errors(size, stride, sigma, count, seed=0):
    """{(encoding, decoding): distances [count] in input pixels} and which joints are inner ones."""
    joints = np.random.default_rng(seed).uniform(0, 1, (count // _BATCH, _BATCH, 2))
    last = np.array(size[::-1]) * stride - 1
    joints = (joints * last).astype(np.float32)
    visible = np.ones(joints.shape[:2], np.float32)
    found = {}
    for kind in ENCODINGS:
        maps = jax.jit(functools.partial(_maps, size=size, stride=stride, sigma=sigma, kind=kind))
        maps = maps(joints, visible)
        for decoding in DECODERS:
            read = jax.jit(functools.partial(decode, kind=decoding, sigma=sigma))
            places = np.asarray(read(maps)[0]) * spacing(size, stride, kind)
            found[kind, decoding] = np.linalg.norm(places - joints, axis=-1).ravel()
    inner = np.minimum(joints, last - joints).min(-1).ravel() >= 3 * sigma * stride
    return found, inner


def _maps(joints, visible, **options):
    return encode(joints, visible, **options)[0]


if __name__ == '__main__':
    main()
