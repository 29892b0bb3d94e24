"""Data sets of TensorFlow Datasets (TFDS): any source written as one, and the source that reads it.

    OUT/dsrl_segmentation/1.0.0/{dataset_info,features,metadata}.json
    OUT/dsrl_segmentation/1.0.0/dsrl_segmentation-SPLIT.array_record-00000-of-00002

Nothing here needs TensorFlow. Whoever has TFDS reads such a folder without this package:

    tfds.data_source('dsrl_segmentation', data_dir=OUT, split='train', download=False)[0]

gives 'image' uint8 [H, W, 3], 'label' uint8 [H, W, 1] of class indices (255: ignored), 'labelled'
(False: the label is void because there is none) and 'name'. The file metadata.json has the
classes, their colours, and the name and size of every image. Pixels are PNG files, lossless.
"""

import contextlib
import dataclasses
import functools
import io
import pathlib
import shutil
from collections.abc import Mapping

import numpy as np
from PIL import Image

from dsrl_jax.data.images import MAX_PIXELS
from dsrl_jax.data.listings import plain
from dsrl_jax.data.sources import IGNORE, element_name, image_size
from dsrl_jax.errors import UserError

NAME, VERSION = 'dsrl_segmentation', '1.0.0'  # a name that no builder of TFDS has
SHARD = f'{NAME}/{VERSION}/{NAME}-{{}}.array_record-00000-of-*'  # of a split
_MADE_BY = 'a folder that `dsrl data tfds` wrote'


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """A split of such a data set; a record that cannot be read raises UserError."""

    root: pathlib.Path
    split: str
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    records: tuple[tuple[str, int, int], ...]  # (name, height, width)
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
        return self.records[index][1:]

    def element_name(self, index: int) -> str:
        return self.records[index][0]

    def __getitem__(self, index: int) -> dict:
        name, *size = self.records[index]
        try:
            record = _opened(str(self.root), self.split)[int(index)]
            image, label = (_decoded(record[key], size) for key in ('image', 'label'))
        except Exception as error:  # TFDS, ArrayRecord, protobuf and PNG each have their own
            reason = (str(error) or type(error).__name__).splitlines()[0]
            found = f'a record of {name} that cannot be read ({reason})'
            raise _damaged(self.root, self.split, found) from None
        shapes = image.shape == (*size, 3) and label.shape == tuple(size)
        if not shapes or record['name'].decode() != name:
            found = f'another record than that of {name}'
            raise _damaged(self.root, self.split, found)
        element = {'image': image, 'name': name}
        return element | {'label': label} if record['labelled'] else element


def build(config, split: str) -> TfdsSource:
    """The split below `config.root` as `write` left it; missing shards are in `problems`."""
    import tensorflow_datasets

    root = pathlib.Path(config.root).expanduser()
    folder = root / NAME / VERSION
    if not (folder / 'dataset_info.json').is_file():
        raise UserError(
            folder / 'dataset_info.json', 'no such file', _MADE_BY, 'correct data.root or write it.'
        )
    try:
        info = tensorflow_datasets.builder_from_directory(folder).info
        known, metadata = sorted(info.splits), info.metadata
        classes, colors = tuple(metadata['classes']), metadata['colors']
        records = metadata['records'].get(split, ())
        for name, height, width in records:
            if not plain(name) or not 0 < height * width <= MAX_PIXELS:
                raise ValueError(f'an image {name!r} of {height}x{width}')
    except Exception as error:
        found = f'a description that cannot be used ({type(error).__name__}: {error})'
        found = found.splitlines()[0]
        raise UserError(folder, found, _MADE_BY, 'write the data set again.') from None
    if split not in known:
        found, expected = f'no split {split!r}', f'one of {", ".join(known)}'
        raise UserError(folder, found, expected, 'write that split too.')
    shards = [pathlib.Path(path) for path in info.splits[split].filepaths]
    missing = [path for path in shards if not path.is_file()]
    problems = [UserError(p, 'no such file', f'a shard of {split}', 'restore it.') for p in missing]
    return TfdsSource(
        root,
        split,
        classes,
        tuple(tuple(color) for color in colors),
        tuple((name, height, width) for name, height, width in records),
        tuple(problems),
    )


def write(sources: Mapping, output, *, source_name: str, say=print) -> None:
    """Write {split: source} of the data set `source_name` into the new folder `output`.

    Elements keep their order and pixels. The folder appears when all of it is written. UserError
    where something is there already.
    """
    import tensorflow_datasets

    output = pathlib.Path(output).expanduser()
    partial = output.with_name(f'{output.name}.partial')
    for path in (output, partial):
        if path.exists():
            remedy = 'remove it or rename yours.'
            raise UserError(path, 'something that exists', 'a new folder', remedy)
    tensorflow_datasets.disable_progress_bar()
    try:
        partial.mkdir(parents=True)
        builder = _builder(sources, source_name)(data_dir=partial, file_format='array_record')
        with contextlib.redirect_stdout(io.StringIO()):  # it tells of downloads; there are none
            builder.download_and_prepare()
        partial.rename(output)
    except (OSError, RuntimeError) as error:
        found = str(error).splitlines()[0]
        raise UserError(output, found, 'a folder to write', 'choose --output.') from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for split, info in builder.info.splits.items():
        shards = f'{info.num_shards} shard{"" if info.num_shards == 1 else "s"}'
        say(f'{split}: {info.num_examples} images, {info.num_bytes / 1e6:.1f} MB in {shards}')


def _builder(sources, source_name):
    """The builder class of these sources; inside a function because TFDS is imported late."""
    import tensorflow_datasets as tfds

    class DsrlSegmentation(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = NAME
        VERSION = tfds.core.Version(VERSION)

        def _info(self):
            features = {
                'image': tfds.features.Image(shape=(None, None, 3), encoding_format='png'),
                'label': tfds.features.Image(shape=(None, None, 1), encoding_format='png'),
                'labelled': np.bool_,
                'name': tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                description=f'{source_name}: images and maps of class indices.',
                features=tfds.features.FeaturesDict(features),
                metadata=tfds.core.MetadataDict(_metadata(sources, source_name)),
                disable_shuffling=True,  # element i of the split is element i of the source
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(source) for split, source in sources.items()}

        def _generate_examples(self, source):
            for index in range(len(source)):
                yield index, _example(source[index])

    return DsrlSegmentation


def _metadata(sources, source_name):
    first = next(iter(sources.values()))
    records = {
        split: [[element_name(s, i), *map(int, image_size(s, i))] for i in range(len(s))]
        for split, s in sources.items()
    }
    return {
        'source': source_name,
        'classes': list(first.classes),
        'colors': [list(map(int, color)) for color in first.colors],
        'records': records,
    }


def _example(element):
    image, label = element['image'], element.get('label')
    return {
        'image': _encoded(image),
        'label': _encoded(np.full(image.shape[:2], IGNORE, np.uint8) if label is None else label),
        'labelled': label is not None,
        'name': element['name'],
    }


def _encoded(pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, 'PNG', compress_level=1)
    return buffer.getvalue()


def _decoded(png: bytes, size) -> np.ndarray:
    image = Image.open(io.BytesIO(png), formats=('PNG',))
    if list(image.size[::-1]) != list(size):  # asked before a pixel is decoded
        raise ValueError(f'{image.height}x{image.width} pixels')
    return np.array(image)


@functools.cache
def _opened(root, split):
    # One per process: sources are pickled into workers, open files are not. PNG files are decoded
    # here: TFDS would choose another decoder wherever another library happens to be installed.
    import tensorflow_datasets as tfds

    skip = tfds.decode.SkipDecoding()
    return tfds.data_source(
        NAME,
        data_dir=root,
        split=split,
        decoders={'image': skip, 'label': skip},
        download=False,
    )


def _damaged(root, split, found):
    expected = f'the split {split} as it was written'
    return UserError(root / NAME / VERSION, found, expected, 'write the data set again.')
