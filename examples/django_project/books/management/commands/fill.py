"""Fill the shop: python manage.py fill."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand
from django.db import transaction

from books.models import Author, Book

AUTHORS, BOOKS = 40, 1000


class Command(BaseCommand):
    help = f"Put {BOOKS} books of {AUTHORS} authors into an empty shop."

    def handle(self, *args: Any, **options: Any) -> None:
        with transaction.atomic():
            if Book.objects.exists():
                self.stdout.write("The shop has books already.")
                return
            authors = Author.objects.bulk_create(
                Author(name=f"Author {number}") for number in range(AUTHORS)
            )
            Book.objects.bulk_create(
                Book(
                    title=f"Volume {number * 7919 % BOOKS:04}",
                    author=authors[number % AUTHORS],
                    price_cents=500 + number * 37 % 4000,
                    stock=1000,
                )
                for number in range(BOOKS)
            )
        self.stdout.write(f"{BOOKS} books of {AUTHORS} authors.")
