"""The first tables."""

from __future__ import annotations

import django.db.models.deletion
from django.db import migrations, models

ID = models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")


def key(model: str, name: str) -> models.ForeignKey:
    return models.ForeignKey(
        on_delete=django.db.models.deletion.CASCADE, related_name=name, to=model
    )


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            name="Author",
            fields=[("id", ID.clone()), ("name", models.CharField(max_length=100))],
        ),
        migrations.CreateModel(
            name="Book",
            fields=[
                ("id", ID.clone()),
                ("title", models.CharField(max_length=200)),
                ("price_cents", models.PositiveIntegerField()),
                ("stock", models.PositiveIntegerField(default=0)),
                ("author", key("books.author", "books")),
            ],
        ),
        migrations.CreateModel(
            name="Order",
            fields=[
                ("id", ID.clone()),
                ("placed", models.DateTimeField(auto_now_add=True)),
                ("book", key("books.book", "orders")),
            ],
        ),
    ]
