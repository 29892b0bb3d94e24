"""Damaged image, label, weight and checkpoint files by the thousand: read right, or one line.

    python launch/fuzz.py [--images=10000] [--weights=1000] [--checkpoints=1000] [--seed=0] \\
        [--output=FILE]

Every case is made from (seed, number) alone; only the files of a checkpoint get random names when
they are written, so what a case does to one changes from run to run. Cases run in a process of
their own, which is started again behind a case that ends it. A failure is a case that ends in
anything but a right result or one line of UserError, that takes longer than SECONDS, or that takes
the process beyond MEMORY.
Prints one JSON object; the exit code is 1 where anything failed.
"""

import argparse
import collections
import faulthandler
import importlib.metadata
import json
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback

import damage
import numpy as np

from dsrl_jax import checkpoint, pretrained
from dsrl_jax.data import camvid, cityscapes, folder, images
from dsrl_jax.data.sources import Pair, PairSource
from dsrl_jax.errors import UserError

SECONDS = 60  # for one case; they take milliseconds, but a machine may be busy
MEMORY = 2**31  # bytes of a process
_COLORS = tuple((index, 40, 80) for index in range(5))


def main() -> int:
    """Run the cases of every kind and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--images', type=int, default=10000, help='image and label files')
    parser.add_argument('--weights', type=int, default=1000, help='.npz, .safetensors, .pth')
    parser.add_argument('--checkpoints', type=int, default=1000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--output', help='file for the result; it is printed too')
    parser.add_argument('--cases', help='run KIND:START:STOP here (how the command calls itself)')
    args = parser.parse_args()
    if args.cases:
        kind, start, stop = args.cases.split(':')
        return _run_cases(kind, args.seed, int(start), int(stop))
    packages = ('pillow', 'numpy', 'jax', 'orbax-checkpoint')
    versions = {name: importlib.metadata.version(name) for name in packages}
    limits = {'seconds a case': SECONDS, 'bytes': MEMORY}
    result = {'seed': args.seed, 'limits': limits, 'versions': versions}
    for kind in CASES:
        result[kind] = watch(kind, args.seed, getattr(args, kind))
    text = json.dumps(result, indent=1)
    print(text)
    if args.output:
        pathlib.Path(args.output).write_text(text + '\n', encoding='utf-8')
    return int(any(result[kind]['failures'] for kind in CASES))


def watch(kind: str, seed: int, count: int) -> dict:
    """Run cases 0 to `count` of a kind in processes of their own; what became of them."""
    outcomes, failures, peak = collections.Counter(), [], 0
    started, start = time.monotonic(), 0
    while start < count:
        command = [sys.executable, __file__, f'--seed={seed}', f'--cases={kind}:{start}:{count}']
        with tempfile.TemporaryFile('w+', errors='replace') as said:
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)
            for line in child.stdout:
                record = json.loads(line)
                if 'peak' in record:
                    peak = max(peak, record['peak'])
                    continue
                start = record['case'] + 1
                outcomes.update(record['outcomes'])
                if record['failure']:
                    failures.append({'case': record['case'], 'found': record['failure']})
            code = child.wait()
            said.seek(0)
            noise = said.read()
        if start < count:  # it ended inside the case after the last one it told of
            failures.append({'case': start, 'found': f'exit code {code}: {noise[-800:]}'})
            start += 1
        elif 'Traceback' in noise:
            place = noise.index('Traceback')
            found = noise[max(0, place - 300) : place + 500]
            failures.append({'case': None, 'found': f'on stderr: {found}'})
    if peak > MEMORY:
        failures.append({'case': None, 'found': f'{peak} bytes of memory'})
    return {
        'run': count,
        'outcomes': dict(sorted(outcomes.items())),
        'failures': failures,
        'seconds': round(time.monotonic() - started, 1),
        'peak_bytes': peak,
    }


def _run_cases(kind, seed, start, stop):
    """The cases of this process: one line of JSON each, and at last its memory."""
    with tempfile.TemporaryDirectory() as place:
        case = CASES[kind](pathlib.Path(place))
        for number in range(start, stop):
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            rng = np.random.default_rng([seed, len(kind), number])
            try:
                outcomes, failure = case(rng), None
            except Exception:  # what is looked for: an error of any kind that is no UserError
                outcomes, failure = [], traceback.format_exc()[-800:]
            record = {'case': number, 'outcomes': outcomes, 'failure': failure}
            print(json.dumps(record), flush=True)
        faulthandler.cancel_dump_traceback_later()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({'peak': peak * (1 if sys.platform == 'darwin' else 1024)}))
    return 0


def image_cases(place: pathlib.Path):
    """The function rng -> outcomes that damages one picture and has every reader try it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    whole = damage.pictures()
    sound = {'image': place / 'sound.png', 'label': place / 'sound_label.png'}
    sound['image'].write_bytes(whole['rgb'])
    sound['label'].write_bytes(whole['grey'])

    def folder_label(path):
        return folder.read_label(path, colors=_COLORS)

    readers = {
        'image': images.read_image,
        'image as stored': lambda path: images.read_image(path, upright=False),
        'camvid label': camvid.read_label,
        'cityscapes label': cityscapes.read_label,
        'folder label': folder_label,
        'image of a pair': lambda path: _pair(path, sound['label'], folder_label),
        'label of a pair': lambda path: _pair(sound['image'], path, folder_label),
    }

    def case(rng):
        names = ('a.png', 'a.jpg', 'a_gtFine_labelIds.png', 'a_gtFine_labelTrainIds.png')
        path = place / str(rng.choice(names))
        path.write_bytes(damage.damage_picture(rng, whole))
        outcomes = [f'{name}: {_read(read, path)}' for name, read in readers.items()]
        path.unlink()
        return outcomes

    return case


def _pair(image, label, read_label):
    element = PairSource((Pair('a', image, label),), 'train', (), (), read_label)[0]
    assert element['label'].shape == element['image'].shape[:2]
    return element['image']


def _read(read, path):
    """'read' or 'refused'; AssertionError where neither is done well."""
    try:
        pixels = read(path)
    except UserError as error:
        line = str(error)
        assert '\n' not in line and str(path.parent) in line, line
        return 'refused'
    assert pixels.dtype == np.uint8 and pixels.size
    if pixels.ndim == 2:
        assert set(np.unique(pixels)) <= {*range(19), 255}
    return 'read'


def weight_cases(place: pathlib.Path):
    """The function rng -> outcomes that damages one file of weights and reads it."""
    whole = damage.weight_files(place)

    def case(rng):
        suffix = sorted(whole)[rng.integers(len(whole))]
        path = place / f'damaged{suffix}'
        path.write_bytes(damage.damage_file(rng, whole[suffix]))
        try:
            arrays = pretrained.read_weights(path)
        except UserError as error:
            line = str(error)
            assert '\n' not in line and str(path) in line, line
            return [f'{suffix}: refused']
        assert all(isinstance(array, np.ndarray) for array in arrays.values())
        return [f'{suffix}: read']

    return case


def checkpoint_cases(place: pathlib.Path):
    """The function rng -> outcomes that damages a run's last checkpoint, or both of them."""
    saved = damage.write_run(place / 'run')
    abstract = damage.shapes(saved[1])

    def case(rng):
        run = shutil.copytree(place / 'run', place / 'copy')
        try:
            for step in ('2', '1')[: 1 + (rng.random() < 0.2)]:
                damage.damage_folder(rng, run / 'checkpoints' / step)
            outcomes = [f'weights: {_restore(_weights, run, abstract, saved)}']
            if rng.random() < 0.1:
                outcomes.append(f'resume: {_restore(_resume, run, abstract, saved)}')
            return outcomes
        finally:
            shutil.rmtree(run)

    return case


def _weights(run, abstract):
    return checkpoint.restore_weights(run, abstract)


def _resume(run, abstract):
    with checkpoint.open(run, every=1) as checkpoints:
        state, step = checkpoints.restore(abstract)
        assert checkpoints.config() == damage.CONFIG
        return state, step


def _restore(restore, run, abstract, saved):
    """'step N' or 'refused'; AssertionError where what came back is not what was saved."""
    try:
        state, step = restore(run, abstract)
    except UserError as error:
        line = str(error)
        assert '\n' not in line and str(run) in line, line
        return 'refused'
    assert damage.equal(state, saved[step])
    return f'step {step}'


CASES = {'images': image_cases, 'weights': weight_cases, 'checkpoints': checkpoint_cases}

if __name__ == '__main__':
    sys.exit(main())
