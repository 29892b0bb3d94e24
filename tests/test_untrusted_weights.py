"""Weight files and saved models from anywhere: plain numbers or one line, and no code is run."""

import json
import struct
import zipfile

import numpy as np
import pytest

from dsrl_jax import inference, weight_files
from dsrl_jax.errors import UserError

WHOLE = {'a.weight': np.arange(6, dtype=np.float32).reshape(2, 3), 'a.bias': np.ones(2, 'f')}


class Code:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.path),)


def refused(path, *named):
    with pytest.raises(UserError) as caught:
        weight_files.read_weights(path)
    line = str(caught.value)
    assert '\n' not in line and str(path) in line, line
    assert all(text in line for text in named), line


def safetensors(path, entries, data=b'', length=None):
    """A file of this header; `length` in place of its own."""
    header = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    length = len(header) if length is None else length
    path.write_bytes(struct.pack('<Q', length) + header + data)


def entry(start, stop, shape, kind='F32'):
    return {'dtype': kind, 'shape': shape, 'data_offsets': [start, stop]}


def test_safetensors_whose_headers_lie(tmp_path):
    path = tmp_path / 'w.safetensors'
    safetensors(path, {'a': entry(0, 8, [2])}, bytes(8))
    assert weight_files.read_weights(path)['a'].shape == (2,)
    for length in (2**63, 2**64 - 1, 10**8 + 1, 0, 3):
        safetensors(path, {'a': entry(0, 8, [2])}, bytes(8), length)
        refused(path, 'an unreadable file')
    for entries in (
        {'a': entry(0, 8, [2]), 'b': entry(4, 12, [2])},  # one over the other
        {'a': entry(0, 8, [2]), 'b': entry(12, 20, [2])},  # beyond the end
        {'a': entry(8, 0, [2])},
        {'a': entry(0, 8, [2**40])},
        {'a': entry(0, 8, [2**32, 2**32])},
        {'a': entry(0, 8, [-2])},
        {'a': entry(0, 8, [2], 'PY')},
        {'a': 3},
        [],
        b'{"a": ' * 50_000,
        b'\xff\xfe',
    ):
        safetensors(path, entries, bytes(12))
        refused(path, 'an unreadable file')


def test_archives_that_hold_objects_lies_and_bombs(tmp_path, monkeypatch):
    path, made = tmp_path / 'w.npz', tmp_path / 'made'
    np.savez(path, a=np.array([Code(made)], dtype=object))
    refused(path, 'would be unpickled')
    assert not made.exists()
    for name, content in (('x', np.array(['text'])), ('y', np.zeros(3, 'c8'))):
        np.savez(path, **{name: content})
        refused(path, name, 'real numbers')
    with zipfile.ZipFile(path, 'w') as archive:  # 4 TB promised in a hundred bytes
        header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }\n"
        size = struct.pack('<H', len(header))
        archive.writestr('a.npy', b'\x93NUMPY\x01\x00' + size + header.encode())
    refused(path, 'a.npy promises')
    np.savez(path, **WHOLE)
    whole = path.read_bytes()
    place = whole.rindex(b'PK\x01\x02') + 24  # where the archive says how large the last one is
    path.write_bytes(whole[:place] + struct.pack('<I', 2**31) + whole[place + 4 :])
    refused(path, 'bytes of arrays', f'at most {weight_files.MAX_BYTES}')
    for text in (b'\x93NUMPY\x01\x00\xff\xff' + b'(' * 65535, b'\x93NUMPY\x09\x00', b'', b'{}'):
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('a.npy', text)
        refused(path, 'an unreadable file')
    with zipfile.ZipFile(path, 'w') as archive:  # nothing is unpacked, so a name leads nowhere
        archive.writestr('../../a.npy', whole[:10])
    refused(path, 'an unreadable file')
    monkeypatch.setattr(weight_files, 'MAX_BYTES', 10**6)
    np.savez_compressed(path, a=np.zeros(10**6, np.float32))
    assert path.stat().st_size < 10**4
    refused(path, 'bytes of arrays', 'at most 1000000')


def test_torch_files_that_hold_code_or_more_than_they_store(tmp_path):
    torch = pytest.importorskip('torch')
    path, made = tmp_path / 'w.pth', tmp_path / 'made'
    for zipped in (True, False):
        torch.save({'a': Code(made)}, path, _use_new_zipfile_serialization=zipped)
        refused(path, 'an unreadable file')
        torch.save({'a': torch.zeros(1).expand(2**40)}, path, _use_new_zipfile_serialization=zipped)
        refused(path, 'bytes of arrays')
    assert not made.exists()
    for content, found in (
        ([1, 2], 'a list'),
        ({3: torch.ones(2)}, '3'),
        ({'a': torch.eye(3).to_sparse()}, 'sparse'),
        ({'a': torch.zeros(2, dtype=torch.complex64)}, 'complex'),
        (torch.ones(2), 'a Tensor'),
    ):
        torch.save(content, path)
        refused(path, found)
    torch.save({'a': torch.arange(4.0).reshape(2, 2).t()}, path)  # not in order: read right
    np.testing.assert_array_equal(weight_files.read_weights(path)['a'], [[0, 2], [1, 3]])
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name in ('data.pkl', 'version', 'data/0'):
            archive.writestr(f'archive/{name}', b'\0' * 9)
    refused(path, 'an unreadable file')


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        ({'classes': []}, 'classes'),
        ({'classes': 'road'}, 'classes'),
        ({'classes': [1]}, 'classes'),
        ({'colors': [[1, 2]]}, 'colors'),
        ({'colors': [[1, 2, 300]]}, 'colors'),
        ({'colors': None}, 'colors'),
        ({'config': []}, 'config'),
        ({'folded': 'no'}, 'folded'),
    ],
)
def test_the_card_of_a_model(change, named, tmp_path):
    whole = {'config': {}, 'classes': ['road'], 'colors': [[1, 2, 3]], 'folded': False}
    path = tmp_path / 'config.json'
    path.write_text(json.dumps(whole))
    assert inference.read_card(tmp_path) == whole
    path.write_text(json.dumps(whole | change))
    with pytest.raises(UserError, match=f'config.json: found unsound {named}'):
        inference.read_card(tmp_path)
    path.write_text('[' * 100_000)
    with pytest.raises(UserError, match=r'config\.json: found'):
        inference.read_card(tmp_path)
