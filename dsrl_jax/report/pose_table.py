"""Table 5 with our results beside the paper's: scores by decoding, DSRL's gain, true costs."""

_GIGA = 2**30  # the paper's for poses: 1 a multiply-add


def markdown(record: dict) -> str:
    """The record of a table of poses (see paper.write) as Markdown, scores in percent.

    Of a finished row `ours` has scores {split: {people, images, boxes, protocol, decoded {decode:
    {AP, ...}}}}.
    """
    parts = [
        f'# {record["title"]}',
        _lines(_scores(record)),
        'A dash: not at hand in the paper, or no such people in our data.',
        "## What is left of DSRL's gain, by decoding (AP)",
        _lines(_gains(record)),
        '## True costs in 2^30 multiply-adds an image',
        _lines(_costs(record)),
        '## How ours was scored',
        '\n'.join(f'* {line}' for line in _protocols(record) or ['not run']),
        '## Notes',
        '\n'.join(f'* {note}' for note in record['notes']),
    ]
    return '\n\n'.join(parts) + '\n'


def _scores(record):
    measures = record['measures']
    yield ['row', 'of', 'input', 'decoded', *measures, 'remark']
    for row in record['rows']:
        paper, ours = row['paper'], row['ours']
        if paper:
            printed = [_number(paper['scores'].get(name)) for name in measures]
            yield [row['title'], 'paper', _size(paper['input']), '-', *printed, '']
        scores = ours.get('scores') or {}
        for split, found in scores.items():
            for decode, values in found['decoded'].items():
                own = [_number(_percent(values[name])) for name in measures]
                of = f'ours, {record["data"]} {split}'
                yield [row['title'], of, _size(ours['input']), decode, *own, _boxes(found)]
        if not scores:
            why = f'not run: {row["why"]}' if row['why'] else 'not run'
            yield [row['title'], 'ours', _size(ours['input']), '-', *['-'] * len(measures), why]


def _gains(record):
    """AP of base, head alone and DSRL at each input, and the differences, by decoding."""
    yield [
        *('input', 'of', 'decoded', 'base', 'head alone', 'DSRL'),
        *('DSRL - base', 'DSRL - head alone'),
    ]
    for size in dict.fromkeys(tuple(row['input']) for row in record['rows']):
        rows = {row['dsrl']: row for row in record['rows'] if tuple(row['input']) == size}
        printed = {m: row['paper']['scores'].get('AP') for m, row in rows.items() if row['paper']}
        yield _gain(size, 'paper', '-', printed)
        for split in record['splits']:
            found = {m: (row['ours'].get('scores') or {}).get(split) for m, row in rows.items()}
            decoded = {m: scores['decoded'] for m, scores in found.items() if scores}
            for decode in dict.fromkeys(name for names in decoded.values() for name in names):
                ap = {m: _percent(names[decode]['AP']) for m, names in decoded.items()}
                own = next(iter(rows.values()))['ours']['input']
                yield _gain(own, f'ours, {record["data"]} {split}', decode, ap)


def _gain(size, of, decode, ap):
    base, head, full = (ap.get(mode) for mode in ('none', 'sssr', 'full'))
    points = ['-' if None in (full, x) else f'{full - x:+.1f}' for x in (base, head)]
    return [_size(size), of, decode, *map(_number, (base, head, full)), *points]


def _costs(record):
    yield [
        *('row', 'input', 'as printed', 'counted: network', 'head', 'network + head'),
        *('ours: input', 'network', 'head', 'network + head'),
    ]
    for row in record['rows']:
        paper, ours = row['paper'], row['ours']
        printed = [_size(row['input']), *([paper['gflops'], *_cost(paper)] if paper else '-' * 4)]
        yield [row['title'], *printed, _size(ours['input']), *_cost(ours)]


def _cost(found):
    total, head = found['macs'] / _GIGA, found['head_macs'] / _GIGA
    return [f'{total - head:.3f}', f'{head:.4f}', f'{total:.3f}']


def _protocols(record):
    return [
        f'{row["title"]} for {_size(row["input"])}, {split}: {found["people"]} boxes in '
        f'{found["images"]} images, {_boxes(found)}; {found["protocol"]}'
        for row in record['rows']
        for split, found in (row['ours'].get('scores') or {}).items()
    ]


def _boxes(found):
    return f'boxes of {found["boxes"]}' if found['boxes'] else 'ground-truth boxes'


def _size(size):
    return '{}x{}'.format(*size)


def _percent(share):
    return None if share is None else 100 * share


def _number(value):
    return '-' if value is None else f'{value:.1f}'


def _lines(rows):
    header, *rows = rows
    rows = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)
