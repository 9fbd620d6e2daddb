"""The ratios to nginx as horizontal bars, in SVG that needs no font or script of others.

Greys and colours are chosen to be readable on white and on black, because a page shows the picture on either.
"""

from html import escape

from results import REFERENCE

# Works that a picture is for; what depends on one run's luck or on one page of memory is in the table alone.
CHARTED = {("idle-ws", "kib"), ("idle-http", "kib"), ("start", "rss")}
COLOURS = {"tidegate": "#12998a", "haproxy": "#c9822b", "caddy": "#8c7bd4"}
OTHERS = ["#d0568a", "#4b8fd6", "#7d9a2d"]
GREY, FAINT = "#78828d", "#9aa4af"
LEFT, RIGHT, WIDTH = 300, 56, 880
BAR, GAP, TOP = 9, 13, 92
# Where the scale ends; longer bars are cut there and say their ratio.
MOST = 2.0
FONT = "system-ui, -apple-system, 'Segoe UI', sans-serif"


def draw(lines, contenders, about):
    """The picture as text."""
    names = [contender.name for contender in contenders if contender.name != REFERENCE]
    others = iter(OTHERS * len(names))
    colours = {name: COLOURS.get(name) or next(others) for name in names}
    rows = [line for line in lines
            if (line.row.key == "cpu" or (line.work, line.row.key) in CHARTED)
            and any(cell.ratio is not None for name, cell in line.cells.items() if name in names)]
    height = TOP + len(rows) * (len(names) * (BAR + 1) + GAP) + 46
    scale = (WIDTH - LEFT - RIGHT) / MOST
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 -4 {WIDTH + 16} {height + 8}" width="{WIDTH}" '
        f'height="{height}" font-family="{FONT}" role="img" aria-label="Processor time and memory for the same work, nginx = 1">',
        label(0, 20, "Processor time and memory for the same work", size=16, weight=600),
        label(0, 40, "nginx = 1, shorter is better; medians of ratios in the same round", size=12, colour=FAINT)]
    x = 0
    for name in names:
        out.append(f'<rect x="{x}" y="54" width="10" height="10" rx="2" fill="{colours[name]}"/>')
        out.append(label(x + 15, 63, name, size=12))
        x += 32 + 7.5 * len(name)
    bottom = height - 40
    for tick in range(5):
        at = LEFT + tick * MOST / 4 * scale
        is_one = tick * MOST / 4 == 1
        out.append(f'<line x1="{at:.1f}" y1="{TOP - 8}" x2="{at:.1f}" y2="{bottom}" stroke="{GREY}" '
                   + ('stroke-width="1.5"/>' if is_one else 'stroke-width="0.5" stroke-opacity="0.5"/>'))
        out.append(label(at, TOP - 13, "nginx = 1" if is_one else f"{tick * MOST / 4:g}", size=11, anchor="middle",
                         weight=600 if is_one else 400))
    y = TOP
    for line in rows:
        middle = y + len(names) * (BAR + 1) / 2
        out.append(label(LEFT - 12, middle + 4, line.row.title, size=12, anchor="end"))
        for name in names:
            cell = line.cells.get(name)
            if cell is not None and cell.ratio is not None:
                length = min(cell.ratio, MOST) * scale
                out.append(f'<rect x="{LEFT}" y="{y:.1f}" width="{length:.1f}" height="{BAR}" rx="1.5" '
                           f'fill="{colours[name]}"/>')
                if cell.ratio > MOST:
                    # A cut through the bar: it goes on.
                    cut = LEFT + length - 14
                    out.append(f'<path d="M{cut:.1f} {y + BAR + 2:.1f}l4 -{BAR + 4}M{cut + 5:.1f} {y + BAR + 2:.1f}'
                               f'l4 -{BAR + 4}" stroke="{GREY}" stroke-width="1.5"/>')
                # The line of nginx goes through no figure.
                one = LEFT + scale
                at = LEFT + length + 5
                at = one + 5 if one - 26 < at < one + 5 else at
                out.append(label(at, y + BAR - 0.5, f"{cell.ratio:.2f}", size=10))
            y += BAR + 1
        y += GAP
    # Once each: further builds of one program have its version.
    versions = " · ".join(dict.fromkeys(about["versions"].values()))
    out.append(label(0, height - 22, versions, size=10, colour=FAINT))
    out.append(label(0, height - 8, f"{about['machine']} · {about['date']} · rounds: {about['rounds']}", size=10,
                     colour=FAINT))
    return "\n".join([*out, "</svg>"]) + "\n"


def label(x, y, text, size, colour=GREY, anchor="start", weight=400):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" '
            f'font-weight="{weight}">{escape(text)}</text>')
