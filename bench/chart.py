"""Draw the bar chart of RESULTS.md."""

from html import escape

from bench.measure import Figure


def draw_chart(figures: dict[str, dict[str, Figure]]) -> str:
    """Return a bar chart of the ceiling, mlapi, and the peers with a cheap hash, for 16 connections."""
    shown = [
        ("ceiling", "bare Starlette, no database", "#b8b8b8"),
        ("mlapi, sqlite", "mlapi on SQLite", "#1f6feb"),
        ("mlapi, postgresql", "mlapi on PostgreSQL", "#54aeff"),
        ("SQLAlchemy, sqlite, cheap hash", "Starlette and SQLAlchemy on SQLite", "#2da44e"),
        ("SQLAlchemy, postgresql, cheap hash", "Starlette and SQLAlchemy on PostgreSQL", "#57ab5a"),
        ("fastapi-users, sqlite, cheap hash", "fastapi-users on SQLite", "#d29922"),
        ("fastapi-users, postgresql, cheap hash", "fastapi-users on PostgreSQL", "#e3b341"),
        ("Django REST framework, sqlite, cheap hash", "Django REST framework on SQLite", "#8284df"),
        ("Django REST framework, postgresql, cheap hash", "Django REST framework on PostgreSQL", "#a475f9"),
    ]
    shown = [bar for bar in shown if bar[0] in figures]
    rows = []
    y = 64
    for endpoint, title in (("register", "Registrations"), ("toggle", "Toggles")):
        highest = figures["ceiling"][f"{endpoint} 16"].per_second
        rows.append(f'<text x="-12" y="{y}" class="title">{title} per second</text>')
        y += 14
        for name, label, color in shown:
            rate = figures[name][f"{endpoint} 16"].per_second
            width = max(1.0, 440 * rate / highest)
            rows.append(f'<text x="284" y="{y + 13}" class="label">{escape(label)}</text>')
            rows.append(f'<rect x="292" y="{y}" width="{width:.1f}" height="17" rx="2" fill="{color}"/>')
            rows.append(f'<text x="{292 + width + 6:.1f}" y="{y + 13}" class="value">{rate:,.0f}</text>')
            y += 23
        rows.append(f'<line x1="732" x2="732" y1="{y - 23 * len(shown)}" y2="{y - 4}" class="ceiling"/>')
        y += 34
    style = (
        "text{font:13px system-ui,sans-serif;fill:#24292f}.title{font-weight:600;font-size:15px}"
        ".label{text-anchor:end}.ceiling{stroke:#57606a;stroke-dasharray:4 3}.head{font-weight:600;font-size:17px}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-36 0 870 {y - 10}" role="img"'
        ' aria-label="Requests per second: mlapi, its ceiling and its peers">'
        f'<style>{style}</style><rect x="-36" width="836" height="100%" fill="#ffffff"/>'
        '<text x="-12" y="32" class="head">One core, 16 connections, every write durable, equally cheap hashes</text>'
        + "".join(rows)
        + "</svg>\n"
    )
