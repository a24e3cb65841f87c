"""Settings: frozen dataclasses <- TOML <- OCTONODE_* variables <- flags. Unknown keys are errors that name the nearest.

`OCTONODE_HOME` (default `~/.octonode`) holds all of a node's state, `config.toml` among it. A variable is
`OCTONODE_<SECTION>_<FIELD>`, such as `OCTONODE_NETWORK_LISTEN`; lists are comma-separated there.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from octonode.config_engines import MIB as MIB  # noqa: PLC0414 - read by others as a part of this module
from octonode.config_engines import EnginesConfig as EnginesConfig  # noqa: PLC0414 - the same
from octonode.config_engines import TensorRtConfig, VllmConfig
from octonode.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ApiConfig:
    listen: str = "127.0.0.1:8808"
    """HOST:PORT of the HTTP faces; port 0 lets the kernel choose."""
    keys: tuple[str, ...] = ()
    """Keys that may use `/v1/*` from beyond loopback. A key written `admin:KEY` may also change the node."""
    allowed_hosts: tuple[str, ...] = ()
    """Host header names accepted beside loopback names and the bound address."""
    cors_origins: tuple[str, ...] = ()
    request_bytes_max: int = 4 * MIB
    connections_max: int = 1024


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    listen: str = "0.0.0.0:4808"
    bootstrap: tuple[str, ...] = ()
    """Multiaddrs dialled at start, each ending in /p2p/<id>."""
    static_peers: tuple[str, ...] = ()
    """Multiaddrs that are dialled again whenever the connection is lost."""
    announce_addresses: tuple[str, ...] = ()
    """Multiaddrs to announce instead of those we listen on (behind a port forward)."""
    access: Literal["token", "peers", "open"] = "token"
    """Who may send tasks: holders of the join token, the list below, or anybody (`--public`)."""
    allowed_peers: tuple[str, ...] = ()
    muxer: Literal["own", "stock"] = "own"
    """`own`: the muxer, Noise reader and negotiation of this program; `stock`: those of py-libp2p, which are slower."""
    region: str = ""
    streams_per_peer_max: int = 1000
    """Each way; `muxer = "stock"` carries 200 at most."""
    received_bytes_per_connection_max: int = 32 * MIB
    """Received and not yet read, over all streams of a peer's connection; above it the stream whose reader is furthest
    behind is reset. Also what stream windows may grow by together."""
    connections_max: int = 256
    peerbook_peers_max: int = 4096
    announcement_ttl_seconds: float = 120.0
    dial_timeout_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    listen: str = "0.0.0.0:4810"
    enabled: bool = True
    connections_max: int = 128
    upload_bytes_per_second_max: int = 0
    """0: no limit."""


@dataclass(frozen=True, slots=True)
class BitswapConfig:
    enabled: bool = True
    """Give public blocks to every peer of the IPFS world that asks over bitswap, and fetch from such peers. What is
    given counts within `gateway.upload_bytes_per_second_max`."""
    window_bytes_max: int = 16 * MIB
    """Asked of one peer and not yet here. Helia gives up somewhere above."""
    wants_per_peer_max: int = 8192
    """Of one peer that wait for an answer; those beyond are told that the block is not here."""


@dataclass(frozen=True, slots=True)
class ModelsConfig:
    serve: tuple[str, ...] = ()
    """References of models to fetch, load and serve: publisher/name[@range], cid:..., file:/path, hf:org/repo@commit.
    Of a branch of a hub (hf:org/repo) what it means at each start."""
    gateways: tuple[str, ...] = ()
    """HTTPS or HTTP gateways asked after the peers, for example `https://ipfs.example`, with or without `/ipfs/`. They
    must be trustless ones that answer under /ipfs/: redirects are not followed."""
    kubo_rpc: str = ""
    """RPC of the Kubo node beside us, `http://127.0.0.1:5001`: asked for what no peer has, and the target of
    `octonode models export kubo`. Empty: none."""
    hub_endpoint: str = ""
    """Where `hf:` models come from; empty: HF_ENDPOINT, else https://huggingface.co."""
    hub_token: str = ""
    """For gated and private repositories; empty: HF_TOKEN. It is sent to the hub alone."""
    hub_patterns: tuple[str, ...] = ()
    """Files taken of a hub's repository, such as `*.safetensors`; empty: what can be loaded and what stands beside it.
    Pickles are never taken."""
    ipfs_peers: tuple[str, ...] = ()
    """Multiaddrs of IPFS nodes (Kubo, Helia) asked over bitswap, each ending in /p2p/<id>."""
    fetches_at_once_max: int = 3
    """Further fetches wait; the most urgent goes first."""
    disk_bytes_max: int = 0
    """Beyond it, models that others hold too go first, those unused for longest; pinned and served ones never.
    0: whatever the disk has."""
    partial_days: float = 7.0
    """Unfinished fetches and uploads that nobody went on with for so long are removed; 0: never."""
    scrub_days: float = 30.0
    """How often everything held is hashed again, in the background; 0: never."""
    scrub_bytes_per_second: int = 20 * MIB
    """How fast that reads; 0: not at all. `octonode models verify` reads as fast as it can."""
    trust: tuple[str, ...] = ()
    """Publishers trusted from the start (peer ids)."""
    trust_all: bool = False
    """Take manifests of unknown publishers without asking; for test networks."""
    allow_unsigned: bool = False
    """Take models that are known by their root alone, with no publisher's signature. They are shown as UNSIGNED."""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    role: Literal["full", "storage"] = "full"
    """`storage`: keeps models and serves their blocks, and runs no engine."""


@dataclass(frozen=True, slots=True)
class StorageConfig:
    allowed_peers: tuple[str, ...] = ()
    """Peer ids that may pin models here (`octonode models pin MODEL --on US`), whatever the role. Nobody else may."""
    bytes_max: int = 0
    """Of all that peers pin; 0: whatever the disk has."""
    bytes_per_peer_max: int = 0
    """0: no bound for each of its own."""
    days_max: int = 365
    """A pin for longer is granted for so long, and may be renewed; 0: for as long as was asked."""


@dataclass(frozen=True, slots=True)
class TasksConfig:
    open_max: int = 256
    """Open tasks in all, queued and running."""
    queue_max: int = 64
    """Tasks waiting for an engine slot."""
    open_per_peer_max: int = 256
    open_unknown_max: int = 48
    """Open tasks of all peers that have shown no token and are not listed: strangers never fill the queue alone."""
    requests_per_second_known: float = 100.0
    requests_burst_known: int = 200
    requests_per_second_unknown: float = 10.0
    requests_burst_unknown: int = 20
    silence_timeout_seconds: float = 3.0
    first_token_timeout_seconds: float = 120.0
    candidates_max: int = 8
    receipts_max: int = 100_000
    batch_seconds: float = 2.0
    """How long tasks of mode `batch` are collected at most, from the first on; 1 to 5."""


@dataclass(frozen=True, slots=True)
class PricingConfig:
    """What work here costs, in whole µOCTO; 0: nothing."""

    basis: Literal["tokens", "seconds", "tokens_per_second"] = "tokens"
    """`tokens`: the prices are per million tokens; `seconds`: per second of work; `tokens_per_second`: per second and
    token per second."""
    in_micro_octo: int = 0
    out_micro_octo: int = 0
    modes: tuple[str, ...] = ("realtime", "batch", "async")
    """Modes that are offered: `realtime` at the premium price, `batch` at the standard one, `async` at economy."""
    premium_factor: float = 1.5
    """Of the standard price, where no premium price is given."""
    premium_in_micro_octo: int = 0
    premium_out_micro_octo: int = 0
    economy_factor: float = 0.5
    """Of the standard price, where no economy price is given."""
    economy_in_micro_octo: int = 0
    economy_out_micro_octo: int = 0


@dataclass(frozen=True, slots=True)
class JobsConfig:
    """Work of mode `async`, which this node keeps on disk and asks for when its turn comes."""

    parallel: int = 4
    """Jobs that are asked for at the same time."""
    queued_max: int = 1000
    """Jobs that wait or run; further ones are refused."""
    kept_max: int = 10_000
    """Jobs on disk, ended ones among them; beyond it those that ended first go before their time."""
    stored_bytes_max: int = 1024 * MIB
    """Inputs and results of all jobs together; beyond it further ones are refused."""
    ttl_seconds: float = 86_400.0
    """How long a result is kept after its end, where the job names no time of its own; also the most it may name."""
    webhook_hosts_allowed: tuple[str, ...] = ()
    """Hosts, or networks such as 10.1.0.0/16, that webhooks may go to though their addresses are not public."""


@dataclass(frozen=True, slots=True)
class LogConfig:
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
    """`json`: one object a line, for machines."""
    file_bytes_max: int = 16 * MIB
    """Of one file; `files_max` of them are kept."""
    files_max: int = 3


@dataclass(frozen=True, slots=True)
class Config:
    home: Path
    node: NodeConfig = field(default_factory=NodeConfig)
    api: ApiConfig = field(default_factory=ApiConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    bitswap: BitswapConfig = field(default_factory=BitswapConfig)
    models: ModelsConfig = field(default_factory=ModelsConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    engines: EnginesConfig = field(default_factory=EnginesConfig)
    vllm: VllmConfig = field(default_factory=VllmConfig)
    tensorrt_llm: TensorRtConfig = field(default_factory=TensorRtConfig)
    tasks: TasksConfig = field(default_factory=TasksConfig)
    jobs: JobsConfig = field(default_factory=JobsConfig)
    pricing: PricingConfig = field(default_factory=PricingConfig)
    log: LogConfig = field(default_factory=LogConfig)


SECTIONS: dict[str, type] = {
    "node": NodeConfig,
    "api": ApiConfig,
    "network": NetworkConfig,
    "gateway": GatewayConfig,
    "bitswap": BitswapConfig,
    "models": ModelsConfig,
    "storage": StorageConfig,
    "engines": EnginesConfig,
    "vllm": VllmConfig,
    "tensorrt_llm": TensorRtConfig,
    "tasks": TasksConfig,
    "jobs": JobsConfig,
    "pricing": PricingConfig,
    "log": LogConfig,
}


def home_from(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("OCTONODE_HOME") or Path.home() / ".octonode").expanduser().absolute()


def load(
    *,
    home: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    flags: Mapping[str, Mapping[str, Any]] | None = None,
    file: Path | None = None,
) -> Config:
    """The settings of a node. `flags` is {section: {field: value}} and wins; None values there are ignored.

    Raises ConfigError that names the place, the value and what would be accepted.
    """
    home = home or home_from(environ)
    path = file or home / "config.toml"
    values: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    if file is not None or path.exists():
        _merge(values, read_toml(path), where=str(path))
    _merge(values, _from_environ(environ), where="environment")
    given = {s: {k: v for k, v in fields.items() if v is not None} for s, fields in (flags or {}).items()}
    _merge(values, given, where="flags")
    return Config(home=home, **{name: cls(**values[name]) for name, cls in SECTIONS.items()})


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _merge(into: dict[str, dict[str, Any]], raw: Mapping[str, Any], *, where: str) -> None:
    for section, fields in raw.items():
        if section not in SECTIONS:
            raise ConfigError(f"{where}: there is no section [{section}]{nearest(section, SECTIONS)}")
        if not isinstance(fields, Mapping):
            raise ConfigError(f"{where}: {section} is a section, write [{section}] and its fields below")
        hints = typing.get_type_hints(SECTIONS[section])
        for name, value in fields.items():
            if name not in hints:
                raise ConfigError(f"{where}: [{section}] has no field {name}{nearest(name, hints)}")
            into[section][name] = convert(value, hints[name], f"{where}: {section}.{name}")


def nearest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


def convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint` of a field. Raises ConfigError."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise ConfigError(f"{where} = {value!r}: use one of {', '.join(map(str, choices))}")
        return value
    if origin is tuple:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f"{where} = {value!r}: a list of texts is needed")
        return tuple(value)
    return _convert_scalar(value, hint, where)


def _convert_scalar(value: Any, hint: type, where: str) -> Any:
    if hint is bool and isinstance(value, str) and value.lower() in ("true", "false", "1", "0"):
        return value.lower() in ("true", "1")
    if hint in (int, float) and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return _convert_number(value, hint, where)
    if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    raise ConfigError(f"{where} = {value!r}: {_NAMES[hint]} is needed")


_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _convert_number(value: str | int | float, hint: type, where: str) -> int | float:
    try:
        number = float(value) if hint is float else int(value)
    except (ValueError, OverflowError):
        raise ConfigError(f"{where} = {value!r}: {_NAMES[hint]} is needed") from None
    if not math.isfinite(number) or (isinstance(value, float) and number != value):
        raise ConfigError(f"{where} = {value!r}: {_NAMES[hint]} is needed")
    if number < 0:
        raise ConfigError(f"{where} = {value!r}: it cannot be negative")
    return number


def _from_environ(environ: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """OCTONODE_<SECTION>_<FIELD> variables; other OCTONODE_ names are errors, since a typo must not pass unseen."""
    out: dict[str, dict[str, str]] = {}
    for name, value in environ.items():
        if not name.startswith("OCTONODE_") or name in ENVIRONMENT_NAMES:
            continue
        rest = name.removeprefix("OCTONODE_").lower()
        section = next((each for each in SECTIONS if rest.startswith(f"{each}_")), rest.partition("_")[0])
        fieldname = rest.removeprefix(section).removeprefix("_")
        out.setdefault(section, {})[fieldname] = value
    return out


ENVIRONMENT_NAMES = frozenset({"OCTONODE_HOME", "OCTONODE_TOKEN", "OCTONODE_URL", "OCTONODE_TEST_MODEL"})
"""Variables of ours that are not settings."""


def split_host_port(text: str, where: str) -> tuple[str, int]:
    """("127.0.0.1", 8808) from "127.0.0.1:8808"; "[::1]:0" works. Raises ConfigError."""
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{where} = {text!r}: write HOST:PORT, such as 127.0.0.1:8808 (port 0: the kernel chooses)")
    return host.strip("[]"), int(port)


def as_dict(config: Config) -> dict[str, Any]:
    """Nested plain values, for `config get` and for status; keys and tokens are hidden."""
    values = {name: dataclasses.asdict(getattr(config, name)) for name in SECTIONS}
    values["api"]["keys"] = ["***"] * len(config.api.keys)
    values["models"]["hub_token"] = "***" if config.models.hub_token else ""
    return {"home": str(config.home), **values}
