"""Which rate of live events is expected. Pure."""

from dataclasses import fields

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.network.hosts import is_public_name, parse_endpoint
from rsky_pipeline.operations.verification.streams import Band

_DEFAULTS = {item.name: item.default for item in fields(Settings)}


def expected_band(settings: Settings) -> Band:
    """Return the configured band; the default one holds for relays of the public network only."""
    low, high = settings.expected_rate_min, settings.expected_rate_max
    untouched = (low, high) == (
        _DEFAULTS["expected_rate_min"], _DEFAULTS["expected_rate_max"]
    )  # fmt: skip
    hosts = [parse_endpoint(host).host for host in settings.relay_hosts]
    if untouched and not any(is_public_name(host) for host in hosts):
        why = "no public relay is followed and no expected_rate_min and _max are set"
        return Band(low, high, why)
    return Band(low, high)
