"""Packed data sets: splits as ArrayRecord shards of decoded pixels, and the source that reads them.

    OUT/SPLIT.json                           the index: classes, colours, one entry per image
    OUT/SPLIT-00000-of-00002.array_record    one record per image: its pixels, then its label's

Pixels are uint8 as decoded, row by row, under zstd level 1: for CamVid 54 % of the raw bytes and
1.4 times those of PNG files, read in an eighth of the time that PNG takes to decode.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import pathlib
import shutil
import zlib
from collections.abc import Mapping

import numpy as np

from dsrl_jax.data import geometry
from dsrl_jax.data.images import MAX_PIXELS
from dsrl_jax.data.listings import check_link, plain, read_json
from dsrl_jax.data.sources import IGNORE
from dsrl_jax.errors import UserError

FORMAT = 'dsrl_jax packed split, version 1'
SHARD_BYTES = 2**28  # of pixels, before compression; a shard is also what packing holds in memory
_AGAIN = 'pack the data set again.'
_SHAPE_TOLERANCE = 0.01  # of height / width: room for rounding, none for stretched objects


@dataclasses.dataclass(frozen=True)
class Record:
    """What the index says of one image."""

    name: str
    height: int
    width: int
    labelled: bool
    crc32: int

    @property
    def bytes(self) -> int:
        return self.height * self.width * (4 if self.labelled else 3)


@dataclasses.dataclass(frozen=True)
class PackedSource:
    """A packed split; a record that is not what the index says raises UserError."""

    folder: pathlib.Path
    split: str
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    records: tuple[Record, ...]
    shards: tuple[tuple[str, int], ...]  # (file, number of records)
    problems: tuple[UserError, ...] = ()
    ignore: int = IGNORE

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def __len__(self) -> int:
        return len(self.records)

    def files(self, index: int) -> dict[str, pathlib.Path]:
        """No element has a file of its own."""
        return {}

    def image_size(self, index: int) -> tuple[int, int]:
        return self.records[index].height, self.records[index].width

    def element_name(self, index: int) -> str:
        return self.records[index].name

    def __getitem__(self, index: int) -> dict:
        index = int(index)
        record, path, data = self.records[index], *self._read(index)
        if len(data) != record.bytes or zlib.crc32(data) != record.crc32:
            raise _damaged(path, f'other pixels in the record of {record.name}')
        pixels, shape = np.frombuffer(data, np.uint8), (record.height, record.width)
        area = record.height * record.width
        element = {'image': pixels[: 3 * area].reshape(*shape, 3), 'name': record.name}
        if record.labelled:
            element['label'] = pixels[3 * area :].reshape(shape)
        return element

    def _read(self, index):
        """(path of the shard, bytes of the record)."""
        ends = np.cumsum([count for _, count in self.shards])
        number = int(np.searchsorted(ends, index, side='right'))
        file, count = self.shards[number]
        path = self.folder / file
        try:
            return path, _reader(str(path), count).read([index - int(ends[number]) + count])[0]
        except RuntimeError as error:
            raise _damaged(path, f'a damaged shard ({str(error).splitlines()[0]})') from None


def build(config, split: str) -> PackedSource:
    """The split below `config.root` as `write` left it; missing shards are in `problems`."""
    root = pathlib.Path(config.root).expanduser()
    if not root.is_dir():
        raise UserError(root, 'no such folder', 'a packed data set', 'check data.root.')
    path = root / f'{split}.json'
    if not path.is_file():
        known = ', '.join(sorted(file.stem for file in root.glob('*.json'))) or 'none'
        raise UserError(
            path, 'no such file', f'the index of a split (there are: {known})', 'pack that split.'
        )
    source, fault = _read_index(root, split, read_json(path, f'a {FORMAT}', _AGAIN))
    if fault:
        raise UserError(path, f'an index that cannot be used ({fault})', f'a {FORMAT}', _AGAIN)
    missing = [root / file for file, _ in source.shards if not (root / file).is_file()]
    problems = [UserError(p, 'no such file', f'a shard of {split}', 'restore it.') for p in missing]
    for file, _ in source.shards:
        if root / file not in missing:
            check_link(root / file, root, path)
    return dataclasses.replace(source, problems=tuple(problems))


def write(sources: Mapping, output, *, name: str, size=None, say=print) -> None:
    """Pack {split: source} of the data set `name` into the new folder `output`.

    `size` (height, width): every image is brought to it by the antialiased filter of the training
    views and its label by nearest; None keeps each as it is. The folder appears when all of it is
    written. UserError where something is there already, or for a size of another shape.
    """
    output = pathlib.Path(output)
    partial = output.with_name(f'{output.name}.partial')
    for path in (output, partial):
        if path.exists():
            raise UserError(
                path, 'something that exists', 'a new folder', 'remove it or rename yours.'
            )
    try:
        partial.mkdir(parents=True)
        for split, source in sources.items():
            _write_split(partial, split, source, name, size, say)
        partial.rename(output)
    except (OSError, RuntimeError) as error:
        found = str(error).splitlines()[0]
        raise UserError(output, found, 'a folder to write', 'choose --output.') from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read_index(root, split, index):
    """(source, what is wrong with the index or '')."""
    try:
        if index['format'] != FORMAT:
            raise ValueError(f'the format {index["format"]!r}')
        source = PackedSource(
            root,
            split,
            tuple(index['classes']),
            tuple(tuple(color) for color in index['colors']),
            tuple(Record(*record) for record in index['records']),
            tuple((file, count) for file, count in index['shards']),
        )
        names = [record.name for record in source.records] + [file for file, _ in source.shards]
        strange = [name for name in names if not plain(name)]  # results are written under names
        if strange:
            raise ValueError(f'the name {str(strange[0])[:60]!r}')
        for record in source.records:
            sides = record.height, record.width
            if any(type(side) is not int or side < 1 for side in sides):
                raise ValueError(f'sides {sides} of {record.name}')
            if record.height * record.width > MAX_PIXELS:
                raise ValueError(f'{record.height}x{record.width} pixels of {record.name}')
        counts = [count for _, count in source.shards]
        if any(type(count) is not int or count < 1 for count in counts):
            raise ValueError(f'shards of {counts} records')
        if len(source) != sum(counts):
            raise ValueError('shards that do not hold its records')
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return None, f'{type(error).__name__}: {str(error)[:200]}'
    return source, ''


def _write_split(folder, split, source, name, size, say):
    from array_record.python.array_record_module import ArrayRecordWriter

    element = functools.partial(_element, source, size=size)
    share = max(1, SHARD_BYTES // element(0)[0].bytes)
    starts = range(0, len(source), share)
    records, shards, stored = [], [], 0
    with concurrent.futures.ThreadPoolExecutor() as pool:  # decoders let go of Python's lock
        for number, start in enumerate(starts):
            path = folder / f'{split}-{number:05d}-of-{len(starts):05d}.array_record'
            stop = min(start + share, len(source))
            with contextlib.closing(ArrayRecordWriter(str(path), 'group_size:1,zstd:1')) as writer:
                for record, data in pool.map(element, range(start, stop)):
                    writer.write(data)
                    records.append(record)
            shards.append((path.name, stop - start))
            stored += path.stat().st_size
    index = {
        'format': FORMAT,
        'source': name,
        'split': split,
        'size': size,  # None: each image at its own
        'classes': list(source.classes),
        'colors': [list(map(int, color)) for color in source.colors],
        'shards': shards,
        'records': [dataclasses.astuple(record) for record in records],
    }
    (folder / f'{split}.json').write_text(json.dumps(index) + '\n', encoding='utf-8')
    pixels = sum(record.bytes for record in records)
    say(
        f'{split}: {len(records)} images, {pixels / 1e6:.1f} MB of pixels in {stored / 1e6:.1f} MB'
        f' and {len(shards)} shard{"" if len(shards) == 1 else "s"}'
    )


def _element(source, index, size):
    """(Record, bytes) of one image, resized where `size` says so."""
    element = source[index]
    image, label = element['image'], element.get('label')
    shape = image.shape[:2]
    if size and shape != tuple(size):
        if abs(shape[0] * size[1] / (shape[1] * size[0]) - 1) > _SHAPE_TOLERANCE:
            raise UserError(
                '--size',
                f'{size[0]}x{size[1]} for {element["name"]} of {shape[0]}x{shape[1]} (HxW)',
                'a size of the same shape',
                'choose such a size, or leave it out.',
            )
        given = np.zeros(shape, np.uint8) if label is None else label
        image, resized = geometry.scaled_crop(image, given, tuple(size), (0, 0, *size))
        label = None if label is None else resized
    data = image.tobytes() + (b'' if label is None else label.tobytes())
    height, width = image.shape[:2]
    return Record(element['name'], height, width, label is not None, zlib.crc32(data)), data


@functools.cache
def _reader(path, count):
    # One per process and shard: sources are pickled into workers, open files are not.
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(path, 'readahead_buffer_size:0')
    # A file that is gone, cut or of another kind opens without a word, as one of no records.
    if not pathlib.Path(path).is_file():
        raise UserError(path, 'no such file', 'a shard of a packed split', 'restore it.')
    if (found := reader.num_records()) != count:
        raise _damaged(path, f'{found} records for {count}')
    return reader


def _damaged(path, found):
    return UserError(path, found, 'the shard as it was packed', 'pack the data set again.')
