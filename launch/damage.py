"""Whole files of every kind, and what damages them: the material of fuzz.py."""

import importlib.util
import io
import pathlib
import struct
import zlib

import jax
import numpy as np
import safetensors.numpy
from PIL import Image

from dsrl_jax import checkpoint

CONFIG = {'model': {'net': 'toy'}, 'seed': 0}
_SIZE = (12, 17)  # height and width
_NUMBERS = (0, 1, 2, 3, 4, 8, 16, 17, 255, 256, 65535, 100000, 2**31 - 1, 2**31, 2**32 - 1)
_PNG = b'\x89PNG\r\n\x1a\n'


def pictures() -> dict[str, bytes]:
    """A small whole file of every kind that is read or refused with a reason."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 5, _SIZE, np.uint8)
    rgb = rng.integers(0, 256, (*_SIZE, 3), np.uint8)
    alpha = np.concatenate([rgb, grey[..., None]], -1)
    palette = Image.fromarray(grey).convert('P')
    palette.putpalette(rng.integers(0, 256, 48, np.uint8).tolist())
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, 'a picture'
    one = Image.fromarray(rgb)
    cmyk = one.convert('CMYK')
    colors = np.stack([grey, np.full_like(grey, 40), np.full_like(grey, 80)], -1)
    made = {
        'grey': _saved(Image.fromarray(grey)),
        'rgb': _saved(one),
        'classes in colour': _saved(Image.fromarray(colors)),
        'rgba': _saved(Image.fromarray(alpha)),
        'grey and alpha': _saved(Image.fromarray(alpha).convert('LA')),
        'palette': _saved(palette, transparency=1),
        'bilevel': _saved(Image.fromarray(grey > 2)),
        'grey, 16 bits': _saved(Image.fromarray(grey.astype(np.uint16))),
        'rgb, 16 bits': png(_SIZE[1], _SIZE[0], 16, 2, rgb.astype('>u2') * 257),
        'turned': _saved(one, exif=exif),
        'animated': _saved(one, save_all=True, append_images=[Image.fromarray(rgb[::-1])]),
        'jpeg': _saved(one, 'JPEG'),
        'jpeg, grey': _saved(Image.fromarray(grey), 'JPEG'),
        'jpeg, progressive': _saved(one, 'JPEG', progressive=True),
        'jpeg, turned': _saved(one, 'JPEG', exif=exif),
        'jpeg, cmyk': _saved(cmyk, 'JPEG'),
        'gif': _saved(one, 'GIF'),
        'bmp': _saved(one, 'BMP'),
        'tiff': _saved(one, 'TIFF'),
    }
    made['jpeg, ycck'] = ycck(made['jpeg, cmyk'])
    return made


def png(width, height, depth, color, rows, extra=()) -> bytes:
    """A PNG file of these rows [height, ...], with chunks (kind, data) before the pixels.

    Nothing is checked: width and height may be any.
    """
    header = struct.pack('>IIBBBBB', width, height, depth, color, 0, 0, 0)
    data = b''.join(b'\0' + row.tobytes() for row in rows)
    chunks = [(b'IHDR', header), *extra, (b'IDAT', zlib.compress(data)), (b'IEND', b'')]
    return _PNG + b''.join(_chunk(*chunk) for chunk in chunks)


def ycck(cmyk: bytes) -> bytes:
    """A CMYK JPEG whose Adobe marker says that its first three channels are Y, Cb, Cr."""
    start = cmyk.index(b'Adobe')
    return cmyk[: start + 11] + b'\2' + cmyk[start + 12 :]


def damage_picture(rng, whole: dict[str, bytes]) -> bytes:
    """One to three kinds of damage to one of the files."""
    names = sorted(whole)
    data = whole[names[rng.integers(len(names))]]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        other = whole[names[rng.integers(len(names))]]
        data = _KINDS[rng.integers(len(_KINDS))](rng, data, other)
    return data


def weight_files(place: pathlib.Path) -> dict[str, bytes]:
    """{suffix: a small whole file of weights}; of torch's only where that is installed."""
    rng = np.random.default_rng(0)
    arrays = {f'layer{n}.weight': rng.normal(size=(3, 4)).astype(np.float32) for n in range(3)}
    np.savez(place / 'w.npz', **arrays)
    safetensors.numpy.save_file(arrays, place / 'w.safetensors')
    if importlib.util.find_spec('torch'):
        import torch

        tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
        torch.save(tensors, place / 'w.pth')
        torch.save(tensors, place / 'w.pt', _use_new_zipfile_serialization=False)
    return {path.suffix: path.read_bytes() for path in place.glob('w.*')}


def damage_file(rng, data: bytes) -> bytes:
    """One to three kinds of damage that any file can have."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = _PLAIN[rng.integers(len(_PLAIN))](rng, data, data)
    return data


def write_run(workdir: pathlib.Path) -> dict:
    """A run with the checkpoints 1 and 2 -> {step: its state}."""
    saved = {}
    with checkpoint.open(workdir, every=1) as checkpoints:
        for step in (1, 2):
            rng = np.random.default_rng(step)
            kernel = rng.normal(size=(3, 3, 8, 8)).astype(np.float32)
            saved[step] = {
                'params': {'stem': {'kernel': kernel, 'bias': np.ones(8, np.float32) * step}},
                'batch_stats': {'stem': {'mean': rng.normal(size=8).astype(np.float32)}},
            }
            checkpoints.save(step, saved[step], CONFIG)
    return saved


def shapes(state):
    """The shapes of a state, to restore it as numpy arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def equal(one, other) -> bool:
    """Are two states the same, bit for bit?"""
    same = jax.tree.map(lambda a, b: np.asarray(a).tobytes() == b.tobytes(), one, other)
    return all(jax.tree.leaves(same))


def damage_folder(rng, folder: pathlib.Path) -> None:
    """One or two kinds of damage to the files of a checkpoint, or one of them gone."""
    for _ in range(rng.integers(1, 3)):
        files = sorted(path for path in folder.rglob('*') if path.is_file())
        if not files:
            return
        path, other = (files[rng.integers(len(files))] for _ in range(2))
        if rng.random() < 0.15:
            path.unlink()
        else:
            change = _PLAIN[rng.integers(len(_PLAIN))]
            path.write_bytes(change(rng, path.read_bytes(), other.read_bytes()))


def _saved(image, kind='PNG', **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def _span(rng, data):
    """Two places in the data, in order, mostly not far from each other."""
    start = int(rng.integers(len(data) + 1))
    return start, min(len(data), start + int(rng.integers(1, 1 + rng.choice((4, 64, 1024)))))


def _flip(rng, data, _):
    changed = bytearray(data)
    for place in rng.integers(0, len(data), rng.integers(1, 17)) if data else ():
        changed[place] ^= 1 << rng.integers(8)
    return bytes(changed)


def _cut(rng, data, _):
    return data[: rng.integers(len(data) + 1)]


def _insert(rng, data, _):
    place = rng.integers(len(data) + 1)
    return data[:place] + rng.bytes(rng.integers(1, 65)) + data[place:]


def _drop(rng, data, _):
    start, stop = _span(rng, data)
    return data[:start] + data[stop:]


def _repeat(rng, data, _):
    start, stop = _span(rng, data)
    return data[:stop] + data[start:stop] * int(rng.integers(1, 9)) + data[stop:]


def _blank(rng, data, _):
    start, stop = _span(rng, data)
    return data[:start] + bytes([rng.choice((0, 255))]) * (stop - start) + data[stop:]


def _number(rng, data, _):
    """Some place overwritten by a number that a length or an offset might be."""
    packed = struct.pack(str(rng.choice(('>I', '<I', '>H', '<Q'))), _pick(rng, 2**16 - 1))
    place = int(rng.integers(len(data) + 1))
    return data[:place] + packed + data[place + len(packed) :]


def _splice(rng, data, other):
    return data[: rng.integers(len(data) + 1)] + other[rng.integers(len(other) + 1) :]


def _header(rng, data, _):
    """A field of the PNG's or JPEG's header, with a checksum that is right again."""
    if data[:8] == _PNG and len(data) > 33:
        fields = list(struct.unpack('>IIBBBBB', data[16:29]))
        which = int(rng.integers(7))
        fields[which] = _pick(rng, 2**32 - 1) if which < 2 else _pick(rng, 255)
        return _PNG + _chunk(b'IHDR', struct.pack('>IIBBBBB', *fields)) + data[33:]
    start = max(data.find(b'\xff\xc0'), data.find(b'\xff\xc2'))
    if start < 0 or len(data) < start + 10:
        return _number(rng, data, _)
    fields = list(struct.unpack('>BHHB', data[start + 4 : start + 10]))
    which = int(rng.integers(4))
    fields[which] = _pick(rng, 65535 if which in (1, 2) else 255)
    return data[: start + 4] + struct.pack('>BHHB', *fields) + data[start + 10 :]


def _inside(rng, data, _):
    """Bytes inside one chunk of a PNG, with a checksum that is right again."""
    chunks, place = [], 8
    while data[:8] == _PNG and place + 12 <= len(data):
        (length,) = struct.unpack('>I', data[place : place + 4])
        if place + 12 + length > len(data):
            break
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    if not chunks:
        return _flip(rng, data, _)
    which = int(rng.integers(len(chunks)))
    kind, content = chunks[which]
    chunks[which] = kind, _PLAIN[rng.integers(len(_PLAIN))](rng, content, content)
    return _PNG + b''.join(_chunk(*chunk) for chunk in chunks)


def _pick(rng, largest):
    known = [number for number in _NUMBERS if number <= largest]
    return int(known[rng.integers(len(known))])


_PLAIN = (_flip, _cut, _insert, _drop, _repeat, _blank, _number, _splice)
_KINDS = (*_PLAIN, _header, _header, _inside, _inside)
