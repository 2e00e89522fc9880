"""The sheet a statement is written on, as PDF: A4, with fonts of our own."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

from django.conf import settings
from fpdf import FPDF, XPos, YPos
from fpdf.enums import TableBordersLayout
from fpdf.fonts import FontFace

from billing import pricing
from billing.documents import amount, plain
from billing.models import Statement, StatementLine
from billing.states import StatementState

_FONTS = Path(settings.BASE_DIR) / "static" / "vendor" / "dejavu"
_INK, _SOFT, _RULE = (28, 32, 38), (105, 112, 122), (205, 210, 216)
_MARGIN = 18
_WIDTHS = (19, 83, 22, 24, 26)  # millimetres: license, description, quantity, unit price, amount


class Sheet(FPDF):
    """The sheet a statement is written on."""

    def __init__(self, statement: Statement) -> None:
        super().__init__(format="A4")
        self.statement = statement
        self.set_margin(_MARGIN)
        self.set_auto_page_break(True, margin=_MARGIN + 8)
        self.add_font("DejaVu", "", _FONTS / "DejaVuSans.ttf")
        self.add_font("DejaVu", "B", _FONTS / "DejaVuSans-Bold.ttf")
        self._known = set(self.fonts["dejavu"].cmap)  # type: ignore[union-attr]
        self.set_creation_date(statement.final_at or statement.refreshed_at or statement.created_at)
        self.set_title(f"Statement {statement.number or '(draft)'}")
        self.set_author(settings.VENDOR_NAME)
        self.set_lang("en")
        self.add_page()

    def known(self, text: str) -> str:
        """Return the text with what the fonts do not have made visible."""
        return "".join(letter if letter == "\n" or ord(letter) in self._known else "□" for letter in text)

    def ink(self, size: float, *, bold: bool = False, soft: bool = False) -> None:
        self.set_font("DejaVu", "B" if bold else "", size)
        self.set_text_color(*(_SOFT if soft else _INK))

    def footer(self) -> None:
        self.set_y(-_MARGIN)
        self.ink(7.5, soft=True)
        number = f"Statement {self.statement.number}" if self.statement.number else "Draft"
        self.cell(0, 5, self.known(f"{settings.VENDOR_NAME} · {number}"), align="L", new_x=XPos.LMARGIN)
        self.cell(0, 5, f"Page {self.page_no()} of {{nb}}", align="R")

    def head(self) -> None:
        """Write who bills whom, for what time."""
        statement = self.statement
        self.ink(15, bold=True)
        self.cell(100, 8, self.known(settings.VENDOR_NAME))
        title = f"Statement {statement.number}" if statement.number else "Statement"
        self.cell(0, 8, title, align="R", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
        self.ink(8, soft=True)
        top = self.get_y()
        self.multi_cell(100, 4, self.known(settings.VENDOR_ADDRESS))
        below = self.get_y()
        if statement.state in (StatementState.DRAFT, StatementState.VOID, StatementState.PAID):
            self.set_xy(_MARGIN + 100, top)
            words = {"draft": "Draft: not final, may change", "void": "Void", "paid": "Paid"}
            self.ink(8, bold=True)
            self.cell(0, 4, words[statement.state], align="R")
        self.set_xy(_MARGIN, max(below, top + 4) + 8)

        top = self.get_y()
        self.ink(7.5, soft=True)
        self.cell(95, 4, "Billed to", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
        self.ink(9.5)
        self.multi_cell(95, 5, self.known(statement.bill_to), align="L")
        below = self.get_y()
        last = statement.ends_at - timedelta(days=1)
        facts = [
            ("Period", f"{_day(statement.starts_at)} to {_day(last)}"),
            ("Date", _day(statement.final_at) if statement.final_at else "–"),
            ("Due", _day(statement.due_at) if statement.due_at else "–"),
            ("Currency", statement.currency),
        ]
        self.set_y(top)
        for name, value in facts:
            self.set_x(_MARGIN + 105)
            self.ink(8.5, soft=True)
            self.cell(20, 5, name)
            self.ink(8.5)
            self.cell(0, 5, value, align="R", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
        self.set_y(max(below, self.get_y()) + 8)

    def lines(self, lines: Sequence[StatementLine]) -> None:
        """Write the lines, the heading again on each page."""
        self.ink(8)
        self.set_draw_color(*_RULE)
        self.set_line_width(0.15)
        with self.table(
            col_widths=_WIDTHS,
            text_align=("LEFT", "LEFT", "RIGHT", "RIGHT", "RIGHT"),
            v_align="TOP",
            line_height=4.2,
            padding=(1.4, 1),
            borders_layout=TableBordersLayout.HORIZONTAL_LINES,
            headings_style=FontFace(emphasis="BOLD", color=_SOFT),
        ) as table:
            table.row(("License", "For", "Quantity", "Unit price", f"Amount {self.statement.currency}"))
            for line in lines:
                said = f"{line.description}\n{_stretch(line.starts_at, line.ends_at)}"
                table.row(
                    [
                        line.license_id.hex[-8:].upper() if line.license_id else "",
                        self.known(f"{said}\n{line.reason}" if line.reason else said),
                        _grouped(line.quantity),
                        _grouped(line.unit_amount, self.statement.currency),
                        _grouped(amount(line.amount_minor, self.statement), self.statement.currency),
                    ]
                )
        self.ln(3)

    def totals(self) -> None:
        statement = self.statement
        if self.will_page_break(24):
            self.add_page()
        rate = _grouped(statement.tax_rate)
        for name, minor, bold in (
            ("Subtotal", statement.subtotal_minor, False),
            (f"Tax {rate} %", statement.tax_minor, False),
            (f"Total {statement.currency}", statement.total_minor, True),
        ):
            self.ink(10 if bold else 9, bold=bold)
            self.set_x(_MARGIN + 100)
            self.cell(40, 6.5, name, border="T" if bold else 0)
            owed = _grouped(amount(minor, statement), statement.currency)
            self.cell(0, 6.5, owed, align="R", border="T" if bold else 0, new_x=XPos.LMARGIN, new_y=YPos.NEXT)


def _day(at: datetime) -> str:
    return f"{at.day} {at:%b %Y}"


def _stretch(starts_at: datetime, ends_at: datetime) -> str:
    """Say a half-open stretch: whole days by their dates, else to the minute."""
    if any((at.hour, at.minute, at.second, at.microsecond) != (0, 0, 0, 0) for at in (starts_at, ends_at)):
        return f"{_day(starts_at)} {starts_at:%H:%M} to {_day(ends_at)} {ends_at:%H:%M} UTC"
    return f"{_day(starts_at)} to {_day(ends_at - timedelta(days=1))}"


def _grouped(value: Decimal | None, currency: str = "") -> str:
    """Return the number for people: thousands apart, and at least the places of the currency."""
    if value is None:
        return ""
    whole, _, after = plain(value).partition(".")
    if currency:
        after = after.ljust(pricing.places(currency), "0")
    sign, whole = ("−", whole[1:]) if whole.startswith("-") else ("", whole)
    return f"{sign}{int(whole):,}" + (f".{after}" if after else "")
