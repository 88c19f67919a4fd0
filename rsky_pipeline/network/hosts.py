"""Which hosts and addresses may be contacted.

Names and addresses in DID documents are chosen by strangers: `is_public_name` and
`is_public_address` keep the pipeline from being sent to machines of its operator's own network.
"""

import ipaddress

from rsky_pipeline.configuration.endpoints import is_dns_name

# Top-level names that never lead to a public host (RFC 6761, 6762, 7686, 8375, ICANN's .internal).
_SPECIAL_TOP_LEVEL = frozenset(
    {"alt", "arpa", "example", "home", "internal", "invalid", "lan", "local", "localdomain",
     "localhost", "onion", "test"}
)  # fmt: skip

# Of IPv6 only global unicast is public; these parts of it are not, or hide an IPv4 address
# (IANA special-purpose registry; 6to4 and Teredo could tunnel to a private host).
_IPV6_PUBLIC = ipaddress.IPv6Network("2000::/3")
_IPV6_EXCLUDED = tuple(
    ipaddress.IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
# Denied in addition to what `is_global` knows, which differs between Python versions.
_IPV4_EXCLUDED = tuple(
    ipaddress.IPv4Network(text)
    for text in ("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "224.0.0.0/3")
)


def parse_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that `host` spells, or None if it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_public_address(address: str) -> bool:
    """Tell whether an IP address is a public unicast one, reachable by anybody."""
    parsed = parse_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return is_public_address(str(parsed.ipv4_mapped))
        excluded = any(parsed in network for network in _IPV6_EXCLUDED)
        return parsed in _IPV6_PUBLIC and not excluded and parsed.scope_id is None
    if parsed is None:
        return False
    return parsed.is_global and not any(parsed in network for network in _IPV4_EXCLUDED)


def is_public_name(host: str) -> bool:
    """Tell whether `host` is a DNS name that can belong to a public server (no address, no
    single label, no special-use top-level domain). A dot at its end is legal (RFC 1034, 3.1)."""
    host = host.removesuffix(".")
    if not is_dns_name(host) or "." not in host or parse_address(host) is not None:
        return False
    # A last label of digits would be read as an IPv4 address by some resolvers (0x7f.1, 127.1).
    top = host.rpartition(".")[2]
    return not top[0].isdigit() and top not in _SPECIAL_TOP_LEVEL
