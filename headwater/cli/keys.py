"""Commands for API keys: create, list, revoke."""

from typing import Annotated

import typer
from rich.markup import escape

from headwater.cli.common import DataOption, JsonOption, connected, err, out, print_json, read_settings
from headwater.cli.tables import print_table, table_of
from headwater.client import Headwater
from projections.api_keys import SCOPES, ApiKey, create_key, list_keys, revoke_key
from projections.db import migrate
from schemas.ids import check_tenant_id

keys = typer.Typer(name="keys", help="Make, list and revoke API keys of the HTTP interface.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.add_typer(keys, name="keys")


@keys.command("create")
def create(
    tenant: Annotated[
        str | None, typer.Option("--tenant", "-t", help="The tenant it is for. Left out: an operator's key, for all.")
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope",
            help=f"{', '.join(SCOPES)}; can be repeated.",
            show_default=False,
            autocompletion=lambda: list(SCOPES),
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    data: DataOption = None,
    json_: JsonOption = False,
) -> None:
    """Make an API key and print it: this once, for only a hash of it is stored.

    submit: hand in tasks, cancel them, clear sessions. read: look at everything of the tenant. admin: both, and dead
    letters. A key without a tenant is an operator's and needs the scope admin.
    """

    async def work(hw: Headwater) -> tuple[ApiKey, str]:
        await migrate(hw.pool)
        return await create_key(hw.pool, tenant, scope or [], name)

    key, text = connected(read_settings(data=data), work)
    if json_:
        print_json({**key.as_dict(), "key": text})
        return
    out.print(text, soft_wrap=True)
    err.print("this key is not shown again: keep it now. Use it as 'Authorization: Bearer hw_…', or as HEADWATER_KEY")


@keys.command("list")
def list_(
    tenant: Annotated[str | None, typer.Option("--tenant", "-t", help="Only this tenant's.")] = None,
    data: DataOption = None,
    json_: JsonOption = False,
) -> None:
    """Print the keys there are, revoked ones too; never the keys themselves."""
    if tenant is not None:
        check_tenant_id(tenant)
    found = connected(read_settings(data=data), lambda hw: list_keys(hw.pool, tenant))
    if json_:
        for key in found:
            print_json(key.as_dict())
        return
    table = table_of("id", "tenant", "scopes", "name", "created", "revoked", texts=("scopes", "name"))
    for key in found:
        shown = key.as_dict()
        table.add_row(
            key.key_id,
            key.tenant_id or "[dim](operator)[/dim]",
            " ".join(shown["scopes"]),
            escape(key.name),
            f"{key.created_at:%Y-%m-%d %H:%M}",
            f"{key.revoked_at:%Y-%m-%d %H:%M}" if key.revoked_at else "",
        )
    print_table(table, less=("created",))


@keys.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as 'headwater keys list' shows it.")],
    data: DataOption = None,
    json_: JsonOption = False,
) -> None:
    """Make a key useless, at once and for good. Streams that it opened end within seconds."""
    key = connected(read_settings(data=data), lambda hw: revoke_key(hw.pool, key_id))
    print_json(key.as_dict()) if json_ else out.print(f"revoked {key.key_id}")
