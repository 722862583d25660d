"""Pages that spend their time in different ways, well or badly.

`make demo-django` sends them traffic and shows where the time went.
"""

from __future__ import annotations

import asyncio
import csv
import os
import tempfile
import time
from collections.abc import Iterator

from django.conf import settings
from django.db import connection, transaction
from django.db.models import F
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_POST

from books.models import Book, Order

RIVALS = """
    select count(*) from books_book a join books_book b
    on a.price_cents < b.price_cents and a.title < b.title and a.stock <= b.stock
"""


def health(request: HttpRequest) -> HttpResponse:
    """Answer at once."""
    return HttpResponse("ok\n", content_type="text/plain")


def index(request: HttpRequest) -> HttpResponse:
    """List the cheapest books, with their authors: a query and a template."""
    books = Book.objects.select_related("author").order_by("price_cents")[:40]
    return render(request, "books/index.html", {"books": books})


def book(request: HttpRequest, pk: int) -> JsonResponse:
    """Show one book, and what the kernel did for this request until now."""
    found = get_object_or_404(Book.objects.select_related("author"), pk=pk)
    stats = request.kerneltrace  # type: ignore[attr-defined]
    return JsonResponse(
        {
            "title": found.title,
            "author": found.author.name,
            "kernel": {"cpu_ns": stats.cpu_ns, "blocked_ns": stats.blocked_ns},
        }
    )


def rivals(request: HttpRequest) -> JsonResponse:
    """Compare every book with every other: the query that should have an index."""
    with connection.cursor() as cursor:
        cursor.execute(RIVALS)
        (count,) = cursor.fetchone()
    return JsonResponse({"rivals": count})


@require_POST
def order(request: HttpRequest) -> JsonResponse:
    """Sell a book: a transaction, whose commit waits for the disk and for other writers."""
    with transaction.atomic():
        # The write comes first, so that SQLite waits for its turn instead of giving up.
        Book.objects.filter(pk=1).update(stock=F("stock") - 1)
        placed = Order.objects.create(book_id=1)
    return JsonResponse({"order": placed.pk}, status=201)


@require_POST
def cover(request: HttpRequest) -> JsonResponse:
    """Store an upload so that it survives a power failure."""
    folder = settings.DATA_DIR / "covers"
    folder.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        for chunk in iter(lambda: request.read(1 << 16), b""):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
        return JsonResponse({"bytes": file.tell()}, status=201)


def export(request: HttpRequest) -> StreamingHttpResponse:
    """Send all books as CSV, a row at a time."""

    class Line:
        def write(self, text: str) -> str:
            return text

    def rows() -> Iterator[str]:
        writer = csv.writer(Line())
        yield writer.writerow(["title", "author", "price"])
        for found in Book.objects.select_related("author").iterator(chunk_size=100):
            yield writer.writerow([found.title, found.author.name, found.price_cents / 100])

    return StreamingHttpResponse(rows(), content_type="text/csv")


async def offers(request: HttpRequest) -> JsonResponse:
    """Ask the database and a slow partner at the same time."""

    async def partner() -> int:
        await asyncio.sleep(0.02)
        return 3

    cheapest = Book.objects.order_by("price_cents").afirst()
    found, discount = await asyncio.gather(cheapest, partner())
    return JsonResponse({"title": found.title if found else None, "discount": discount})


def postage(request: HttpRequest) -> JsonResponse:
    """Wait for nothing but a call to sleep, which somebody forgot here."""
    time.sleep(0.05)
    return JsonResponse({"postage_cents": 290})
