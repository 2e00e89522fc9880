"""Write the table of the last fault run into docs/reliability.md: `python -m tests.faults.table var/faults.jsonl`."""

import json
import os
import sys
from pathlib import Path

from tests.faults.invariants import ALL

DOCS = Path(__file__).resolve().parent.parent.parent / "docs" / "reliability.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
COLUMNS = ("requests", *ALL, "I13", "deaths")


def table(lines: list[dict[str, object]]) -> str:
    """Return the lines as a table: how much was looked at for each invariant, and what was said of the fault."""
    rows = [["fault", "database", *COLUMNS, "said"], ["---"] * (len(COLUMNS) + 3)]
    for line in lines:
        what = str(line["fault"]).replace("_", " ")
        figures = [f"{line[name]:,}" if name in line else "" for name in COLUMNS]
        if "untried" in line:
            rows.append([what, str(line["database"]), *figures, f"not tried: {line['untried']}"])
            continue
        said = ", ".join(f"`{rule}`" for rule in line["alerts"])  # type: ignore[attr-defined]
        rows.append([what, str(line["database"]), *figures, said])
    return "".join(dict.fromkeys(f"| {' | '.join(row)} |\n" for row in rows))


def write(lines: list[dict[str, object]]) -> None:
    """Put the table where the last one stands."""
    text = DOCS.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    seeds = ", ".join(sorted({str(line["seed"]) for line in lines}))
    kind = "long" if os.environ.get("LICENTIA_SOAK") else "short"
    DOCS.write_text(f"{head}{BEGIN}\nSeeds {seeds}; the {kind} form.\n\n{table(lines)}\n{END}{tail}")


if __name__ == "__main__":
    write([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()])
