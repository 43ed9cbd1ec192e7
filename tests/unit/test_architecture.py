"""Who may import whom, and how long a file may be.

    rpc -> application -> domain <- adapters        bootstrap sees everything
    gateway, console -> sidecar -> client <- dev               the simulator sees nobody

Read from the sources, so that an import inside a function or under TYPE_CHECKING counts too.
"""

import ast
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "client" / "src"

OURS = {
    *("payment_service", "gateway", "console", "stripe_simulator", "marketplace", "dev", "chaos"),
    *("sidecar", "examples", "tests"),
}
STUBS = "marketplace.payments.v1"
GRPC = {"grpc", "grpc_status", "grpc_health", "grpc_reflection", "google"}


@dataclass(frozen=True)
class Layer:
    """A module belongs to the first layer that has it or a package above it among its modules."""

    name: str
    modules: set[str]
    why: str
    #: What it may import of ours, besides itself.
    ours: set[str] = field(default_factory=set)
    #: What it may import that others wrote, besides the standard library.
    others: set[str] = field(default_factory=set)
    #: What it may not import of the standard library.
    not_standard: set[str] = field(default_factory=set)


LAYERS = [
    Layer(
        "domain",
        {"payment_service.domain"},
        "rules are tested without a database, a network or a clock",
        not_standard={
            *("asyncio", "concurrent", "threading", "multiprocessing", "subprocess", "signal"),
            *("socket", "ssl", "http", "urllib", "io", "os", "pathlib", "sqlite3", "tempfile"),
            *("logging", "random", "secrets", "time"),
        },
    ),
    Layer(
        "application",
        {"payment_service.application"},
        "a use case is told by ports what the world is like",
        ours={"payment_service.domain"},
        others={"structlog"},
        not_standard={"socket", "ssl", "http", "urllib.request", "sqlite3", "subprocess"},
    ),
    Layer(
        "rpc",
        {"payment_service.rpc"},
        "it translates between the contract and the use cases, and knows no database and no Stripe",
        ours={"payment_service.application", "payment_service.domain", STUBS},
        others={*GRPC, "structlog", "prometheus_client"},
    ),
    Layer(
        "stripe",
        {"payment_service.adapters.stripe"},
        "only the package that calls Stripe imports stripe, and it knows no database",
        ours={"payment_service.domain"},
        others={"stripe", "aiohttp", "structlog", "prometheus_client", "typing_extensions"},
    ),
    Layer(
        "signatures",
        {"payment_service.adapters.signatures"},
        "it signs bytes and checks signatures, and knows nothing of what they say",
        others={"cryptography"},
    ),
    Layer(
        "identity",
        {"payment_service.adapters.identity"},
        "it says who calls, and knows neither the books nor the settings",
        ours={"payment_service.domain"},
        others={"jwt", "cryptography", "aiohttp", "grpc", "structlog"},
    ),
    Layer(
        "postgres",
        {"payment_service.adapters"},
        "it serves the domain's database port, and knows neither use cases nor the contract",
        ours={"payment_service.domain"},
        others={
            *("sqlalchemy", "psycopg2", "greenlet", "alembic", "structlog", "prometheus_client")
        },
    ),
    Layer(
        "migrations",
        {"payment_service.migrations"},
        "a migration must not change when the code that it was written beside does",
        ours={"payment_service.adapters"},
        others={"sqlalchemy", "psycopg2", "alembic"},
    ),
    Layer(
        "bootstrap",
        {"payment_service.bootstrap", "payment_service.access"},
        "the one place where objects are wired",
        ours={"payment_service", STUBS},
        others={*GRPC, "sqlalchemy", "psycopg2", "aiohttp", "structlog", "prometheus_client"},
    ),
    Layer(
        "config",
        {"payment_service.config"},
        "settings are read before anything else exists",
        ours={"payment_service.domain"},
        others={"pydantic", "pydantic_settings", "structlog"},
    ),
    Layer(
        "relay",
        {"payment_service.relay"},
        "it is a caller of the service, and knows neither the books nor the use cases",
        ours={
            *("marketplace", "payment_service.config", "payment_service.logs"),
            "payment_service.metrics_site",
        },
        others={
            *(*GRPC, "aiohttp", "nats", "psycopg2", "pydantic", "pydantic_settings"),
            *("prometheus_client", "structlog", "typer"),
        },
    ),
    Layer(
        "commands",
        {
            *("payment_service.__main__", "payment_service.doctor"),
            "payment_service.token_commands",
        },
        "a command wires what it needs itself only where it serves nothing, as migrate does",
        ours={
            *("payment_service.server", "payment_service.config", "payment_service.logs"),
            "payment_service.workers",
            *("payment_service.maintenance", "payment_service.support", "payment_service.finance"),
            "payment_service.relay",
            *("payment_service.proofs", "payment_service.application.verify_heads"),
            "payment_service.access",
            *(
                "payment_service.adapters.identity.issuing",
                "payment_service.adapters.identity.files",
            ),
            "payment_service.adapters.postgres.engine",
            "payment_service.adapters.postgres.migrate",
            "payment_service.adapters.postgres.roles",
            "payment_service.adapters.stripe",
            *("payment_service.bootstrap", "payment_service.domain"),
        },
        others={"sqlalchemy", "structlog", "typer", "rich"},
    ),
    Layer(
        "tracing",
        {"payment_service.tracing"},
        "OpenTelemetry is imported only if traces are switched on",
        ours={"payment_service.config", "payment_service.domain"},
        others={"opentelemetry"},
    ),
    Layer(
        "entry",
        {"payment_service"},
        "what starts and serves gets its objects from bootstrap",
        ours={
            *("payment_service.bootstrap", "payment_service.access", "payment_service.config"),
            *("payment_service.rpc", "payment_service.application", "payment_service.domain"),
            STUBS,
        },
        others={*GRPC, "aiohttp", "structlog", "prometheus_client", "typer", "rich"},
    ),
    Layer(
        "gateway",
        {"gateway"},
        "it faces the internet, and so holds nothing but the client of the core",
        ours={"marketplace", "sidecar"},
        others={
            *(*GRPC, "aiohttp", "pydantic", "pydantic_settings", "structlog"),
            *("prometheus_client", "typing_extensions", "opentelemetry"),
        },
    ),
    Layer(
        "console",
        {"console"},
        "it may do what the operator may and no more, and so holds nothing but the client",
        ours={"marketplace", "sidecar"},
        others={
            *(*GRPC, "aiohttp", "jinja2", "cryptography", "pydantic", "pydantic_settings"),
            *("structlog", "typing_extensions"),
        },
    ),
    Layer(
        "sidecar",
        {"sidecar"},
        "the gateway and the console share it, so it holds no more than they may",
        ours={"marketplace"},
        others={"pydantic", "pydantic_settings", "structlog", "typing_extensions"},
    ),
    Layer(
        "simulator",
        {"stripe_simulator"},
        "it stands for Stripe, and so may share nothing with those who call Stripe",
        others={"aiohttp", "structlog", "typer"},
    ),
    Layer(
        "client",
        {"marketplace"},
        "callers install it alone",
        others={"grpc", "google"},
    ),
    Layer(
        "examples",
        {"examples"},
        "teams copy them, and have the client and nothing else of ours",
        ours={"marketplace"},
        others={"grpc", "google", "aiohttp"},
    ),
    Layer(
        "bench",
        {"dev.bench"},
        "its bare handlers do with other drivers what the service does, and share no code with it",
        ours={"marketplace", "dev"},
        others={*GRPC, "psycopg2", "asyncpg", "sqlalchemy", "aiohttp", "stripe"},
    ),
    Layer(
        "dev",
        {"dev"},
        "it starts processes and asks them over their ports, as anybody could",
        ours={"marketplace", "dev.bench"},
        others={*GRPC, "psycopg2", "dotenv", "rich", "typer", "aiohttp", "stripe", "mermaidx"},
    ),
    Layer(
        "chaos",
        {"chaos"},
        "it judges the service, and so takes none of its rules from it",
        ours={"marketplace", "dev"},
        others={*GRPC, "psycopg2", "aiohttp", "typer"},
    ),
]

PACKAGES = [
    *("payment_service.domain", "payment_service.application", "payment_service.adapters"),
    *("payment_service.rpc", "gateway", "stripe_simulator", "marketplace.payments", "dev"),
    *("chaos", "console"),
]

LINES_MAX = 400
LONG_FILES = {
    "payment_service/domain/ledger.py": "every posting rule beside the others, each a few lines",
    "stripe_simulator/api.py": "all that every request passes, in Stripe's own order",
    "stripe_simulator/disputes.py": "one of Stripe's resources a file, as in its reference",
    "stripe_simulator/payment_intents.py": "one of Stripe's resources a file, as in its reference",
    "stripe_simulator/routes.py": "every endpoint beside the others, as data",
    "stripe_simulator/refunds.py": "one of Stripe's resources a file, as in its reference",
    "stripe_simulator/schemas.py": "every endpoint's parameters beside the others, as data",
    "stripe_simulator/transfers.py": "one of Stripe's resources a file, as in its reference",
    "chaos/mutants.py": "every bug beside the others, as data",
    "stripe_simulator/webhooks.py": "deliveries, their retries and the switches over both",
}


class Import(NamedTuple):
    importer: str
    imported: str
    place: str
    #: Under TYPE_CHECKING: names types, and runs nothing.
    typing_only: bool


def sources() -> Iterator[tuple[str, Path]]:
    """Every module of ours with its file, tests and generated stubs apart."""
    for base, package in [
        *((ROOT, package) for package in sorted(OURS - {"marketplace", "tests"})),
        (CLIENT, "marketplace"),
    ]:
        for path in sorted((base / package).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if not within(module, {STUBS}):
                yield module, path


@functools.cache
def imports_of(module: str, path: Path) -> tuple[Import, ...]:
    return tuple(find_imports(module, path))


def find_imports(module: str, path: Path) -> Iterator[Import]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text(), str(path))
    for_types = {inner for node in ast.walk(tree) if is_for_types(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            # `from package import module` imports a module, and so is judged by its name.
            names = [
                f"{base}.{a.name}" if is_module(f"{base}.{a.name}") else base for a in node.names
            ]
        else:
            continue
        for name in names:
            place = f"{path.relative_to(ROOT)}:{node.lineno}"
            yield Import(module, name, place, node in for_types)


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def is_module(name: str) -> bool:
    relative = Path(*name.split("."))
    return any(
        (base / relative).is_dir() or (base / relative).with_suffix(".py").is_file()
        for base in (ROOT, CLIENT)
    ) and (name.split(".", maxsplit=1)[0] in OURS)


def within(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def layer_of(module: str) -> Layer:
    return next(layer for layer in LAYERS if within(module, layer.modules))


def is_allowed(imported: str, layer: Layer) -> bool:
    top = imported.split(".", maxsplit=1)[0]
    if top in OURS:
        return layer_of(imported) is layer or within(imported, layer.ours)
    if top in sys.stdlib_module_names:
        return not within(imported, layer.not_standard)
    return top in layer.others


@functools.cache
def all_imports() -> list[Import]:
    return [found for module, path in sources() for found in imports_of(module, path)]


@pytest.mark.parametrize("package", PACKAGES)
def test_package_exists(package: str) -> None:
    """Otherwise the tests below would pass for want of anything to judge."""
    assert any(within(module, {package}) for module, _ in sources()), f"{package} has no modules"


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_layer_imports_only_what_it_may(layer: Layer) -> None:
    wrong = [
        f"{found.place} imports {found.imported}"
        for found in all_imports()
        if layer_of(found.importer) is layer and not is_allowed(found.imported, layer)
    ]
    assert not wrong, f"{layer.name}: {layer.why}. Yet:\n" + "\n".join(wrong)


def test_only_the_stripe_adapter_imports_stripe() -> None:
    importers = {
        found.importer
        for found in all_imports()
        if within(found.imported, {"stripe"})
        and not found.typing_only
        and not within(found.importer, {"dev"})
    }
    assert all(within(importer, {"payment_service.adapters.stripe"}) for importer in importers)
    assert "payment_service.adapters.stripe.views" not in importers, "conversion needs only types"


def test_only_the_client_reads_the_details_of_an_error() -> None:
    """The service writes them. Whoever calls it asks `refusal_of`, so that all read the same."""
    importers = {
        found.importer
        for found in all_imports()
        if within(found.imported, {"google.rpc", "grpc_status"})
    }
    assert "marketplace.payments.errors" in importers
    others = {one for one in importers if not within(one, {"payment_service.rpc"})}
    assert others == {"marketplace.payments.errors"}


def test_long_files_have_a_reason() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for _, p in sources()}
    long = {path: length for path, length in lengths.items() if length > LINES_MAX}
    unexplained = {path: length for path, length in long.items() if path not in LONG_FILES}
    assert not unexplained, (
        f"over {LINES_MAX} lines: split them, or give the reason in LONG_FILES: {unexplained}"
    )
    outdated = [path for path in LONG_FILES if path not in long]
    assert not outdated, f"no longer over {LINES_MAX} lines; take them off LONG_FILES: {outdated}"


def test_no_test_module_imports_another() -> None:
    """What tests share is in tests/support or in a helper beside them, where it can be found."""
    found = list(imports_among_tests())
    assert any(one.imported == "tests.support.world" for one in found)
    wrong = [f"{one.place} imports {one.imported}" for one in found if is_test(one.imported)]
    assert not wrong, "\n".join(wrong)


def test_what_tests_share_does_not_depend_on_who_shares_it() -> None:
    wrong = [
        f"{found.place} imports {found.imported}"
        for found in imports_among_tests()
        if within(found.importer, {"tests.support"})
        and not within(found.imported, {"tests.support"})
    ]
    assert not wrong, "\n".join(wrong)


def imports_among_tests() -> Iterator[Import]:
    for path in sorted((ROOT / "tests").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield from (one for one in imports_of(module, path) if within(one.imported, {"tests"}))


def is_test(module: str) -> bool:
    return module.rpartition(".")[2].startswith("test_")


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("payment_service.domain.state_machine", "payment_service.domain.money", True),
        ("payment_service.domain.state_machine", "payment_service.application.recover", False),
        ("payment_service.domain.state_machine", "asyncio", False),
        ("payment_service.domain.state_machine", "structlog", False),
        ("payment_service.application.recover", "payment_service.domain.ports.records", True),
        ("payment_service.application.recover", "payment_service.adapters.postgres.engine", False),
        ("payment_service.application.recover", "grpc", False),
        ("payment_service.rpc.payments", "marketplace.payments.v1.payments_pb2", True),
        ("payment_service.rpc.payments", "payment_service.adapters.postgres.engine", False),
        ("payment_service.adapters.stripe.client", "stripe", True),
        ("payment_service.adapters.postgres.engine", "stripe", False),
        ("payment_service.adapters.stripe.api", "payment_service.adapters.postgres.engine", False),
        ("payment_service.adapters.postgres.engine", "payment_service.adapters.stripe.api", False),
        ("payment_service.adapters.postgres.engine", "payment_service.application.recover", False),
        ("payment_service.bootstrap", "payment_service.adapters.postgres.engine", True),
        ("payment_service.server", "payment_service.adapters.postgres.engine", False),
        ("gateway.app", "marketplace.payments.channel", True),
        ("gateway.app", "payment_service.domain.money", False),
        ("console.core", "marketplace.payments.channel", True),
        ("console.core", "payment_service.domain.money", False),
        ("console.settings", "gateway.settings", False),
        ("stripe_simulator.server", "stripe", False),
        ("stripe_simulator.server", "marketplace.payments.v1", False),
        ("marketplace.payments.channel", "payment_service.domain.money", False),
        ("dev.stack", "payment_service.config", False),
    ],
)
def test_rules_judge_as_meant(importer: str, imported: str, *, allowed: bool) -> None:
    """The rules are a table; this is the table read aloud."""
    assert is_allowed(imported, layer_of(importer)) is allowed


def test_imports_of_modules_are_distinguished_from_imports_of_names() -> None:
    path = ROOT / "dev" / "stack.py"
    found = {entry.imported for entry in imports_of("dev.stack", path)}
    assert {"signal", "dev.probes", "dev.child"} <= found
    assert "dev" not in found


def test_a_long_list_of_parameters_is_named_at_the_call() -> None:
    """More than six parameters are read only if the call says which is which."""
    too_long = []
    for path in sorted((ROOT / "payment_service").glob("*/**/*.py")):
        if path.relative_to(ROOT).parts[1] not in ("application", "domain"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                positional = [one.arg for one in node.args.posonlyargs + node.args.args]
                positional = [name for name in positional if name not in ("self", "cls")]
                if len(positional) > 6 or (
                    len(positional) + len(node.args.kwonlyargs) > 6 and len(positional) > 4
                ):
                    too_long.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert not too_long
