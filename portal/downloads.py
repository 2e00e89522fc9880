"""Statements as files, the same for the customer and for staff. Who may have one is asked before."""

from django.http import Http404, HttpResponse

from billing import documents
from billing.models import Statement
from billing.states import StatementState


def statement(row: Statement, form: str) -> HttpResponse:
    """Return a statement as a file to save: as PDF once it is final, as CSV always; else raise `Http404`."""
    content: bytes | str
    if form == "pdf" and row.state != StatementState.DRAFT:
        content, content_type = documents.as_pdf(row), "application/pdf"
    elif form == "csv":
        content, content_type = documents.as_csv(row), "text/csv; charset=utf-8"
    else:
        raise Http404
    disposition = f'attachment; filename="{documents.name_of(row, form)}"'
    return HttpResponse(
        content,
        content_type=content_type,
        headers={"Content-Disposition": disposition, "Cache-Control": "no-store"},
    )
