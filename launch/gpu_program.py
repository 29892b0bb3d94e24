"""What a step becomes on an H100, read on a machine without one: its kernels and their traffic.

    pip install --no-deps --target=DIR jax-cuda12-pjrt==VERSION_OF_JAXLIB
    python launch/gpu_program.py --compiler=DIR --net=espnetv2 --size=512x1024 --batch=16 \\
        --num_classes=19 --dsrl=full --train

XLA compiles for a GPU that it is told about; no GPU, driver or CUDA library is needed. Layouts,
fusions and memory are those of the device; what is chosen by trying on it (library algorithms,
tiles of matrix products) is not. Bytes are those that a kernel's operands and results hold, so a
lower bound of its traffic, and no time: a kernel that computes much in its loop is slower than its
bytes. --output keeps everything, --against compares with such a file of another commit.
"""

import argparse
import collections
import json
import math
import os
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 registers_per_core_limit: 65536
  registers_per_block_limit: 65536 core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84929347584
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_BYTES = {
    **{'token': 0, 'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's16': 2, 'u16': 2},
    **{'s32': 4, 'u32': 4, 'f32': 4, 's64': 8, 'u64': 8, 'f64': 8, 'c64': 8},
}
# Operations that are no kernel: names for parts of other results, and loops, whose bodies count.
_NO_KERNEL = {
    *('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while'),
    *('fusion-done', 'copy-done'),
}
_INSTRUCTION = re.compile(r'^ +(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$')


def main() -> int:
    """Compile one workload and print what its program does; the exit code."""
    _use_this_package()
    from dsrl_jax import bench
    from dsrl_jax.errors import UserError

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--compiler', required=True, help='folder that jax-cuda12-pjrt was installed in')
    bench.work_flags(parser)
    parser.set_defaults(dtype='bfloat16')
    add('--count', type=int, default=15, help='of kinds and kernels printed')
    add('--output', help='JSON file of every kernel')
    add('--against', help='such a file: print what changed')
    args = parser.parse_args()
    use_compiler(args.compiler)
    try:
        if not (pathlib.Path(args.compiler) / 'jax_plugins').is_dir():
            remedy = 'install it there: pip install --no-deps --target=DIR jax-cuda12-pjrt.'
            raise UserError('--compiler', args.compiler, 'a folder with jax_plugins', remedy)
        work = bench.workload_of(args)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return error.code
    found = measure(work._replace(options={'conv_impl': 'gpu', **work.options}))
    print(describe(found, args.count))
    if args.against:
        before = json.loads(pathlib.Path(args.against).read_text())
        print(f'\nGB of each kind, before and now:\n{compare(before, found)}')
    if args.output:
        pathlib.Path(args.output).write_text(json.dumps(found) + '\n')
    return 0


def use_compiler(folder) -> None:
    """Make the compiler in that folder known to JAX; before its devices are first asked for."""
    _use_this_package()
    sys.path.insert(0, str(folder))


def _use_this_package():
    os.environ['JAX_PLATFORMS'] = 'cpu'
    os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'  # a program without a device has no file
    sys.path.insert(0, str(ROOT))


def compile_for_h100(function, *shapes):
    """The executable of a function, jitted or not, of arrays of these shapes."""
    import jax
    from jax.experimental import topologies

    described = topologies.get_topology_desc(platform='cuda', target_config=H100, topology='1x1x1')
    mesh = topologies.make_mesh(described, (1,), ('device',))
    there = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there), shapes)
    if not hasattr(function, 'trace'):
        function = jax.jit(function)
    return function.trace(*shapes).lower(lowering_platforms=('cuda',)).compile()


def measure(work) -> dict:
    """{work, gbytes, kernels, temporaries (bytes), each: one dict a kernel} of a Workload."""
    from dsrl_jax import workload

    program = workload.program(work)
    return {'work': work._asdict(), **read(compile_for_h100(program.run, *program.shapes))}


def read(compiled) -> dict:
    """What `measure` says of an executable."""
    each = kernels(compiled.as_text())
    return {
        'gbytes': sum(k['times'] * (k['reads'] + k['writes']) for k in each) / 1e9,
        'kernels': sum(k['times'] for k in each),
        'temporaries': compiled.memory_analysis().temp_size_in_bytes,
        'each': each,
    }


def kernels(text: str) -> list[dict]:
    """The kernels of a compiled program's text, in their order.

    A dict each: name, kind, times it runs, bytes it reads and writes in one, shape of the result,
    operands (their shapes), scope (where in the network it comes from).
    """
    bodies, entry = _computations(text)
    return list(_walk(bodies, entry, 1))


def describe(found: dict, count: int) -> str:
    """A few lines: totals, kinds, the kernels of most bytes."""
    temporaries = found['temporaries'] / 2**30
    lines = [
        f'{found["kernels"]} kernels, {found["gbytes"]:.1f} GB, temporaries {temporaries:.1f} GiB'
    ]
    kinds = sorted(_kinds(found).items(), key=lambda item: -item[1][0])
    for kind, (gbytes, times) in kinds[:count]:
        lines.append(f'{gbytes:9.2f} GB {times:6} x {kind}')
    largest = sorted(found['each'], key=lambda k: -k['times'] * (k['reads'] + k['writes']))
    lines.append('')
    for k in largest[:count]:
        gbytes = k['times'] * (k['reads'] + k['writes']) / 1e9
        lines.append(
            f'{gbytes:9.2f} GB {k["times"]:6} x {k["name"]}  {k["shape"][:60]}  {k["scope"]}'
        )
    return '\n'.join(lines)


def compare(before: dict, now: dict) -> str:
    """The kinds whose bytes differ, a line each, and the totals."""
    a, b = _kinds(before), _kinds(now)
    rows = [(kind, a.get(kind, (0, 0)), b.get(kind, (0, 0))) for kind in sorted({**a, **b})]
    rows = [row for row in rows if row[1] != row[2]]
    rows.append(('all', *((f['gbytes'], f['kernels']) for f in (before, now))))
    return '\n'.join(
        f'{x[0]:9.2f} {y[0]:9.2f} GB {x[1]:6} {y[1]:6} x {kind}' for kind, x, y in rows
    )


def _kinds(found) -> dict:
    """{kind: (GB, kernels)}."""
    sums = collections.defaultdict(lambda: (0.0, 0))
    for k in found['each']:
        gbytes, times = sums[k['kind']]
        more = k['times'] * (k['reads'] + k['writes']) / 1e9
        sums[k['kind']] = gbytes + more, times + k['times']
    return sums


def _computations(text):
    """{computation: {instruction: (shape, operation, operands, rest of the line)}}, the entry."""
    bodies, body, entry = {}, None, None
    for line in text.splitlines():
        opened = re.match(r'(ENTRY )?%?([\w.-]+) \(.*\{$', line)
        if opened:
            body = bodies[opened[2]] = {}
            entry = opened[2] if opened[1] else entry
        elif line.startswith('}'):
            body = None
        elif body is not None:
            found = _INSTRUCTION.match(re.sub(r'/\*index=\d+\*/', '', line))
            if found:
                name, shape, operation, rest = found.groups()
                end = _closing(rest)
                operands = re.findall(r'%([\w.-]+)', rest[:end])
                body[name] = shape, operation, operands, rest[end:]
    return bodies, entry


def _closing(text):
    """Where the bracket closes that was opened before the text."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter in '([{') - (letter in ')]}')
        if not depth:
            return place
    return len(text)


def _walk(bodies, name, times):
    body = bodies[name]
    for instruction, (shape, operation, operands, rest) in body.items():
        if operation == 'while':
            count = re.search(r'known_trip_count":\{"n":"(\d+)"', rest)
            inner = re.search(r'body=%?([\w.-]+)', rest)[1]
            yield from _walk(bodies, inner, times * int(count[1]) if count else times)
        if operation in _NO_KERNEL:
            continue
        scope = re.search(r'op_name="([^"]*)"', rest)
        called = re.search(r'custom_call_target="([^"]*)"', rest)
        kind = called[1] if called else re.sub(r'(_fusion)?(\.\d+)*$', '', instruction)
        reads, writes = _traffic(bodies, body, shape, operands, rest)
        yield {
            'name': instruction,
            'kind': kind,
            'times': times,
            'reads': reads,
            'writes': writes,
            'shape': shape,
            'operands': [body[operand][0] for operand in operands if operand in body],
            'scope': re.sub(r'^jit\([^)]*\)/', '', scope[1]) if scope else '',
        }


def _traffic(bodies, body, shape, operands, rest):
    """Bytes that a kernel reads and writes; where a fusion touches slices alone, of these."""
    called = re.search(r'calls=%?([\w.-]+)', rest)
    if not called:
        return sum(_size(body[operand][0]) for operand in operands if operand in body), _size(shape)
    inner, reads = bodies[called[1]], 0
    for name, (whole, operation, _, _) in inner.items():
        if operation == 'parameter':
            users = [
                0 if o == 'dynamic-update-slice' and used[0] == name else _size(s)
                for s, o, used, _ in inner.values()
                if name in used
                and o in ('slice', 'dynamic-slice', 'gather', 'dynamic-update-slice')
            ]
            every = len(users) == sum(name in used for _, _, used, _ in inner.values())
            reads += min(_size(whole), sum(users)) if users and every else _size(whole)
    whole, operation, used, _ = list(inner.values())[-1]  # the root comes last
    if operation == 'dynamic-update-slice':  # in place
        return reads, _size(inner[used[1]][0])
    return reads, _size(whole)


def _size(shape):
    """Bytes of an array or of a tuple of them."""
    arrays = re.findall(r'([a-z]+\d*)\[([\d,]*)\]', shape)
    return sum(
        _BYTES[kind] * math.prod(int(n) for n in sizes.split(',') if n) for kind, sizes in arrays
    )


if __name__ == '__main__':
    sys.exit(main())
