"""The bookshop's pages."""

from __future__ import annotations

from books import views
from django.urls import path

urlpatterns = [
    path("", views.index, name="index"),
    path("books/<int:pk>/", views.book, name="book"),
    path("rivals/", views.rivals, name="rivals"),
    path("orders/", views.order, name="order"),
    path("covers/", views.cover, name="cover"),
    path("export/", views.export, name="export"),
    path("offers/", views.offers, name="offers"),
    path("postage/", views.postage, name="postage"),
    path("health/", views.health, name="health"),
]
