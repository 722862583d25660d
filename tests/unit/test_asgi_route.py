"""The route's template, from what each framework leaves in a scope."""

from __future__ import annotations

from types import SimpleNamespace

from kerneltrace_asgi.route import route_of

ITEM = SimpleNamespace(path="/items/{id:int}", path_format="/items/{id}")


def test_a_scope_without_a_route_has_none() -> None:
    assert route_of({"path": "/items/7"}) is None
    assert route_of({"route": object()}) is None
    assert route_of({"path_template": None}) is None


def test_starlettes_route_is_shown_without_converters() -> None:
    assert route_of({"route": ITEM}) == "/items/{id}"


def test_an_older_route_has_only_a_path() -> None:
    assert route_of({"route": SimpleNamespace(path="/items/{id}")}) == "/items/{id}"


def test_litestars_template_is_taken() -> None:
    assert route_of({"path_template": "/items/{id}"}) == "/items/{id}"


def test_a_mounts_path_comes_before_the_route() -> None:
    scope = {"route": ITEM, "app_root_path": "/proxy", "root_path": "/proxy/api/v1"}

    assert route_of(scope) == "/api/v1/items/{id}"


def test_a_path_that_only_the_proxy_knows_is_no_mount() -> None:
    assert route_of({"route": ITEM, "root_path": "/proxy"}) == "/items/{id}"


def test_a_value_in_a_mounts_path_becomes_its_name_again() -> None:
    scope = {
        "route": ITEM,
        "app_root_path": "",
        "root_path": "/tenants/acme",
        "path_params": {"tenant": "acme", "id": 7},
    }

    assert route_of(scope) == "/tenants/{tenant}/items/{id}"


def test_a_value_that_looks_like_the_mount_changes_nothing() -> None:
    scope = {
        "route": ITEM,
        "app_root_path": "",
        "root_path": "/items",
        "path_params": {"id": "items"},
    }

    assert route_of(scope) == "/items/items/{id}"


def test_a_mount_that_has_no_routes_is_itself_the_route() -> None:
    files = SimpleNamespace(path="/static", path_format="/static/{path}", routes=[])

    assert route_of({"route": files, "app_root_path": "", "root_path": "/static"}) == "/static"
    assert route_of({"route": files, "app_root_path": "", "root_path": ""}) == "/"


def test_a_router_that_fastapi_included_has_its_prefix() -> None:
    context = SimpleNamespace(original_route=ITEM, path_format="/v1/items/{id}")
    scope = {"route": ITEM, "fastapi": {"effective_route_context": context}}

    assert route_of(scope) == "/v1/items/{id}"

    other = SimpleNamespace(path="/s", path_format="/s")
    assert route_of({**scope, "route": other}) == "/s"
