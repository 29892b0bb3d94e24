"""A training step over many devices: its collectives, compiled and counted, and times predicted.

    python launch/scaling.py compile [--net=NAME] [--devices=8,64,256] [--bn_group=0] [--impl=gpu]
    python launch/scaling.py predict [--results=FILE]

`compile` compiles the step of `dsrl=full` ahead of time for so many fake CPU devices, of which none
runs anything, and puts what its program sends into FILE: kinds, numbers, bytes and replica groups.
`predict` prints the tables of docs/scaling.md from FILE, the step times measured on one H100 and
the published figures of the chips. They are predictions: no pod was at hand.
"""

import argparse
import json
import math
import os
import pathlib
import re
from typing import NamedTuple

RESULTS = pathlib.Path(__file__).resolve().parent.parent / 'docs/results/scaling.json'
MEASURED = RESULTS.with_name('h100_steps.jsonl')
KINDS = (
    *('all-reduce', 'all-gather', 'all-to-all', 'ragged-all-to-all', 'reduce-scatter'),
    *('collective-permute', 'collective-broadcast'),
)
DEVICES = (8, 64, 256)
TARGET = 0.95  # the efficiency that the least batch is given for
ROOM = 0.8  # the share of a chip's memory that a step may fill
_KEYS = ('net', 'size', 'batch', 'dsrl', 'impl', 'bn_group', 'devices')
_BYTES = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 'f32': 4, 's32': 4, 'u32': 4, 'f64': 8}


class Chip(NamedTuple):
    """Published rates, a second: FLOPs in bfloat16, bytes of memory, and bytes that leave it."""

    name: str
    peak: float
    memory_bandwidth: float
    memory: float
    link: dict[int, float]  # one direction of a ring of so many devices
    latency: dict[int, float]  # of one small all-reduce among so many devices, s


def torus(*axes: int, wrap: bool = False) -> float:
    """Seconds of a small all-reduce on a grid of chips: to the farthest of each axis, and back."""
    return 2 * sum(n // 2 if wrap else n - 1 for n in axes) * HOP


def tree(nodes: int) -> float:
    """Seconds of a small all-reduce over nodes of 8 GPUs in NCCL's model (tree, LL protocol)."""
    base, inside, between = 6.8e-6, 0.6e-6 * (1.8 if nodes > 1 else 1), 5.0e-6
    return base + 2 * (7 * inside + math.log2(nodes) * between)


HOP = 1e-6  # between two chips of a TPU: an assumption, no figure is published
CHIPS = (
    Chip(
        'H100 SXM',
        *(989e12, 3.35e12, 80e9),
        {8: 450e9, 64: 400e9, 256: 400e9},
        {8: tree(1), 64: tree(8), 256: tree(32)},
    ),
    Chip(
        'TPU v5e',
        *(197e12, 819e9, 16e9),
        dict.fromkeys(DEVICES, 100e9),
        {8: torus(2, 4), 64: torus(8, 8), 256: torus(16, 16, wrap=True)},
    ),
    Chip(
        'TPU v5p',
        *(459e12, 2765e9, 95e9),
        dict.fromkeys(DEVICES, 200e9),
        {8: torus(2, 2, 2), 64: torus(4, 4, 4, wrap=True), 256: torus(4, 8, 8, wrap=True)},
    ),
)
RECIPE = {'images': 2975, 'batch': 16, 'epochs': 300}  # Cityscapes, as configs/cityscapes.py has it


def main():
    """Run the part that is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('part', choices=('compile', 'predict'))
    parser.add_argument('--net', default='espnetv2')
    parser.add_argument('--size', default='512x1024', help='of the input; default: 512x1024')
    parser.add_argument('--devices', default=','.join(map(str, DEVICES)))
    parser.add_argument('--batch', type=int, default=2, help='images a device; default: 2')
    parser.add_argument('--bn_group', type=int, default=0, help='images; default: 0, all')
    parser.add_argument('--dsrl', default='full')
    parser.add_argument('--impl', default='gpu', help='form of the convolutions; default: gpu')
    parser.add_argument('--results', type=pathlib.Path, default=RESULTS)
    args = parser.parse_args()
    rows = json.loads(args.results.read_text()) if args.results.is_file() else []
    if args.part == 'predict':
        print(*tables(rows), sep='\n')
        return
    devices = [int(n) for n in args.devices.split(',')]
    _open_fake_devices(max(devices))
    for count in devices:
        row = measure(args, count)
        rows = [r for r in rows if any(r[k] != row[k] for k in _KEYS)] + [row]
        rows.sort(key=lambda row: [str(row[k]).zfill(8) for k in _KEYS])
        args.results.write_text('[\n' + ',\n'.join(map(json.dumps, rows)) + '\n]\n')
        print(json.dumps(row), flush=True)


def _open_fake_devices(count):
    # Code that never runs need not be fast.
    flags = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flags}'.strip()
    import jax

    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', count)


def measure(args, devices: int) -> dict:
    """What the step over so many devices is, and what it sends (`summary`)."""
    import jax

    from dsrl_jax import workload

    work = workload.Workload(
        net=args.net,
        size=tuple(int(n) for n in args.size.split('x')),
        batch=args.batch * devices,
        num_classes=19,
        train=True,
        dsrl=args.dsrl,
        head=None,
        scale=2,
        dtype='float32',  # a CPU has no other sums: four bytes a number, the most there can be
        kind='exact',
        options={'conv_impl': args.impl, 'bn_group': args.bn_group},
    )
    program = workload.program(work)
    state = program.shapes[0]
    found = collectives(lower(program, devices).compile().as_text(), devices)
    kept = jax.tree.leaves(state.batch_stats)
    return {
        **{key: getattr(args, key) for key in _KEYS if hasattr(args, key)},
        'devices': devices,
        'parameters': sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        'norms': len(kept) // 2,
        'channels': sum(leaf.size for leaf in kept) // 2,
        'sent': summary(found),
        'largest_array': max(max(one['sizes']) for one in found),
        'jax': jax.__version__,
    }


def lower(program, devices: int):
    """The training step of a workload.Program, lowered as `dsrl train` shards it: state everywhere,
    batch by rows."""
    import jax

    from dsrl_jax import parallel

    mesh = jax.sharding.Mesh(jax.devices()[:devices], ('data',))
    everywhere, by_batch = parallel.replicated(mesh), parallel.by_batch(mesh)

    def placed(tree, sharding):
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
        )

    step = program.run.__wrapped__  # jitted anew, to say where the results lie
    run = jax.jit(step, donate_argnums=0, out_shardings=(everywhere, everywhere))
    state, batch = program.shapes
    return run.lower(placed(state, everywhere), placed(batch, by_batch))


def collectives(text: str, devices: int) -> list[dict]:
    """Every collective of a compiled program: kind, sizes and bytes of its arrays, group size."""
    found = []
    for line in text.splitlines():
        kind = re.search(rf' = (.+?) ({"|".join(KINDS)})(?:-start)?\(', line)
        if kind is None:
            continue
        arrays = re.findall(r'(\w+)\[([\d,]*)\]', kind[1])
        sizes = [math.prod(int(n) for n in shape.split(',') if n) for _, shape in arrays]
        found.append(
            {
                'kind': kind[2],
                'sizes': sizes,
                'bytes': sum(n * _BYTES[name] for n, (name, _) in zip(sizes, arrays)),
                'group': _group(line, devices),
            }
        )
    return found


def _group(line, devices):
    """How many devices take part together; three ways of writing it."""
    if named := re.search(r'replica_groups=mesh\[(.*?)\]\s*\{(.*?)\}', line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    if counted := re.search(r'replica_groups=\[\d+,(\d+)\]', line):
        return int(counted[1])
    if listed := re.search(r'replica_groups=\{\{([\d,]+)\}', line):
        return len(listed[1].split(','))
    if 'replica_groups' in line and 'replica_groups={}' not in line:
        raise ValueError(f'replica groups in an unknown form: {line.strip()[:300]}')
    return devices


def summary(found: list[dict]) -> list[dict]:
    """Collectives by kind and group size: operations, arrays, bytes, bytes of the largest."""
    rows = []
    for kind, group in sorted({(one['kind'], one['group']) for one in found}):
        mine = [one for one in found if (one['kind'], one['group']) == (kind, group)]
        total = {
            'operations': len(mine),
            'arrays': sum(len(one['sizes']) for one in mine),
            'bytes': sum(one['bytes'] for one in mine),
            'largest': max(one['bytes'] for one in mine),
        }
        rows.append({'kind': kind, 'group': group, **total})
    return rows


def tables(rows: list[dict]):
    """The lines of every table, in the order of the page."""
    steps = {s['net']: s for s in map(json.loads, MEASURED.read_text().splitlines())}
    yield from _counted(rows)
    yield from _rooflines(steps)
    yield from _predicted([r for r in rows if r['net'] in steps and r['impl'] == 'gpu'], steps)
    yield from _batches()


def _counted(rows):
    yield from ('', '### Collectives', '')
    yield (
        '| network | form | devices | bn_group | kind | group | operations | arrays | bytes | '
        'largest | 4P + 8C |'
    )
    yield '|---|' + '---|' * 10
    for row in rows:
        least = 4 * row['parameters'] + 8 * row['channels']
        for sent in row['sent']:
            yield _line(
                *(row['net'], row['impl'], row['devices'], row['bn_group'], sent['kind']),
                *(sent['group'], sent['operations'], sent['arrays'], f'{sent["bytes"]:,}'),
                *(f'{sent["largest"]:,}', f'{least:,}'),
            )


def _rooflines(steps):
    yield from ('', '### One device', '')
    yield (
        '| network | batch | chip | TFLOP | GB | by FLOPs, ms | by bytes, ms | '
        'expected, ms | expected, ms an image |'
    )
    yield '|---|' + '---|' * 8
    for step in steps.values():
        work, traffic = _work(step)
        for chip in CHIPS:
            bounds = work / chip.peak, traffic / chip.memory_bandwidth
            one = image(step, chip)
            times = (f'{1e3 * t:.3g}' for t in (*bounds, step['batch'] * one, one))
            rates = f'{work / 1e12:.3g}', f'{traffic / 1e9:.3g}'
            yield _line(step['net'], step['batch'], chip.name, *rates, *times)


def _predicted(rows, steps):
    yield from ('', '### Many devices', '')
    yield (
        '| network | chip | devices | share statistics | images a device | compute, ms | '
        'latency, ms | transfer, ms | step, ms | images/s | efficiency | images for 95 % |'
    )
    yield '|---|' + '---|' * 11
    for row in rows:
        share = row['bn_group'] // row['batch'] or row['devices']
        for chip in CHIPS:
            names = row['net'], chip.name, row['devices'], share
            yield _line(*names, *_prediction(row, chip, steps))


def _batches():
    yield from ('', '### The recipe', '')
    yield '| devices | images a device | batch | times the recipe | steps an epoch | steps in all |'
    yield '|---|---|---|---|---|---|'
    for devices in DEVICES:
        for count in (1, 2, 8, 16):
            batch = devices * count
            steps = RECIPE['images'] / batch
            every = f'{steps:.1f}', f'{RECIPE["epochs"] * steps:,.0f}'
            yield _line(devices, count, batch, f'{batch / RECIPE["batch"]:g}', *every)


def _prediction(row, chip, steps):
    step = steps[row['net']]
    count = images(step, chip)
    compute = count * image(step, chip)
    latency, transfer = communication(row, chip)
    total = compute + latency + transfer
    least = TARGET / (1 - TARGET) * (latency + transfer) / image(step, chip)
    times = (f'{1e3 * t:.3g}' for t in (compute, latency, transfer, total))
    speed = f'{row["devices"] * count / total:,.0f}'
    return count, *times, speed, f'{100 * compute / total:.1f} %', math.ceil(least)


def communication(row: dict, chip: Chip) -> tuple[float, float]:
    """Seconds of latency and of transfer of all that a step sends, none of it hidden."""
    latency = transfer = 0.0
    for sent in row['sent']:
        n = sent['group']
        latency += sent['operations'] * _at(chip.latency, n)
        transfer += 2 * (n - 1) / n * sent['bytes'] / _at(chip.link, n)
    return latency, transfer


def _at(table, devices):
    """The entry for the smallest number of devices that is no smaller."""
    return table[min(n for n in table if n >= devices)]


def image(step: dict, chip: Chip) -> float:
    """Seconds of one image of a training step: the chip's roofline at the share of it that the
    measured step reached on an H100."""
    reached = _roofline(step, CHIPS[0]) / (step['ms'] / 1e3)
    return _roofline(step, chip) / reached / step['batch']


def images(step: dict, chip: Chip) -> int:
    """Images a device: those of the measured step, halved until they fit the chip's memory."""
    count = step['batch']
    while step['memory']['peak'] * count / step['batch'] > ROOM * chip.memory:
        count //= 2
    return count


def _roofline(step, chip):
    work, traffic = _work(step)
    return max(work / chip.peak, traffic / chip.memory_bandwidth)


def _work(step):
    """FLOPs and bytes of memory traffic of the measured step (XLA's count of the latter)."""
    return 2 * step['macs'], step['xla_gbytes_per_second'] * 1e9 * step['ms'] / 1e3


def _line(*cells):
    return '| ' + ' | '.join(map(str, cells)) + ' |'


if __name__ == '__main__':
    main()
