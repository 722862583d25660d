"""kerneltrace for Django: add this package to INSTALLED_APPS, and its middleware first of all."""
