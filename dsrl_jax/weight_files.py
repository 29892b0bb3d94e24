"""Files of weights, which may come from anywhere: plain numbers are read, nothing is executed.

The sizes that a file declares are added up before any of them is allocated.
"""

import math
import pathlib
import tokenize
import zipfile
import zlib

import numpy as np

from dsrl_jax.errors import UserError, lookup

MAX_BYTES = 2**30  # of all arrays of a file, four times those of the largest network here
_NUMBERS = 'biuf'  # numpy's kinds: bool, integers, floats


def read_weights(path) -> dict:
    """{key: numpy array} of a .npz, .safetensors, .pth, .pth.tar or .pt file (torch reads those).

    Nothing in the file is executed.  A training checkpoint's `state_dict`, `model_state` or `model`
    is unwrapped.  UserError for a file that is damaged, holds anything but numbers under names,
    or more than MAX_BYTES of them.
    """
    path = pathlib.Path(path)
    suffix = '.pth' if path.name.endswith('.pth.tar') else path.suffix
    read = lookup(_READERS, suffix, f'file type of {path}')
    if not path.is_file():
        raise UserError(path, 'no such file', 'a file of weights', 'check the path.')
    _check_bytes(path, path.stat().st_size)
    weights = read(path)
    for key, array in weights.items():
        if array.dtype.kind not in _NUMBERS and array.dtype.name != 'bfloat16':
            found = f'{_short(key)} of type {array.dtype}'
            raise UserError(path, found, 'arrays of real numbers', 'leave it out of the file.')
    return weights


def _read_npz(path):
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_bytes(path, sum(member.file_size for member in members))
            return {m.filename.removesuffix('.npy'): _read_npy(archive, m) for m in members}
    except (
        *(zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, LookupError),
        *(NotImplementedError, RuntimeError),  # methods of packing zipfile lacks; a password
        *(SyntaxError, TypeError, tokenize.TokenError),  # numpy on a header that is no literal
    ) as problem:
        raise _unreadable(path, problem) from problem


def _read_npy(archive, member):
    """One array; its header may not promise more than the archive says is there."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError('Object arrays cannot be loaded: they would be unpickled')
        promised = math.prod(shape) * dtype.itemsize + file.tell()
        if promised != member.file_size:
            raise ValueError(f'{member.filename[:60]} promises {promised} bytes')
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_safetensors(path):
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:  # the library checks every offset against the file
        return load_file(path)
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as problem:
        raise _unreadable(path, problem) from problem


def _read_torch(path):
    try:
        import torch
    except ImportError as problem:
        raise UserError(
            path,
            'a torch file but no torch',
            'PyTorch installed, or weights as .npz or .safetensors',
            "run pip install 'dsrl-jax[torch]'.",
        ) from problem
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                _check_bytes(path, sum(member.file_size for member in archive.infolist()))
        weights = torch.load(path, map_location='cpu', weights_only=True)
    except UserError:
        raise
    except Exception as problem:  # its unpickler runs any opcodes on any values: every kind occurs
        raise _unreadable(path, problem) from problem
    for wrapper in ('state_dict', 'model_state', 'model'):
        if isinstance(weights, dict) and isinstance(weights.get(wrapper), dict):
            weights = weights[wrapper]
    if not isinstance(weights, dict):
        expected = 'a dict of tensors, or a checkpoint that holds one'
        raise UserError(path, f'a {type(weights).__name__}', expected, 'save its state_dict.')
    tensors = {k: v for k, v in weights.items() if isinstance(v, torch.Tensor)}
    for key, value in tensors.items():
        plain = value.layout == torch.strided and value.device.type == 'cpu'
        if not isinstance(key, str) or not plain or value.is_quantized or value.is_complex():
            found = f'{_short(key)}, a {value.layout} {value.dtype} on {value.device}'
            raise UserError(path, found, 'dense tensors of numbers under names', _AGAIN)
    # A view may be larger than what is stored for it, and float() would write it out.
    _check_bytes(path, sum(4 * value.numel() for value in tensors.values()))
    try:
        return {
            key: (value.detach().float() if value.is_floating_point() else value).numpy()
            for key, value in tensors.items()
        }
    except (TypeError, RuntimeError) as problem:  # types that numpy lacks
        raise _unreadable(path, problem) from problem


_READERS = {
    '.npz': _read_npz,
    '.safetensors': _read_safetensors,
    '.pth': _read_torch,
    '.pt': _read_torch,
}
_AGAIN = 'fetch or export it again.'


def _check_bytes(path, declared):
    if declared > MAX_BYTES:
        remedy = 'leave out all but the weights (optimizer, other copies).'
        raise UserError(path, f'{declared} bytes of arrays', f'at most {MAX_BYTES}', remedy)


def _unreadable(path, problem):
    found = f'an unreadable file ({type(problem).__name__}: {str(problem)[:120]})'
    return UserError(path, found, f'a complete {path.suffix} file of plain arrays', _AGAIN)


def _short(value):
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + '...'
