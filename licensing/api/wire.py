"""What goes over the wire: how bodies are read, which form answers have, how lists are paged.

Named in settings, so it imports no DRF view.
"""

from typing import Any

import orjson
from django.conf import settings
from rest_framework.exceptions import ParseError
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.pagination import CursorPagination
from rest_framework.parsers import BaseParser
from rest_framework.request import Request
from rest_framework.response import Response

from licensing.errors import Invalid


class JSONOnly(BaseContentNegotiation):
    """We speak JSON, whatever is accepted."""

    def select_parser(self, request: Any, parsers: Any) -> Any:
        media_type = (request.content_type or "").partition(";")[0].strip().lower()
        return next((parser for parser in parsers if parser.media_type == media_type), None)

    def select_renderer(self, request: Any, renderers: Any, format_suffix: str | None = None) -> Any:
        return renderers[0], renderers[0].media_type


class StrictJSONParser(BaseParser):
    """Reads a JSON object: no NaN, no lone surrogates, no bottomless nesting."""

    media_type = "application/json"

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> Any:
        try:
            return orjson.loads(stream.read())
        except orjson.JSONDecodeError as error:
            raise ParseError(f"The body is no JSON: {error}") from None


class CursorPages(CursorPagination):
    """Pages of `{results, next, previous}`, newest first; `?limit=` up to 200."""

    ordering = "-id"
    page_size = 50
    page_size_query_param = "limit"
    max_page_size = 200

    def get_page_size(self, request: Request) -> int:
        text = request.query_params.get("limit")
        if text is None:
            return self.page_size
        if not text.isascii() or not text.isdigit() or len(text) > 3 or not 1 <= int(text) <= self.max_page_size:
            raise Invalid(f"limit is a whole number from 1 to {self.max_page_size}.", pointer="/limit")
        return int(text)

    def paginate_queryset(self, queryset: Any, request: Request, view: Any = None) -> Any:
        page: Any = super().paginate_queryset(queryset, request, view)
        # Links are built from PUBLIC_URL, never from the Host a client sends.
        self.base_url = settings.PUBLIC_URL + request._request.get_full_path()
        return page

    def get_paginated_response(self, data: Any) -> Response:
        return Response({"results": data, "next": self.get_next_link(), "previous": self.get_previous_link()})

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        link = {"type": ["string", "null"], "format": "uri"}
        return {
            "type": "object",
            "required": ["results", "next", "previous"],
            "properties": {"results": schema, "next": link, "previous": link},
        }
