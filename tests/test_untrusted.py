"""Images, labels and lists from anywhere: the right result or one line, in bounded memory."""

import io
import json
import os
import pathlib
import struct
import subprocess
import sys
import zlib

import coco_files
import numpy as np
import pytest
from data_settings import config
from PIL import Image

from dsrl_jax import data
from dsrl_jax.data import camvid, folder, images, listings, pack, person_boxes
from dsrl_jax.data.sources import Pair, PairSource
from dsrl_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
ORIENTATION = 0x0112
# Where the stored rows' and columns' first one lies on the upright picture, by the EXIF standard.
FIRST = {
    **{1: ('top', 'left'), 2: ('top', 'right'), 3: ('bottom', 'right'), 4: ('bottom', 'left')},
    **{5: ('left', 'top'), 6: ('right', 'top'), 7: ('right', 'bottom'), 8: ('left', 'bottom')},
}


def refused(read, path, *named):
    with pytest.raises(UserError) as caught:
        read(path)
    line = str(caught.value)
    assert '\n' not in line and str(path) in line, line
    assert all(text in line for text in named), line


def png(width, height, depth=8, color=2, rows=(), extra=()):
    """A PNG of these rows, with chunks (kind, data) before the pixels; nothing is checked."""
    header = struct.pack('>IIBBBBB', width, height, depth, color, 0, 0, 0)
    pixels = zlib.compress(b''.join(b'\0' + row.tobytes() for row in rows))
    chunks = [(b'IHDR', header), *extra, (b'IDAT', pixels), (b'IEND', b'')]
    parts = [
        struct.pack('>I', len(d)) + k + d + struct.pack('>I', zlib.crc32(k + d)) for k, d in chunks
    ]
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


def saved(image, kind='PNG', **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(*shape, high=256):
    return np.random.default_rng(0).integers(0, high, shape, np.uint8)


def upright(stored, orientation):
    """[H, W, ...] as stored -> as seen, from the standard's words alone."""
    row, column = FIRST[orientation]
    if row in ('left', 'right'):
        stored = stored.swapaxes(0, 1)
        row, column = column, row
    stored = stored[::-1] if row == 'bottom' else stored
    return stored[:, ::-1] if column == 'right' else stored


@pytest.mark.parametrize('kind', ['PNG', 'JPEG'])
@pytest.mark.parametrize('orientation', FIRST)
def test_every_orientation_comes_upright_and_the_label_in_step(orientation, kind, tmp_path):
    """One bright block of 8x8 in the dark, where JPEG's own blocks are; the label marks it."""
    stored = np.zeros((24, 40, 3), np.uint8)
    stored[8:16, 0:8] = 250
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path, mark = tmp_path / 'a.png', tmp_path / 'label.png'
    path.write_bytes(saved(Image.fromarray(stored), kind, exif=exif))
    Image.fromarray(upright(stored[..., 0] > 125, orientation).astype(np.uint8)).save(mark)
    colors = ((0, 0, 0), (9, 9, 9))
    source = PairSource(
        (Pair('a', path, mark),), 'train', (), (), lambda p: folder.read_label(p, colors=colors)
    )
    element = source[0]
    np.testing.assert_array_equal(element['label'], element['image'][..., 0] > 125)
    assert images.upright_size(path) == element['image'].shape[:2]
    again = images.read_image(path, upright=False)
    np.testing.assert_array_equal(upright(again, orientation), element['image'])
    # A label that has a tag of its own was stored as its image was.
    mark.write_bytes(saved(Image.fromarray(stored[..., 0] // 250), exif=exif))
    np.testing.assert_array_equal(source[0]['label'], element['label'])


def test_sixteen_bits(tmp_path):
    path, deep = tmp_path / 'a.png', np.random.default_rng(1).integers(0, 65536, (5, 7, 3))
    path.write_bytes(png(7, 5, 16, 2, deep.astype('>u2')))
    np.testing.assert_array_equal(images.read_image(path), deep >> 8)
    refused(images.read_pixels, path, '16 bits a channel')
    path.write_bytes(png(7, 5, 16, 0, deep[..., 0].astype('>u2')))
    np.testing.assert_array_equal(images.read_pixels(path), deep[..., 0])
    refused(images.read_image, path, 'more than 8 bits', '8-bit RGB')


def test_alpha_is_dropped_and_what_lies_under_it_counts(tmp_path):
    path, rgba = tmp_path / 'a.png', noise(5, 7, 4)
    rgba[:, :4, 3] = 0
    path.write_bytes(saved(Image.fromarray(rgba)))
    np.testing.assert_array_equal(images.read_image(path), rgba[..., :3])
    np.testing.assert_array_equal(images.read_pixels(path), rgba[..., :3])
    path.write_bytes(png(7, 5, 8, 4, rgba[..., 2:]))
    np.testing.assert_array_equal(images.read_image(path), np.stack([rgba[..., 2]] * 3, -1))
    refused(images.read_pixels, path, 'mode LA', 'one channel')


@pytest.mark.parametrize('transparent', [False, True])
def test_a_palette_is_colours_of_an_image_and_indices_of_a_label(transparent, tmp_path):
    path, indices, colors = tmp_path / 'a.png', noise(5, 7, high=9), noise(9, 3)
    image = Image.fromarray(indices, 'L')
    image.putpalette(colors.ravel().tolist())
    path.write_bytes(saved(image, **({'transparency': 3} if transparent else {})))
    np.testing.assert_array_equal(images.read_image(path), colors[indices])
    np.testing.assert_array_equal(images.read_pixels(path), indices)


def test_cmyk_and_ycck_jpegs(tmp_path):
    """Constant pictures against the formulas: JPEG keeps those to a rounding."""
    ink, path = np.array([40.0, 90, 160, 30]), tmp_path / 'a.jpg'
    content = saved(Image.new('CMYK', (16, 16), tuple(ink.astype(int))), 'JPEG', quality=100)
    path.write_bytes(content)
    expected = (255 - ink[:3]) * (255 - ink[3]) / 255
    np.testing.assert_allclose(images.read_image(path)[4, 4], expected, atol=3)
    # The same samples, called Y, Cb, Cr, K: stored inverted, as Adobe does.
    place = content.index(b'Adobe') + 11
    path.write_bytes(content[:place] + b'\2' + content[place + 1 :])
    y, cb, cr = 255 - ink[0], 127 - ink[1], 127 - ink[2]
    inked = np.clip([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], 0, 255)
    expected = (255 - inked) * (255 - ink[3]) / 255
    np.testing.assert_allclose(images.read_image(path)[4, 4], expected, atol=3)


def test_a_bilevel_and_an_honest_wide_picture(tmp_path):
    path, bits = tmp_path / 'a.png', noise(5, 7, high=2)
    path.write_bytes(saved(Image.fromarray(bits > 0)))
    np.testing.assert_array_equal(images.read_image(path)[..., 1], 255 * bits)
    np.testing.assert_array_equal(images.read_pixels(path), bits)
    wide = np.tile(noise(1, 100, 3), (16, 1000, 1))
    path.write_bytes(png(100_000, 16, rows=wide))
    np.testing.assert_array_equal(images.read_image(path), wide)
    assert images.upright_size(path) == (16, 100_000)


def test_what_a_header_or_a_few_bytes_may_not_ask_for(tmp_path):
    path, small = tmp_path / 'a.png', noise(4, 4, 3)
    path.write_bytes(png(100_000, 100_000))
    for read in (images.read_image, images.read_pixels, images.upright_size):
        refused(read, path, '100000x100000', f'at most {images.MAX_PIXELS} pixels', 'tiles')
    path.write_bytes(
        png(4, 4, rows=small, extra=[(b'zTXt', b'a\0\0' + zlib.compress(bytes(2**27)))])
    )
    refused(images.read_image, path, 'too large')
    whole = png(4, 4, rows=small)
    place = whole.index(b'IDAT') - 4
    path.write_bytes(whole[:place] + b'\xff\xff\xff\xf0' + whole[place + 4 :])
    refused(images.read_image, path, 'a damaged file', 'bytes are missing')
    jpeg = saved(Image.fromarray(noise(16, 16, 3)), 'JPEG', progressive=True)
    scan = jpeg[jpeg.rindex(b'\xff\xda') : -2]
    path.write_bytes(jpeg[:-2] + scan * 200 + jpeg[-2:])
    refused(images.read_image, path, 'scans')


def test_files_that_are_no_single_picture(tmp_path):
    picture, path = Image.fromarray(noise(6, 6, 3)), tmp_path / 'a.png'
    other = Image.fromarray(noise(6, 6, 3)[::-1])
    cases = {
        b'': 'an empty file',
        b'<html>': 'no image',
        saved(picture, 'GIF'): 'a GIF file',
        b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n': 'a PostScript file',
        saved(picture, save_all=True, append_images=[other]): 'an animation of 2 pictures',
        saved(picture)[:60]: 'a damaged file',
    }
    for content, found in cases.items():
        path.write_bytes(content)
        refused(images.read_image, path, found)
    path.write_bytes(saved(picture, 'JPEG'))  # by another name: read all the same, but no label
    assert images.read_image(path).shape == (6, 6, 3)
    refused(images.read_pixels, path, 'a JPEG label')
    path.unlink()
    os.mkfifo(path)  # opened, it would wait for ever
    refused(images.read_image, path, 'no regular file')


AT_THE_LIMIT = """
import pathlib, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
from dsrl_jax.data import camvid, images
path = pathlib.Path(sys.argv[1])
assert images.read_image(path).size == 3 * images.MAX_PIXELS
assert (camvid.read_label(path) == 255).all()
"""


def test_the_largest_picture_fits_two_gibibytes(tmp_path):
    width = 2**17
    height = images.MAX_PIXELS // width
    row = np.zeros((width, 3), np.uint8)
    (tmp_path / 'a.png').write_bytes(png(width, height, rows=[row] * height))
    command = [sys.executable, '-c', AT_THE_LIMIT, str(tmp_path / 'a.png')]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-800:]


@pytest.mark.parametrize(
    'name', ['../a.png', '/a.png', 'b/../../a.png', '..\\a.png', 'C:/a.png', '']
)
def test_names_that_lead_elsewhere(name, tmp_path):
    assert not listings.plain(name) and listings.plain('b/a.png')
    root = coco_files.make(tmp_path)
    coco_files.edit(root, images=lambda known: [known[0] | {'file_name': name}, *known[1:]])
    (first, *_) = coco_files.build(root).problems
    assert 'file_name' in str(first) and 'a path inside' in str(first)


def test_links_that_lead_out_of_the_data(tmp_path):
    outside = tmp_path / 'outside.png'
    Image.fromarray(noise(64, 80, 3)).save(outside)
    root = coco_files.make(tmp_path)
    place = root / 'val2017' / '000000000001.png'
    place.unlink()
    place.symlink_to(outside)
    (problem,) = coco_files.build(root).problems
    assert 'a link out of it' in str(problem)
    listing = tmp_path / 'camvid' / 'train.txt'
    (listing.parent / 'train').mkdir(parents=True)
    (listing.parent / 'train' / 'a.png').symlink_to(outside)
    listing.write_text('train/a.png train/a.png\n')
    (problem,) = camvid.read_list(listing)[1]
    assert 'a link out of it' in str(problem) and f'{listing}:1' in str(problem)
    (listing.parent / 'train').rename(tmp_path / 'elsewhere')  # a linked folder is no escape
    (tmp_path / 'elsewhere' / 'a.png').unlink()
    outside.rename(tmp_path / 'elsewhere' / 'a.png')
    (listing.parent / 'train').symlink_to(tmp_path / 'elsewhere')
    assert not camvid.read_list(listing)[1]


def test_names_in_the_index_of_a_packed_set(tmp_path):
    whole = {
        'format': pack.FORMAT,
        'classes': ['road'],
        'colors': [[1, 2, 3]],
        'shards': [['a.array_record', 1]],
        'records': [['a', 4, 4, True, 0]],
    }
    path = tmp_path / 'train.json'
    path.write_text(json.dumps(whole))
    assert len(data.list_split(config(tmp_path, 'packed'), 'train')) == 1
    for change in (
        {'records': [['../../x', 4, 4, True, 0]]},
        {'shards': [['/etc/passwd', 1]]},
        {'shards': [['../a.array_record', 1]]},
        {'records': [['x', 2**20, 2**20, True, 0]]},
        {'records': [['x', -1, -5, True, 0]]},
        {'shards': 'abc'},
    ):
        path.write_text(json.dumps(whole | change))
        refused(lambda _: pack.build(config(tmp_path, 'packed'), 'train'), path, 'cannot be used')
    path.write_text(json.dumps(whole))
    (tmp_path / 'a.array_record').symlink_to(ROOT / 'README.md')
    refused(lambda _: pack.build(config(tmp_path, 'packed'), 'train'), path, 'a link out of it')


# What a field of an annotation may be when nobody meant well.
VALUES = (None, 'a', -1, 0, 10**400, 1e308, True, [], {}, ['a'], [[1]], {'a': 1}, float('nan'))


@pytest.mark.parametrize('part', ['images', 'annotations', 'detections'])
def test_no_value_of_an_annotation_is_a_traceback(part, tmp_path):
    """Every field of the first entry takes every value: a list of problems, or a sound source."""
    root = coco_files.make(tmp_path)
    path = root / 'annotations' / 'person_keypoints_val2017.json'
    whole = json.loads(path.read_text())
    sound, boxes = coco_files.build(root), root / 'boxes.json'
    entries = {**whole, 'detections': [coco_files.detection()]}[part]
    refusals = 0
    for field in entries[0]:
        for value in VALUES:
            changed = [entries[0] | {field: value}, *entries[1:]]
            if part == 'detections':
                boxes.write_text(json.dumps(changed))
                problems = person_boxes.list_boxes(sound, boxes)[1]
            else:
                path.write_text(json.dumps(whole | {part: changed}))
                problems = coco_files.build(root).problems
            refusals += bool(problems)
            assert all('\n' not in str(problem) for problem in problems)
    assert refusals > len(entries[0]) * len(VALUES) // 2


@pytest.mark.parametrize('content', [b'[' * 100_000, b'\xff\xfe\x00', b'{"images": 1}', b'3', b''])
def test_text_that_is_none(content, tmp_path):
    root = coco_files.make(tmp_path)
    path = root / 'annotations' / 'person_keypoints_val2017.json'
    path.write_bytes(content)
    refused(lambda _: coco_files.build(root), path, 'COCO annotations')
    for name in ('classes.json', 'classes.txt'):
        path = tmp_path / name
        path.write_bytes(content)
        refused(folder.read_classes, path)
    (tmp_path / 'train.txt').write_bytes(b'a\xff\xfe b\n')
    refused(camvid.read_list, tmp_path / 'train.txt', 'lines `image label`')


def test_files_by_the_hundred(tmp_path):
    """Pictures, weights and checkpoints, damaged at random; see launch/fuzz.py."""
    output, counts = tmp_path / 'fuzz.json', {'images': 500, 'weights': 200, 'checkpoints': 50}
    flags = [f'--{kind}={count}' for kind, count in counts.items()]
    command = [sys.executable, ROOT / 'launch' / 'fuzz.py', *flags]
    done = subprocess.run([*command, f'--output={output}'], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-800:]
    for kind, count in counts.items():
        found = json.loads(output.read_text())[kind]
        assert found['run'] == count and not found['failures']
        assert all(number > 0 for number in found['outcomes'].values())
