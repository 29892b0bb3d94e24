"""One image file as an array: which files are read, and what becomes of each kind.

A file is PNG or JPEG by its first bytes, whatever its name says. Nothing else is tried: Pillow
knows some forty formats, and one of them runs a program on the file.

    8-bit grey, palette, 1-bit     images become RGB; labels keep their values (palette: indices)
    alpha                          dropped; the colours under it count as they are stored
    CMYK and YCCK JPEG             images become RGB by Pillow's plain formula, without a profile
    16 bits, colour                images: the high byte of each channel; labels: refused
    16 bits, grey                  labels: the values; images: refused, their range is unknown
    animated PNG, JPEG as label    refused
    EXIF orientation               turned upright, labels by their own tag too
"""

import mmap
import os
import pathlib
import stat
import struct
import zlib

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from dsrl_jax.errors import UserError

MAX_PIXELS = 2**26  # 8192x8192: decoding takes up to 16 bytes a pixel
MAX_SCANS = 100  # of a progressive JPEG: each is a pass over all pixels, a few bytes ask for one

_ORIENTATION = 0x0112  # the EXIF tag
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_READERS = {b'\x89PNG\r\n\x1a\n': PngImageFile, b'\xff\xd8\xff': JpegImageFile}
_OTHERS = {
    b'GIF8': 'GIF',
    b'BM': 'BMP',
    b'II*\0': 'TIFF',
    b'MM\0*': 'TIFF',
    b'RIFF': 'WebP',
    b'%!PS': 'PostScript',
    b'8BPS': 'Photoshop',
    b'\0\0\0\x0cjP': 'JPEG 2000',
}
# What Pillow's readers of the two formats raise at bytes they did not expect.
_DAMAGE = OSError, SyntaxError, ValueError, EOFError, LookupError, struct.error, zlib.error


def read_image(path, *, upright: bool = True) -> np.ndarray:
    """An image file as uint8 RGB [H, W, 3], as the table above says.

    The pixels are turned upright as the EXIF orientation says, as viewers and labelling tools do;
    `upright=False` leaves them as stored. UserError for any other file.
    """
    with _open(path) as image:
        turn = _TURNS.get(_orientation(image, path)) if upright else None
        _load(image, path)
        if image.mode.startswith('I') or image.mode == 'F':
            raise UserError(
                path,
                f'an image of mode {image.mode} (more than 8 bits)',
                '8 bits per channel',
                'convert the image to 8-bit RGB.',
            )
        picture = image if image.mode == 'RGB' else image.convert('RGB')
        return np.array(picture if turn is None else picture.transpose(turn))


def read_pixels(path) -> np.ndarray:
    """A label file as stored: integers [H, W] for grey, palette (its indices), 16-bit and 1-bit
    files, uint8 [H, W, 3] for colour files. UserError for any other."""
    with _open(path) as image:
        deep = any('16' in str(tile[3]) for tile in image.tile) and image.mode[0] != 'I'
        turn = _TURNS.get(_orientation(image, path))
        if isinstance(image, JpegImageFile):
            remedy = 'write the label as PNG again from its source: JPEG changes class indices.'
            raise UserError(path, 'a JPEG label', 'a PNG', remedy)
        _load(image, path)
        if deep or image.mode not in ('L', 'P', '1', 'I', 'I;16', 'RGB', 'RGBA'):
            raise UserError(
                path,
                f'a label of mode {image.mode}' + ' with 16 bits a channel' * deep,
                'a PNG with one channel of class indices',
                'save the class indices as 8-bit greyscale PNG.',
            )
        picture = image.convert('RGB') if image.mode == 'RGBA' else image
        pixels = np.array(picture if turn is None else picture.transpose(turn))
        return pixels.astype(np.uint8) if pixels.dtype == bool else pixels


def upright_size(path) -> tuple[int, int]:
    """(height, width) of an image file as `read_image` gives it, from its header alone."""
    with _open(path) as image:
        width, height = image.size
        return (width, height) if _orientation(image, path) in _SIDEWAYS else (height, width)


def orientation(path) -> int:
    """EXIF orientation of an image file, 1 (upright) to 8."""
    with _open(path) as image:
        return _orientation(image, path)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, its kind where it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]


def _open(path):
    """The file's header read, its pixels not yet; checked for what a header may ask for."""
    path = pathlib.Path(path)
    expected, remedy = 'a PNG or JPEG image', 'restore or remove the file.'
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
            raise UserError(path, 'no regular file', expected, remedy)
        with path.open('rb') as file:
            start = file.read(12)
        reader = next((r for magic, r in _READERS.items() if start.startswith(magic)), None)
        if reader is None:
            raise UserError(path, _kind(start), expected, remedy)
        image = reader(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(path, 'no such file', expected, 'check the path.') from None
    except _DAMAGE as error:
        found = f'no image that can be read ({first_line(error)})'
        raise UserError(path, found, expected, remedy) from None
    try:
        _check_header(image, path)
    except UserError:
        image.close()
        raise
    return image


def _kind(start: bytes) -> str:
    """What a file is that begins with these bytes, neither PNG nor JPEG."""
    if not start:
        return 'an empty file'
    known = next((name for magic, name in _OTHERS.items() if start.startswith(magic)), None)
    return f'a {known} file' if known else 'no image (its first bytes are of no known format)'


def _check_header(image, path):
    """UserError where decoding would cost too much, or it is not clear what to decode."""
    width, height = image.size
    if not width or not height:
        raise UserError(path, f'{height}x{width} pixels', 'at least one', 'restore the file.')
    if width * height > MAX_PIXELS:
        raise UserError(
            path,
            f'an image with too many pixels ({height}x{width}; a decompression bomb?)',
            f'at most {MAX_PIXELS} pixels',
            'shrink the image or cut it into tiles.',
        )
    if isinstance(image, PngImageFile) and image.is_animated:
        found, remedy = f'an animation of {image.n_frames} pictures', 'save the one you mean.'
        raise UserError(path, found, 'one picture', remedy)
    if image.info.get('progressive') and (scans := _scans(path)) > MAX_SCANS:
        found = f'a progressive JPEG of {scans} scans (made to take long?)'
        raise UserError(path, found, f'at most {MAX_SCANS} scans', 'save the image again.')


def _scans(path) -> int:
    """How many scans a JPEG file has: in coded pixels the two bytes of the marker never meet."""
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        count, place = 0, data.find(b'\xff\xda')
        while place >= 0 and count <= MAX_SCANS:
            count, place = count + 1, data.find(b'\xff\xda', place + 2)
        return count


def _orientation(image, path) -> int:
    """EXIF orientation of an image that was opened and not loaded; 1: upright.

    Pillow's own method for PNG reads all pixels first, for what may stand behind them: slow, and
    an error where the file is cut. What stands there does not count here.
    """
    try:
        value = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except _DAMAGE as error:
        found = f'damaged EXIF data ({first_line(error)})'
        remedy = 'restore the file, or take its EXIF data out.'
        raise UserError(path, found, 'EXIF data that can be read, or none', remedy) from None
    return value if value in _TURNS else 1


def _load(image, path):
    if isinstance(image, PngImageFile):
        _check_chunks(path)
    try:
        image.load()
    except _DAMAGE as error:
        raise UserError(
            path,
            f'a damaged file ({first_line(error)})',
            'a complete PNG or JPEG image',
            'restore the file from its source.',
        ) from None


def _check_chunks(path):
    """UserError where a chunk of a PNG is longer than the file: Pillow would ask for its memory."""
    with open(path, 'rb') as file:
        size, place, kind = os.fstat(file.fileno()).st_size, 8, b''
        while place < size and kind != b'IEND':
            file.seek(place)
            head = file.read(8)
            length, kind = int.from_bytes(head[:4], 'big'), head[4:]
            place += 12 + length
    if place > size:
        raise UserError(
            path,
            f'a damaged file ({place - size} bytes are missing at its end)',
            'a complete PNG or JPEG image',
            'restore the file from its source.',
        )
