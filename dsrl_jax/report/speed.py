"""What `dsrl bench` found, as lines of text."""

_GIB = 2**30


def title(found: dict) -> str:
    """What is timed, and on what."""
    options = [f'{name} {value}' for name, value in found['options'].items()]
    height, width = found['size']
    head = f', head {found["head"]}' if found['head'] else ''
    done = 'training step' if found['train'] else f'prediction ({found["kind"]})'
    view = f'{found["scale"] * height}x{found["scale"] * width}'
    return (
        f'{", ".join([found["net"], *options])}, dsrl {found["dsrl"]}{head}, {done}, '
        f'batch {found["batch"]}, input {height}x{width}, view {view}, '
        f'{found["num_classes"]} classes, {found["dtype"]}\n'
        f'{found["device"]}, jax {found["versions"]["jax"]}, {found["date"][:10]}'
    )


def table(found: dict) -> str:
    """Our figures, a line each."""
    rows = [*_times(found), *_costs(found)]
    return '\n'.join(f'{name:<20}{text}' for name, text in rows)


def operations(found: list[dict], folder: str, steps: int) -> str:
    """The costliest operations of a trace."""
    lines = [f'trace of {steps} steps: {folder}']
    if not found:
        lines.append('it names no operation; open it with xprof or TensorBoard')
    for one in found:
        count = f'{one["calls"]} x'
        lines.append(f'{one["ms"]:10.3f} ms {one["share"]:6.1%} {count:>8} {one["name"]}')
        if one['scope']:
            lines.append(f'{"":30}{one["scope"]}')
    return '\n'.join(lines)


def peer_title(equal: dict) -> str:
    """Heading of the lines of `peer_variant`."""
    columns = f'{"images/s":>10}{"ms":>10}{"first s":>10}{"GiB":>8}   ms at batch 1, 8'
    equals = f'its scores are ours within {equal["difference"]:.1g} of their deviation'
    if terms := equal.get('terms'):
        each = ', '.join(f'{name} {difference:.1g}' for name, difference in terms.items())
        equals += f',\nits loss ours within (relative) {each}'
    return f'PyTorch {equal["torch"]}; with our weights {equals}\n{"":26}{columns}'


def peer_name(variant: dict) -> str:
    """The beginning of the line of a variant, shown while it runs."""
    return f'  {variant["mode"]:<9}{variant["memory_format"]:<15}'


def peer_figures(found: dict) -> str:
    """The rest of that line."""
    if 'failed' in found:
        return f' {found["failed"]}'
    memory = f'{found["memory"] / _GIB:.2f}' if found['memory'] else '-'
    latency = ', '.join(f'{one["ms"]:.2f}' for one in found['latency'].values())
    return (
        f'{found["images_per_second"]:10.2f}{found["ms"]:10.2f}{found["first_seconds"]:10.1f}'
        f'{memory:>8}   {latency}'
    )


def ratio(found: dict | None) -> str:
    """Our speed beside the peer's."""
    if found is None:
        return 'no variant of the peer finished'
    parts = [f'{found["images_per_second"]:.2f} x the images/s of the best ({found["best"]})']
    if found['over_eager']:
        parts.append(f'{found["over_eager"]:.2f} x the best eager')
    parts += [f'{value:.2f} x at batch {n} (latency)' for n, value in found['latency'].items()]
    return 'ours: ' + ', '.join(parts)


def _times(found):
    low, high = found['images_per_second_range']
    cold, warm = found['compile_seconds']['cold'], found['compile_seconds']['warm']
    again = f'{sum(warm.values()):.1f} s' if warm else 'not found in it'
    return [
        (
            'images/s',
            f'{found["images_per_second"]:.2f} ({low:.2f} to {high:.2f}; {found["repeats"]} '
            f'repeats, {found["steps"]} steps each)',
        ),
        ('ms a step', f'{found["ms"]:.2f}'),
        *(
            (f'latency, batch {n}', f'{one["ms"]:.2f} ms ({one["repeats"]} requests)')
            for n, one in found.get('latency', {}).items()
        ),
        (
            'compilation',
            f'{sum(cold.values()):.1f} s ({cold["trace"]:.1f} s of it tracing); with a warm '
            f'cache, in a new process: {again}',
        ),
    ]


def _costs(found):
    memory = found['memory']
    yield (
        'peak memory',
        f'{memory["peak"] / _GIB:.3f} GiB ({memory["source"]}); temporaries '
        f'{memory["temporaries"] / _GIB:.3f} GiB',
    )
    forward = ', forward x 3' if found['train'] else ''
    yield (
        'TFLOP/s',
        f'{found["tflops"]:.3g} = {found["matmul_fraction"]:.1%} of the best matrix product, '
        f'{found["matmul_tflops"]:.3g} at n = {found["matmul_size"]} '
        f'(our {found["macs"] / 1e9:.4g} GMACs{forward})',
    )
    if found['xla_tflops']:
        yield '', f"{found['xla_tflops']:.3g} by XLA's own count"
    if found['copy_fraction']:
        yield (
            'GB/s',
            f"{found['xla_gbytes_per_second']:.4g} by XLA's count = {found['copy_fraction']:.1%} "
            f'of a copy, {found["copy_gbytes_per_second"]:.4g}',
        )
