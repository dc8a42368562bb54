"""Commands that run something: up, api, worker, projector, simulator."""

from pathlib import Path
from typing import Annotated

import typer

from headwater.cli.common import DataOption, err, out, read_settings, run_async
from headwater.embedded import Endpoints
from headwater.logs import configure_logging
from schemas.plurals import counted

AgentsOption = Annotated[
    str | None,
    typer.Option(
        "--agents",
        metavar="MODULE:OBJECT",
        help="The team, such as my_team.agents:team.",
        show_default="HEADWATER_AGENTS",
    ),
]

PortOption = Annotated[
    int | None, typer.Option(help="HTTP port, 0 for any free one.", show_default="HEADWATER_PORT, or 8080")
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("up")(up)
    app.command("api")(api)
    app.command("worker")(worker)
    app.command("projector")(projector)
    app.command("simulator")(simulator)


def up(
    data: DataOption = None,
    agents: AgentsOption = None,
    port: Annotated[
        int | None, typer.Option(help="HTTP port, 0 for any free one.", show_default="HEADWATER_PORT, or 8080")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Worker processes.", show_default="HEADWATER_WORKERS, or 2")
    ] = None,
) -> None:
    """Run everything in one process tree. Ctrl-C drains and stops it.

    Starts an embedded Redis and PostgreSQL in the data directory unless REDIS_URL and DATABASE_URL name yours, the
    HTTP application, the projector, and worker processes, which are started again when they die.
    """
    from headwater.up import up as run_up

    settings = read_settings(data=data, agents=agents, port=port, workers=workers)
    configure_logging(settings.log_level)

    def announce(endpoints: Endpoints, url: str) -> None:
        out.print(f"[bold]Headwater is up[/bold] on {settings.data}, with {counted(settings.workers, 'worker')}")
        out.print(f"  HTTP        {url}  (/docs, /asyncapi, /metrics)")
        out.print(f"  Redis       {_shown(endpoints.redis_url)}")
        out.print(f"  PostgreSQL  {_shown(endpoints.database_url)}")
        out.print(f"  logs        {settings.data / 'logs'}")
        if settings.agents is None:
            err.print("no team is running: name one with --agents module:object")

    run_up(settings, announce)
    out.print("stopped")


def api(
    data: DataOption = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on.", show_default="HEADWATER_HOST, or 127.0.0.1")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="HTTP port, 0 for any free one.", show_default="HEADWATER_PORT, or 8080")
    ] = None,
) -> None:
    """Run one process of the HTTP application. SIGTERM stops it."""
    from headwater.http_server import run_api
    from headwater.node import find_endpoints

    settings = read_settings(data=data, host=host, port=port)
    configure_logging(settings.log_level)
    run_async(
        run_api(
            settings,
            find_endpoints(settings),
            lambda url: out.print(f"[bold]Headwater's API is up[/bold] at {url}  (/docs, /asyncapi, /metrics)"),
        )
    )


def worker(data: DataOption = None, agents: AgentsOption = None) -> None:
    """Run one worker process, which decides on tasks and runs agents. SIGTERM stops it."""
    from headwater.node import find_endpoints
    from headwater.processes import run_worker

    settings = read_settings(data=data, agents=agents)
    configure_logging(settings.log_level)
    run_async(run_worker(settings, find_endpoints(settings)))


def projector(data: DataOption = None) -> None:
    """Run one projector process, which applies the log to the read models. SIGTERM stops it."""
    from headwater.node import find_endpoints
    from headwater.processes import run_projector

    settings = read_settings(data=data)
    configure_logging(settings.log_level)
    run_async(run_projector(settings, find_endpoints(settings)))


def simulator(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port, 0 for any free one.")] = 8090,
    script: Annotated[Path | None, typer.Option(help="JSON file of scripted answers.")] = None,
    prices: Annotated[Path | None, typer.Option(help="JSON price file in LiteLLM's format.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of answers and faults.")] = 0,
    latency_ms: Annotated[int, typer.Option(min=0, help="Latency of every answer.")] = 0,
    bill: Annotated[Path | None, typer.Option(help="File that keeps the bill over restarts.")] = None,
) -> None:
    """Run a simulator of an LLM provider. OpenAI's interface, deterministic answers, faults, a bill at GET /bill."""
    from headwater.simulator import FaultRule, SimulatorConfig, load_answers, load_prices, serve

    config = SimulatorConfig(
        seed=seed,
        prices=load_prices(prices),
        answers=load_answers(script) if script else [],
        faults=[FaultRule(latency_ms=latency_ms)] if latency_ms else [],
        bill_path=bill,
    )

    def ready(url: str) -> None:
        out.print(
            f"[bold]The simulator is up[/bold] at {url}  (OpenAI's interface under {url}/v1, the bill at {url}/bill)"
        )

    serve(config, host=host, port=port, ready=ready)


def _shown(url: str) -> str:
    """A URL without its password."""
    head, _, tail = url.rpartition("@")
    user = head.rpartition("/")[2].partition(":")[0]
    return f"{head.partition('://')[0]}://{user}@{tail}" if head else url
